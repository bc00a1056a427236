"""Frame-rate matching by stacking: `factor` neighbouring frames become one, nothing is lost."""

from __future__ import annotations

from arlat_core.config import Config as BaseConfig
from arlat_core.types import Codec, LatentSpec
from pydantic import Field
from torch import Tensor

from arlat_data.codecs import build_codec
from arlat_data.codecs._frames import frame_count, group, wrapped_spec


class Config(BaseConfig):
    """`stack:FACTOR|CODEC`."""

    factor: int = Field(ge=1)
    """Inner frames per frame."""
    inner: str
    """The codec that is wrapped, as text."""


class Stack:
    """Frames t·factor … t·factor + factor − 1 of `inner`, oldest first, as one vector; the tail repeats the last frame."""

    def __init__(self, inner: Codec, factor: int) -> None:
        self.inner = inner
        self.factor = factor
        self._spec = wrapped_spec(inner, "stack", factor, inner.spec.dim * factor)

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(self.inner.frames(samples), self.factor)

    def encode(self, audio: Tensor) -> Tensor:
        z = group(self.inner.encode(audio), self.factor)
        return z.flatten(2)  # [b, t, factor*d]

    def decode(self, latents: Tensor) -> Tensor:
        batch, frames, _ = latents.shape
        return self.inner.decode(latents.reshape(batch, frames * self.factor, self.inner.spec.dim))


def build(config: Config, device: str) -> Stack:
    """Builds the wrapped codec and the wrapper."""
    return Stack(build_codec(config.inner, device), config.factor)
