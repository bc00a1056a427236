"""Frame-rate matching by stacking: `factor` neighbouring frames become one, nothing is lost."""

from __future__ import annotations

from torch import Tensor

from arlat_data.codecs import build_codec
from arlat_data.codecs._frames import GroupConfig, Grouped


class Config(GroupConfig):
    """`stack:FACTOR|CODEC`."""


class Stack(Grouped):
    """Frames t·factor … t·factor + factor − 1 of `inner`, oldest first, as one vector."""

    name = "stack"

    @property
    def dim(self) -> int:
        return self.inner.spec.dim * self.factor

    def join(self, frames: Tensor) -> Tensor:
        return frames.flatten(2)

    def decode(self, latents: Tensor) -> Tensor:
        batch, frames, _ = latents.shape
        return self.inner.decode(latents.reshape(batch, frames * self.factor, self.inner.spec.dim))


def build(config: Config, device: str) -> Stack:
    """Builds the wrapped codec and the wrapper."""
    return Stack(build_codec(config.inner, device), config.factor)
