"""Frame-rate matching by mean pooling, decoded by repetition: detail within a group is lost."""

from __future__ import annotations

from arlat_core.config import Config as BaseConfig
from arlat_core.types import Codec, LatentSpec
from pydantic import Field
from torch import Tensor

from arlat_data.codecs import build_codec
from arlat_data.codecs._frames import frame_count, group, wrapped_spec


class Config(BaseConfig):
    """`pool:FACTOR|CODEC`."""

    factor: int = Field(ge=1)
    """Inner frames per frame."""
    inner: str
    """The codec that is wrapped, as text."""


class Pool:
    """Mean of `factor` neighbouring frames of `inner`; the tail repeats the last frame."""

    def __init__(self, inner: Codec, factor: int) -> None:
        self.inner = inner
        self.factor = factor
        self._spec = wrapped_spec(inner, "pool", factor, inner.spec.dim)

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(self.inner.frames(samples), self.factor)

    def encode(self, audio: Tensor) -> Tensor:
        return group(self.inner.encode(audio), self.factor).mean(2)

    def decode(self, latents: Tensor) -> Tensor:
        return self.inner.decode(latents.repeat_interleave(self.factor, 1))


def build(config: Config, device: str) -> Pool:
    """Builds the wrapped codec and the wrapper."""
    return Pool(build_codec(config.inner, device), config.factor)
