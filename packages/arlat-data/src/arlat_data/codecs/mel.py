"""Log-mel frames of 24 kHz audio, causally framed, with a Griffin-Lim inverse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from arlat_core.config import Config as BaseConfig
from arlat_core.types import LatentSpec, fingerprint
from pydantic import Field
from torch import Tensor

from arlat_data.codecs import codec_text
from arlat_data.codecs._frames import frame_count
from arlat_data.codecs._spectrum import FLOOR, griffin_lim, magnitude_from_mel, mel_matrix, stft


class Config(BaseConfig):
    """`mel` or `mel:bins=128`; 100 frames/s, so that `stack:8|mel` has 12.5."""

    bins: int = Field(default=80, ge=8, le=128)
    """Mel bands from 0 Hz to half the sample rate."""
    sample_rate: int = Field(default=24_000, gt=0)
    """Sample rate in Hz."""
    hop: int = Field(default=240, gt=0)
    """Samples per frame."""
    n_fft: int = Field(default=1024, gt=0)
    """Samples that a frame sees: its own hop and what came before."""
    iterations: int = Field(default=60, ge=1)
    """Griffin-Lim iterations; they change decoding only."""


class Mel:
    """ln max(mel magnitude, 1e-5); the window of frame t ends with the frame's own audio, at sample (t+1)·hop."""

    def __init__(self, config: Config, device: str = "cpu") -> None:
        self.config = config
        self._filters = mel_matrix(config.bins, config.n_fft, config.sample_rate, 0.0, config.sample_rate / 2).to(
            device
        )
        self._inverse = torch.linalg.pinv(self._filters)
        self._window = torch.hann_window(config.n_fft, device=device)
        self._spec = LatentSpec(
            codec=codec_text("mel", config),
            space="log-mel",
            dim=config.bins,
            frame_rate=config.sample_rate / config.hop,
            sample_rate=config.sample_rate,
            fingerprint=fingerprint({"mel": 1, **config.model_dump(exclude={"iterations"})}),
            causal=True,
        )

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(samples, self.config.hop)

    def encode(self, audio: Tensor) -> Tensor:
        frames = self.frames(audio.shape[-1])
        if frames == 0:
            return audio.new_zeros(len(audio), 0, self.config.bins)
        before, hop = self.config.n_fft - self.config.hop, self.config.hop
        padded = F.pad(audio.to(self._window), (before, frames * hop - audio.shape[-1]))
        magnitude = stft(padded, self.config.n_fft, hop, self._window).abs()  # [b, f, t]
        return (self._filters @ magnitude).clamp(min=FLOOR).log().transpose(1, 2).contiguous()  # [b, t, bins]

    def decode(self, latents: Tensor) -> Tensor:
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0)
        # One item at a time: the iterations magnify the rounding that differs between a batch and an item alone.
        z = latents.to(self._window)
        return torch.cat([self._decode_one(z[item : item + 1]) for item in range(len(z))])

    def _decode_one(self, latents: Tensor) -> Tensor:
        """[1 t d] -> [1 t·hop]."""
        config = self.config
        before = config.n_fft - config.hop
        # The newest samples lie under the window's falling end alone; repeated frames after them carry the weight.
        after = frame_count(before, config.hop)
        mel = (
            torch.cat([latents, latents[:, -1:].expand(-1, after, -1)], 1).clamp(max=10.0).exp()
        )  # wild frames stay finite
        magnitude = magnitude_from_mel(mel.transpose(1, 2), self._filters, self._inverse)
        sound = griffin_lim(magnitude, config.n_fft, config.hop, self._window, config.iterations)
        return sound[:, before : before + latents.shape[1] * config.hop].clamp(-1.0, 1.0)


def build(config: Config, device: str) -> Mel:
    """Builds the log-mel codec."""
    return Mel(config, device)
