"""Causal convolutions on [b c n] and the stacks of them that take audio to frames and back (SEANet, arXiv:2009.02095)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlat_vae.causal import Causal, Chain, Pointwise, Residual


class CausalConv(Causal[Tensor]):
    """Convolution [b i n] -> [b o n/stride]: output t sees inputs up to (t+1)·stride − 1.

    The state holds the newest (kernel − 1)·dilation + 1 − stride inputs [b i left]; before the stream stand zeros.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.left = (kernel - 1) * dilation + 1 - stride
        if self.left < 0:
            raise ValueError(f"A kernel of {kernel} at dilation {dilation} skips samples at stride {stride}: widen it.")
        self.stride = stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)

    def initial(self, batch: int) -> Tensor:
        """Zeros [b i left]."""
        return self.conv.weight.new_zeros(batch, self.conv.in_channels, self.left)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """[b i n] with n a positive multiple of the stride."""
        if x.shape[-1] == 0 or x.shape[-1] % self.stride:
            raise ValueError(f"{x.shape[-1]} samples are no positive multiple of the stride {self.stride}.")
        padded = torch.cat([state, x], -1)  # [b, i, left + n]
        y: Tensor = self.conv(padded)
        return y, padded[..., padded.shape[-1] - self.left :]


class CausalTransposedConv(Causal[Tensor]):
    """Transposed convolution [b i n] -> [b o n·stride]: output s sees inputs up to ⌊s/stride⌋.

    The state holds what inputs so far add to outputs to come, [b o kernel − stride].
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.tail = kernel - stride
        if self.tail < 0:
            raise ValueError(f"A kernel of {kernel} leaves gaps at stride {stride}: widen it.")
        self.stride = stride
        self.conv = nn.ConvTranspose1d(inputs, outputs, kernel, stride, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def initial(self, batch: int) -> Tensor:
        """Zeros [b o kernel − stride]."""
        return self.bias.new_zeros(batch, len(self.bias), self.tail)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """[b i n] with n ≥ 1."""
        full: Tensor = self.conv(x)  # [b, o, (n-1)·stride + kernel]
        full = full + F.pad(state, (0, full.shape[-1] - self.tail))
        ready = x.shape[-1] * self.stride
        return full[..., :ready] + self.bias[:, None], full[..., ready:]


def residual_unit(channels: int, kernel: int) -> Residual:
    """x + conv1(elu(conv_kernel(elu(x)))), half as wide inside."""
    inner = max(1, channels // 2)
    return Residual(
        [
            Pointwise(F.elu),
            CausalConv(channels, inner, kernel),
            Pointwise(F.elu),
            CausalConv(inner, channels, 1),
        ]
    )


def widths(channels: int, most: int, ratios: Sequence[int]) -> list[int]:
    """Channels before and after each down-sampling: doubled each time, `most` at most.

    >>> widths(64, 1024, (4, 4, 4, 5, 6))
    [64, 128, 256, 512, 1024, 1024]
    """
    return [min(channels * 2**level, most) for level in range(len(ratios) + 1)]


def encoder_stack(channels: list[int], ratios: Sequence[int], kernels: tuple[int, int, int], outputs: int) -> Chain:
    """Audio [b 1 n] -> [b outputs n/∏ratios], `ratios` from the audio on; kernels: first, residual, last."""

    def layers() -> Iterator[Causal[Any]]:
        yield CausalConv(1, channels[0], kernels[0])
        for before, after, ratio in zip(channels, channels[1:], ratios, strict=False):
            yield residual_unit(before, kernels[1])
            yield Pointwise(F.elu)
            yield CausalConv(before, after, 2 * ratio, ratio)
        yield Pointwise(F.elu)
        yield CausalConv(channels[-1], outputs, kernels[2])

    return Chain(layers())


def decoder_stack(channels: list[int], ratios: Sequence[int], kernels: tuple[int, int, int], inputs: int) -> Chain:
    """The mirror of `encoder_stack` of the same arguments: [b inputs t] -> audio [b 1 t·∏ratios]."""

    def layers() -> Iterator[Causal[Any]]:
        yield CausalConv(inputs, channels[-1], kernels[2])
        for before, after, ratio in reversed(list(zip(channels, channels[1:], ratios, strict=False))):
            yield Pointwise(F.elu)
            yield CausalTransposedConv(after, before, 2 * ratio, ratio)
            yield residual_unit(before, kernels[1])
        yield Pointwise(F.elu)
        yield CausalConv(channels[0], 1, kernels[0])

    return Chain(layers())
