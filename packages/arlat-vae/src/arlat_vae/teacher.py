"""Distillation: features of the audio that latents should tell of, from a model that stays as it is.

The loss is 1 − cos(P·μ_t, f_t), mean over frames, with μ the posterior mean, P a learned linear map and f_t the mean of the
teacher's features whose centres lie in latent frame t (the nearest one where none does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, Self

import torch
import torch.nn.functional as F
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_data.audio import resample
from pydantic import Field, model_validator
from torch import Tensor

from arlat_vae.crops import Clips

Name = Literal["wavlm", "mel_pca"]


class Teacher(Protocol):
    """Frozen features of audio at a rate of their own."""

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of the audio that it hears."""
        ...

    @property
    def frame_rate(self) -> float:
        """Frames of features per second."""
        ...

    @property
    def first_seconds(self) -> float:
        """Centre in seconds of what the first frame hears."""
        ...

    @property
    def dim(self) -> int:
        """F."""
        ...

    def features(self, audio: Tensor) -> Tensor:
        """Audio [b n] at `sample_rate` -> [b t F], without gradient, one frame at least."""
        ...


class TeacherConfig(BaseConfig):
    """Which teacher; it is asked where `loss.distill` is above 0."""

    name: Name = "wavlm"
    """wavlm: a WavLM of the transformers library; mel_pca: principal components of log-mel frames of the training speech."""
    folder: str = ""
    """wavlm: a folder with config.json and model.safetensors, or a hub id such as microsoft/wavlm-large."""
    revision: str | None = None
    """wavlm: commit, tag or branch of a hub id; a download needs one."""
    hub: bool = False
    """wavlm: allows a download when the weights are not on this machine."""
    layer: int | None = Field(default=None, ge=0)
    """wavlm: hidden layer, 0 before the transformer; the last by default."""
    dim: int = Field(default=16, gt=0, le=80)
    """mel_pca: components."""

    @model_validator(mode="after")
    def _told(self) -> Self:
        if self.name != "wavlm" and (self.folder or self.hub or self.revision or self.layer is not None):
            raise ValueError(f"teacher {self.name!r} takes no folder, hub, revision or layer")
        return self


def build_teacher(config: TeacherConfig, clips: Clips, sample_rate: int, device: str) -> Teacher:
    """The teacher that `config` names; `clips` are the training speech at `sample_rate`, which it may be fitted to."""
    from arlat_vae.teachers import mel_pca, wavlm

    if config.name == "wavlm" and not config.folder:
        raise UserError(
            "loss.distill is above 0, and no teacher is given. Say teacher.folder=FOLDER of a WavLM, or teacher.name=mel_pca."
        )
    builders: dict[Name, Callable[[TeacherConfig, Clips, int, str], Teacher]] = {
        "wavlm": wavlm.build,
        "mel_pca": mel_pca.build,
    }
    return builders[config.name](config, clips, sample_rate, device)


def alignment(frames: int, rate: float, first: float, wanted: int, wanted_rate: float) -> Tensor:
    """Weights [wanted frames] that take features to latent frames; rows sum to 1.

    Feature i is centred at first + i/rate seconds, latent frame t is [t, t + 1)/wanted_rate.
    """
    centre = first + torch.arange(frames, dtype=torch.float64) / rate
    edge = torch.arange(wanted + 1, dtype=torch.float64)[:, None] / wanted_rate
    inside = (centre >= edge[:-1]) & (centre < edge[1:])
    nearest = F.one_hot((centre - (edge[:-1] + edge[1:]) / 2).abs().argmin(1), frames).bool()
    chosen = torch.where(inside.any(1, keepdim=True), inside, nearest).double()
    return (chosen / chosen.sum(1, keepdim=True)).float()


@torch.no_grad()
def lessons(teacher: Teacher, audio: Tensor, sample_rate: int, frames: int, frame_rate: float) -> Tensor:
    """Audio [b n] -> the teacher's features at the latent frames [b frames F]."""
    features = teacher.features(resample(audio, sample_rate, teacher.sample_rate)).float()
    weights = alignment(features.shape[1], teacher.frame_rate, teacher.first_seconds, frames, frame_rate)
    return weights.to(features) @ features


def distillation_loss(projected: Tensor, features: Tensor) -> Tensor:
    """1 − cosine of [b t F] and [b t F], mean over frames; features of length 0 have cosine 0."""
    return 1 - F.cosine_similarity(projected.float(), features, dim=-1, eps=1e-6).mean()
