"""Framed PCA of the waveform: frames without overlap, projected on their strongest directions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, validate
from arlat_core.types import LatentSpec, fingerprint
from pydantic import Field
from torch import Tensor

from arlat_data.codecs._folder import read_json, read_tensors, require_files, write_fitted
from arlat_data.codecs._frames import frame_count, whole_hop
from arlat_data.codecs._principal import Moments, principal


class Config(BaseConfig):
    """`pca=FOLDER`, a folder that `fit` made."""

    dim: int | None = None
    """Dimension that the folder is expected to have; any by default."""
    folder: Path
    """Holds pca.json and pca.safetensors."""


class About(BaseConfig):
    """What pca.json says."""

    dim: int = Field(gt=0)
    frame_rate: float = Field(gt=0)
    sample_rate: int = Field(gt=0)
    explained: float
    clips: int
    frames: int


class PCA:
    """z_t = V·(x_t − mean) with orthonormal rows V [dim hop]; decoding is the transpose."""

    def __init__(self, about: About, components: Tensor, mean: Tensor, device: str = "cpu") -> None:
        self.about = about
        self.components = components.to(device)
        self.mean = mean.to(device)
        self._hop = whole_hop(about.sample_rate, about.frame_rate, "pca")
        self._spec = LatentSpec(
            codec=f"pca:{about.dim}",
            space="waveform-pca",
            dim=about.dim,
            frame_rate=about.frame_rate,
            sample_rate=about.sample_rate,
            fingerprint=fingerprint(
                {"pca": 1, "sample_rate": about.sample_rate}, {"components": components, "mean": mean}
            ),
            causal=True,
        )

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(samples, self._hop)

    def encode(self, audio: Tensor) -> Tensor:
        frames = self.frames(audio.shape[-1])
        padded = F.pad(audio.to(self.mean), (0, frames * self._hop - audio.shape[-1]))
        return (padded.reshape(len(audio), frames, self._hop) - self.mean) @ self.components.T  # [b, t, dim]

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.to(self.mean) @ self.components + self.mean  # [b, t, hop]
        return frames.reshape(len(latents), -1).clamp(-1.0, 1.0)


def fit(
    audio: Iterable[Tensor],
    dim: int,
    frame_rate: float,
    sample_rate: int,
    seed: int,
    out: Path,
    frames_per_clip: int = 100,
) -> PCA:
    """Fits the directions on clips [n] (at `sample_rate`) and writes the folder `out`.

    `seed` draws where each clip's framing begins and, of longer clips, which frames count, so that a few long clips do
    not decide. Raises UserError when there are fewer frames than `dim`.
    """
    hop = whole_hop(sample_rate, frame_rate, "pca")
    if not 0 < dim <= hop:
        raise UserError(f"A frame of {hop} samples has 1 to {hop} directions, but pca was asked for {dim}.")
    generator = torch.Generator().manual_seed(seed)
    moments = Moments(hop)
    clips = 0
    for clip in audio:
        offset = int(torch.randint(hop, (), generator=generator))
        frames = (len(clip) - offset) // hop
        if frames < 1:
            continue  # shorter than one frame: it has nothing to add, and encodes all the same
        rows = clip[offset : offset + frames * hop].reshape(frames, hop)
        moments.add(rows[torch.randperm(frames, generator=generator)[:frames_per_clip]])
        clips += 1
    if moments.count <= dim:
        raise UserError(
            f"pca needs more than {dim} frames to find {dim} directions, but {clips} clips gave {moments.count}."
        )
    components, _, explained = principal(moments.covariance(), dim)
    about = About(
        dim=dim, frame_rate=frame_rate, sample_rate=sample_rate, explained=explained, clips=clips, frames=moments.count
    )
    codec = PCA(about, components.float(), moments.mean().float())
    write_fitted(out, "pca", {"components": codec.components, "mean": codec.mean}, about.model_dump())
    return codec


def build(config: Config, device: str) -> PCA:
    """Reads the folder that `fit` made."""
    folder = require_files(config.folder, ["pca.json", "pca.safetensors"], "pca")
    about = validate(About, read_json(folder / "pca.json", "pca"), str(folder / "pca.json"))
    if config.dim not in (None, about.dim):
        raise UserError(f"{folder} holds a pca of {about.dim} dimensions, but {config.dim} were asked for.")
    hop = whole_hop(about.sample_rate, about.frame_rate, "pca")
    tensors = read_tensors(folder / "pca.safetensors", {"components": (about.dim, hop), "mean": (hop,)}, "pca")
    return PCA(about, tensors["components"], tensors["mean"], device)
