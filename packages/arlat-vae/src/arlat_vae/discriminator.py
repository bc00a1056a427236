"""The multi-scale STFT discriminator with its hinge and feature-matching losses (EnCodec, arXiv:2210.13438)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

TIME, FREQUENCY = 3, 9  # kernel of the inner layers
DILATIONS = (1, 2, 4)  # over time, of the layers that halve the frequencies


class Config(BaseConfig):
    """Shape of a discriminator."""

    n_ffts: tuple[int, ...] = Field(default=(2048, 1024, 512, 256, 128), min_length=1)
    """Samples of a window at each scale; hops are a quarter of it."""
    channels: int = Field(default=32, gt=0)
    """Channels of every layer."""


class Judgement(NamedTuple):
    """What one scale says: logits [b 1 t f], higher for real audio, and the layers' features [b c t f]."""

    logits: Tensor
    features: list[Tensor]


class ScaleDiscriminator(nn.Module):
    """2-D convolutions on the complex STFT of one window size, real and imaginary part as channels."""

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        wide = (TIME, FREQUENCY)
        layers = [nn.Conv2d(2, channels, wide, padding=(TIME // 2, FREQUENCY // 2))]
        for dilation in DILATIONS:
            padding = (dilation * (TIME // 2), FREQUENCY // 2)
            layers.append(nn.Conv2d(channels, channels, wide, (1, 2), padding, (dilation, 1)))
        layers.append(nn.Conv2d(channels, channels, TIME, padding=TIME // 2))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.judge = weight_norm(nn.Conv2d(channels, 1, TIME, padding=TIME // 2))

    def forward(self, audio: Tensor) -> Judgement:
        """Audio [b n]."""
        window = torch.hann_window(self.n_fft, device=audio.device)
        hop = self.n_fft // 4
        x = torch.stft(
            audio.float(), self.n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True
        )
        x = torch.view_as_real(x / window.square().sum().sqrt())  # [b, f, t, 2], as loud as the audio
        x = x.permute(0, 3, 2, 1)  # [b, 2, t, f]
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return Judgement(self.judge(x), features)


class Discriminator(nn.Module):
    """One judgement per scale."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleDiscriminator(n_fft, config.channels) for n_fft in config.n_ffts)

    def forward(self, audio: Tensor) -> list[Judgement]:
        """Audio [b n]."""
        return [scale(audio) for scale in self.scales]


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Mean over scales of mean max(0, 1 − D(real)) + mean max(0, 1 + D(fake))."""
    losses = [F.relu(1 - r.logits).mean() + F.relu(1 + f.logits).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def adversarial_loss(fake: Sequence[Judgement]) -> Tensor:
    """Mean over scales of mean max(0, 1 − D(fake))."""
    return torch.stack([F.relu(1 - f.logits).mean() for f in fake]).mean()


def feature_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Mean over clips, scales and layers of a clip's L1 distance of features over the L1 norm of the real ones, which get no gradient."""
    losses = [
        ((f - r.detach()).abs().flatten(1).mean(1) / (r.detach().abs().flatten(1).mean(1) + 1e-6)).mean()
        for one, other in zip(real, fake, strict=True)
        for r, f in zip(one.features, other.features, strict=True)
    ]
    return torch.stack(losses).mean()
