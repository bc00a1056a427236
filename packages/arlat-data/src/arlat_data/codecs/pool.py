"""Frame-rate matching by mean pooling, decoded by repetition: detail within a group is lost."""

from __future__ import annotations

from torch import Tensor

from arlat_data.codecs import build_codec
from arlat_data.codecs._frames import GroupConfig, Grouped


class Config(GroupConfig):
    """`pool:FACTOR|CODEC`."""


class Pool(Grouped):
    """Mean of `factor` neighbouring frames of `inner`."""

    name = "pool"

    def join(self, frames: Tensor) -> Tensor:
        return frames.mean(2)

    def decode(self, latents: Tensor) -> Tensor:
        return self.inner.decode(latents.repeat_interleave(self.factor, 1))


def build(config: Config, device: str) -> Pool:
    """Builds the wrapped codec and the wrapper."""
    return Pool(build_codec(config.inner, device), config.factor)
