"""The residual block that every MLP here is made of: x + W2·act(W1·norm(x))."""

from __future__ import annotations

from typing import Literal

from arlat_kernels.residual_block import ACTIVATIONS
from torch import Tensor, nn

Activation = Literal["silu", "relu2"]  # the names in ACTIVATIONS


class Block(nn.Module):
    """x + W2·act(W1·norm(x)), with a stream of `width` and `hidden` units inside; the norm has no weights of its own."""

    def __init__(self, width: int, hidden: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[... width] -> [... width]."""
        out: Tensor = x + self.down(self.activation(self.up(self.norm(x))))
        return out
