"""The residual block x + down·act(up·norm(x) + up_bias) + down_bias in plain torch, and which sizes of it stay on chip."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import relu, silu

NORM_EPSILON = 1e-6  # beside the mean square in every norm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "relu2": lambda x: relu(x).square()}
OPERANDS = ("float32", "bfloat16")
WIDTHS = (32, 64, 128)  # of streams and frames that the Triton twins hold on chip
HIDDEN_MULTIPLE = 64
TRITON_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32})


def through_blocks(
    x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, activation: str, operands: str
) -> Tensor:
    """The stream x [m b s] after l blocks: up [m l s h] and down [m l h s], what multiplies already narrowed; biases [m l h], [m l s]."""
    act = ACTIVATIONS[activation]
    for layer in range(up.shape[1]):
        hidden = narrowed(norm(x), operands) @ up[:, layer] + up_bias[:, layer, None]
        x = x + (narrowed(act(hidden), operands) @ down[:, layer] + down_bias[:, layer, None])
    return x


def norm(x: Tensor) -> Tensor:
    """x/√(mean x² + 1e-6) over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON)


def narrowed(x: Tensor, operands: str) -> Tensor:
    """x, rounded to bfloat16 and back where the operands are bfloat16; so is its gradient."""
    return x.bfloat16().to(x.dtype) if operands == "bfloat16" else x


def check_block_options(activation: str, operands: str) -> None:
    """Raises ValueError for an activation or operands that do not exist."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"There is no activation {activation!r}. Known: {', '.join(ACTIVATIONS)}.")
    if operands not in OPERANDS:
        raise ValueError(f"There are no operands {operands!r}. Known: {', '.join(OPERANDS)}.")


def fits(dim: int, stream: int) -> bool:
    """Whether a stream of this width, for frames of `dim` dimensions, stays on chip."""
    return dim in WIDTHS and stream in WIDTHS and dim <= stream


def size_obstacle(dim: int, stream: int, hidden: int) -> str | None:
    """Why a Triton twin cannot hold a net of these sizes on chip, or None."""
    if fits(dim, stream) and hidden % HIDDEN_MULTIPLE == 0:
        return None
    return (
        f"its stream is {stream} wide, frames have {dim} dimensions, blocks {hidden} units; on chip fit streams of "
        f"{', '.join(map(str, WIDTHS))} that are at least as wide as frames, whose dimensions are of the same list, and "
        f"multiples of {HIDDEN_MULTIPLE} units."
    )
