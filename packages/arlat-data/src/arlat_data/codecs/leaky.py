"""Latents through a leaky integrator, z_t = x_t + a·z_{t−1}: a control, easy to predict and no news.

The map can be undone and adds nothing about speech, yet the information rate grows: the next frame's marginal gets wider while what
cannot be known of it stays. What a representation gains over another counts where it is more than this gives the other.
"""

from __future__ import annotations

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.types import Codec, LatentSpec, fingerprint
from pydantic import Field
from torch import Tensor

from arlat_data.codecs import build_codec


class Config(BaseConfig):
    """`leaky:A|CODEC`."""

    keep: float = Field(gt=-1, lt=1)
    """a, the part of the frame before that is added; below 0 latents alternate."""
    inner: str
    """The codec that is wrapped, as text."""


class Leaky:
    """z_t = x_t + a·z_{t−1} of the frames x of `inner`, z before the first frame being 0."""

    def __init__(self, inner: Codec, keep: float) -> None:
        self.inner, self.keep = inner, keep
        spec = inner.spec
        self._spec = spec.model_copy(
            update={
                "codec": f"leaky:{keep:g}|{spec.codec}",
                "space": f"leaky {spec.space}",
                "fingerprint": fingerprint({"leaky": keep, "inner": spec.fingerprint}),
            }
        )

    @property
    def spec(self) -> LatentSpec:
        """The inner one's, in another space."""
        return self._spec

    def frames(self, samples: int) -> int:
        """Frames of `samples` samples."""
        return self.inner.frames(samples)

    def encode(self, audio: Tensor) -> Tensor:
        """[b n] -> [b t d]."""
        return integrate(self.inner.encode(audio), self.keep)

    def decode(self, latents: Tensor) -> Tensor:
        """[b t d] -> [b n]."""
        before = torch.nn.functional.pad(latents[:, :-1], (0, 0, 1, 0)) if latents.shape[1] else latents
        return self.inner.decode(latents - self.keep * before)


def integrate(x: Tensor, keep: float) -> Tensor:
    """z_t = x_t + keep·z_{t−1} of x [b t d]."""
    z, frames = x.new_zeros(x.shape[0], x.shape[2]), []
    for frame in x.unbind(1):
        z = frame + keep * z
        frames.append(z)
    return torch.stack(frames, 1) if frames else x


def build(config: Config, device: str) -> Leaky:
    """Builds the wrapped codec and the integrator."""
    return Leaky(build_codec(config.inner, device), config.keep)
