"""Causal convolutions on [b c n] and the stacks of them that take audio to frames and back (SEANet, arXiv:2009.02095)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlat_vae.causal import Causal, Chain, Pointwise, Residual

AFTER_ELU = 1.25  # brings ELU's output, on unit normal input, back to a mean square of 1
BRANCH = 0.3  # a fresh residual unit is near the identity


class CausalConv(Causal[Tensor]):
    """Convolution [b i n] -> [b o n/stride]: output t sees inputs up to (t+1)·stride − 1.

    The state holds the newest (kernel − 1)·dilation + 1 − stride inputs [b i left]; before the stream stand zeros. Fresh
    weights give an output `gain` times as loud as the input: twenty layers that each lose a little hand on nothing.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.left = (kernel - 1) * dilation + 1 - stride
        if self.left < 0:
            raise ValueError(f"A kernel of {kernel} at dilation {dilation} skips samples at stride {stride}: widen it.")
        self.stride = stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)
        nn.init.normal_(self.conv.weight, std=gain / math.sqrt(inputs * kernel))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

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

    The state holds what inputs so far add to outputs to come, [b o kernel − stride]. `gain` is as in `CausalConv`.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, gain: float = 1.0) -> None:
        super().__init__()
        self.tail = kernel - stride
        if self.tail < 0:
            raise ValueError(f"A kernel of {kernel} leaves gaps at stride {stride}: widen it.")
        self.stride = stride
        self.conv = nn.ConvTranspose1d(inputs, outputs, kernel, stride, bias=False)
        nn.init.normal_(self.conv.weight, std=gain / math.sqrt(inputs * kernel / stride))
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
            CausalConv(channels, inner, kernel, gain=AFTER_ELU),
            Pointwise(F.elu),
            CausalConv(inner, channels, 1, gain=BRANCH),
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
            yield CausalConv(before, after, 2 * ratio, ratio, gain=AFTER_ELU)
        yield Pointwise(F.elu)
        yield CausalConv(channels[-1], outputs, kernels[2], gain=AFTER_ELU)

    return Chain(layers())


def decoder_stack(channels: list[int], ratios: Sequence[int], kernels: tuple[int, int, int], inputs: int) -> Chain:
    """The mirror of `encoder_stack` of the same arguments: [b inputs t] -> audio [b 1 t·∏ratios]."""

    def layers() -> Iterator[Causal[Any]]:
        yield CausalConv(inputs, channels[-1], kernels[2])
        for before, after, ratio in reversed(list(zip(channels, channels[1:], ratios, strict=False))):
            yield Pointwise(F.elu)
            yield CausalTransposedConv(after, before, 2 * ratio, ratio, AFTER_ELU)
            yield residual_unit(before, kernels[1])
        yield Pointwise(F.elu)
        yield CausalConv(channels[0], 1, kernels[0], gain=AFTER_ELU)

    return Chain(layers())
