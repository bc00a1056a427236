"""Arithmetic between samples and frames that codecs share, and what the wrappers to a lower frame rate have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from arlat_core.config import Config, UserError
from arlat_core.types import Codec, LatentSpec, fingerprint
from pydantic import Field
from torch import Tensor


def whole_hop(sample_rate: int, frame_rate: float, what: str) -> int:
    """Samples per frame; raises UserError when that is not whole."""
    hop = sample_rate / frame_rate
    if abs(hop - round(hop)) > 1e-9 or hop < 1:
        raise UserError(
            f"{what}: {sample_rate} Hz audio at {frame_rate:g} frames/s is {hop:g} samples a frame, which is not whole. "
            f"Choose a frame rate that divides {sample_rate}."
        )
    return round(hop)


def frame_count(samples: int, hop: int) -> int:
    """Frames of `hop` samples that cover `samples` samples: the last one may be partly padding."""
    return -(-samples // hop)


def group(z: Tensor, factor: int) -> Tensor:
    """[b t d] -> [b ceil(t/factor) factor d], the tail filled by repeating the last frame."""
    batch, frames, dim = z.shape
    missing = -frames % factor
    if missing:
        z = torch.cat([z, z[:, -1:].expand(batch, missing, dim)], 1)
    return z.reshape(batch, (frames + missing) // factor, factor, dim)


class GroupConfig(Config):
    """`NAME:FACTOR|CODEC`."""

    factor: int = Field(ge=1)
    """Inner frames per frame."""
    inner: str
    """The codec that is wrapped, as text."""


class Grouped(ABC):
    """A codec whose every frame stands for `factor` frames of `inner`; the tail repeats the last frame."""

    name: ClassVar[str]

    def __init__(self, inner: Codec, factor: int) -> None:
        self.inner = inner
        self.factor = factor
        spec = inner.spec
        self._spec = spec.model_copy(
            update={
                "codec": f"{self.name}:{factor}|{spec.codec}",
                "dim": self.dim,
                "frame_rate": spec.frame_rate / factor,
                "fingerprint": fingerprint({self.name: factor, "inner": spec.fingerprint}),
            }
        )

    @property
    def spec(self) -> LatentSpec:
        """The inner one's, at 1/factor of its frame rate."""
        return self._spec

    @property
    def dim(self) -> int:
        """D: the inner codec's unless a wrapper says otherwise."""
        return self.inner.spec.dim

    def frames(self, samples: int) -> int:
        """Frames of `samples` samples."""
        return frame_count(self.inner.frames(samples), self.factor)

    def encode(self, audio: Tensor) -> Tensor:
        """[b n] -> [b t d]."""
        return self.join(group(self.inner.encode(audio), self.factor))

    @abstractmethod
    def join(self, frames: Tensor) -> Tensor:
        """Groups of inner frames [b t factor d] -> [b t D]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """[b t D] -> [b n]."""
