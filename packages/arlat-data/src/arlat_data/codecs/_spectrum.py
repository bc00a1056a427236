"""Short-time spectra and mel bands that the mel codecs share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

FLOOR = 1e-5  # HiFi-GAN's clamp: ln 1e-5 = -11.5 is digital silence


def mel_matrix(bins: int, n_fft: int, sample_rate: int, low_hz: float, high_hz: float) -> Tensor:
    """Slaney mel filters [bins, n_fft/2 + 1], each of unit area in Hz."""
    filters: Tensor = torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, low_hz, high_hz, bins, sample_rate, norm="slaney", mel_scale="slaney"
    )
    return filters.T.contiguous()


def stft(padded: Tensor, n_fft: int, hop: int, window: Tensor) -> Tensor:
    """[b n] -> complex [b f t]; frame t starts at sample t·hop (no centring: the caller pads)."""
    return torch.stft(padded, n_fft, hop, n_fft, window, center=False, return_complex=True)


def istft(spectrum: Tensor, n_fft: int, hop: int, window: Tensor) -> Tensor:
    """Complex [b f t] -> [b (t-1)·hop + n_fft] by windowed overlap-add, the inverse of `stft`.

    torch.istft refuses a window whose envelope vanishes at the ends without centring; here the ends are merely weak.
    """
    frames = torch.fft.irfft(spectrum, n_fft, dim=1) * window[:, None]  # [b, n_fft, t]
    length = (spectrum.shape[-1] - 1) * hop + n_fft
    total = F.fold(frames, (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0]
    square = (window**2)[None, :, None].expand(1, n_fft, spectrum.shape[-1])
    envelope = F.fold(square, (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0]
    return total / envelope.clamp(min=1e-3)


def magnitude_from_mel(mel: Tensor, filters: Tensor, inverse: Tensor, iterations: int = 20) -> Tensor:
    """Mel magnitudes [b bins t] -> non-negative spectrum [b f t].

    Starts from the pseudo-inverse, and goes on by multiplicative updates, which keep the sign and lower
    ‖filters·x − mel‖² at each step.
    """
    x = (inverse @ mel).clamp(min=1e-7)
    top = filters.T @ mel
    gram = filters.T @ filters
    for _ in range(iterations):
        x = x * top / (gram @ x).clamp(min=1e-12)
    return x


def griffin_lim(magnitude: Tensor, n_fft: int, hop: int, window: Tensor, iterations: int, seed: int = 0) -> Tensor:
    """Spectrum [b f t] -> padded audio [b (t-1)·hop + n_fft] by the fast Griffin-Lim algorithm (momentum 0.99).

    The first phase is drawn once per (f, t) and shared by the batch, so an item sounds the same in any batch.
    """
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(magnitude.shape[1:], generator=generator)
    angle = torch.polar(torch.ones_like(phase), phase).to(magnitude.device)
    estimate = magnitude * angle
    previous = torch.zeros_like(estimate)
    for _ in range(iterations):
        consistent = stft(istft(estimate, n_fft, hop, window), n_fft, hop, window)
        ahead = consistent + 0.99 * (consistent - previous)
        previous = consistent
        estimate = magnitude * ahead / ahead.abs().clamp(min=1e-9)
    return istft(estimate, n_fft, hop, window)
