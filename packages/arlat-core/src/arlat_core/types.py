"""The nouns that cross package borders: what a latent is, what a codec does, what a diagnostic returns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from arlat_core.config import Config

SpecError = ValueError


class LatentSpec(Config):
    """What a latent sequence is, so that every artefact can refuse a partner that does not fit.

    Attributes:
        codec: Name of the codec, wrappers outermost first and joined by ``|`` (``stack|mel``).
        space: The space of the vectors (``log-mel``, ``pre-quantiser``, ``pca`` …).
        dim: Dimension D of one frame.
        frame_rate: Frames per second, in Hz.
        sample_rate: Sample rate of the codec's audio, in Hz; 0 for a synthetic process.
        fingerprint: Hash of weights and options (`fingerprint`).
        causal: Whether frame t depends only on audio up to the end of frame t.
    """

    codec: str
    space: str
    dim: int = Field(gt=0)
    frame_rate: float = Field(gt=0)
    sample_rate: int = Field(ge=0)
    fingerprint: str
    causal: bool = False

    def require(self, other: LatentSpec, what: str) -> None:
        """Raises ValueError that names every difference when `other` is not the same latent space."""
        mine, theirs = self.model_dump(), other.model_dump()
        wrong = [f"{key}: {mine[key]!r} against {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]
        if wrong:
            raise ValueError(
                f"{what} was made for other latents: {'; '.join(wrong)}. Use the store that it was made from, or make it anew."
            )


def fingerprint(
    options: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, files: Mapping[str, bytes] | None = None
) -> str:
    """Hashes options, weights and files to 16 hexadecimal digits, the same on every machine."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for name in sorted(tensors or {}):
        value = (tensors or {})[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes() if value.dim() else str(value.item()).encode())
    for name in sorted(files or {}):
        digest.update(name.encode() + hashlib.sha256((files or {})[name]).digest())
    return digest.hexdigest()[:16]


@runtime_checkable
class Codec(Protocol):
    """Audio to continuous latents and back. Audio is mono float32 [b n] in [-1, 1] at `spec.sample_rate`."""

    @property
    def spec(self) -> LatentSpec: ...

    def frames(self, samples: int) -> int:
        """Number of latent frames of a clip of `samples` samples (0 only for 0 samples)."""
        ...

    def encode(self, audio: Tensor) -> Tensor:
        """[b n] -> [b t d] float32, deterministic; a batch item's frames do not depend on the others."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[b t d] -> [b n] with n = t * sample_rate / frame_rate (rounded)."""
        ...


class Corrector(Protocol):
    """Moves rollout states [b d] back towards the data; `context` is the window [b w d] before them."""

    def __call__(self, x: Tensor, context: Tensor, generator: torch.Generator | None) -> Tensor: ...


class Count(Config):
    """How many speakers, utterances and frames stand behind a figure."""

    speakers: int = Field(ge=0)
    utterances: int = Field(ge=0)
    frames: int = Field(ge=0)


class Value(Config):
    """One figure with its 95 % interval and its count.

    `value` is None where the figure could not be had, and `status` then says why ("ok" otherwise).
    `floor` and `ceiling` are what knowing nothing and what a perfect model would score, where they are known;
    `truth` is the closed-form answer of a synthetic store.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: Count
    unit: str = ""
    resampled: Literal["speakers", "utterances", "none"] = "speakers"
    floor: float | None = None
    ceiling: float | None = None
    truth: float | None = None
    median: float | None = None
    trimmed_mean: float | None = None
    status: str = "ok"


class WorstFrame(Config):
    """One of the frames that a figure is worst on."""

    key: str
    utterance: str
    frame: int
    value: float


class Result(Config):
    """What a diagnostic returns: figures by key (SPEC's names, `p1.h1.dnll_b0`, `r1.D.cosine[16]`), and notes in words."""

    values: dict[str, Value] = Field(default_factory=dict)
    worst: list[WorstFrame] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
