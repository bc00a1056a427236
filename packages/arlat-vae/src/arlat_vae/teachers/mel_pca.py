"""Principal components of log-mel frames, each to variance 1, fitted to the training speech: a teacher that needs no weights."""

from __future__ import annotations

import torch
from arlat_core.types import Codec
from arlat_data.codecs import build_codec
from arlat_data.codecs._principal import Moments, principal
from torch import Tensor

from arlat_vae.crops import Clips
from arlat_vae.teacher import TeacherConfig

MOST_CLIPS, MOST_SECONDS = 100, 10  # that it is fitted to


class MelPCA:
    """(log-mel − mean) projected on `directions` [F bands], over their standard deviations."""

    def __init__(self, codec: Codec, mean: Tensor, directions: Tensor) -> None:
        self._codec, self._mean, self._directions = codec, mean, directions
        spec = codec.spec
        self.sample_rate, self.frame_rate, self.dim = spec.sample_rate, spec.frame_rate, len(directions)
        self.first_seconds = 0.5 / spec.frame_rate

    @torch.no_grad()
    def features(self, audio: Tensor) -> Tensor:
        """[b n] -> [b t F]."""
        return (self._codec.encode(audio) - self._mean) @ self._directions.T


def build(config: TeacherConfig, clips: Clips, sample_rate: int, device: str) -> MelPCA:
    """Fits the components to the first 10 s of the first 100 clips."""
    codec = build_codec(f"mel:sample_rate={sample_rate},hop={sample_rate // 100}", device)
    moments = Moments(codec.spec.dim)
    for clip in range(min(MOST_CLIPS, len(clips.length))):
        audio = clips.read(clip, 0, min(int(clips.length[clip]), MOST_SECONDS * sample_rate))
        moments.add(codec.encode(audio[None].to(device))[0].cpu())
    rows, variances, _ = principal(moments.covariance(), config.dim)
    directions = rows / variances.sqrt().clamp(min=1e-6)[:, None]
    return MelPCA(codec, moments.mean().float().to(device), directions.float().to(device))
