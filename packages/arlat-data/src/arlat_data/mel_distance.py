"""The multi-scale log-mel distance between two sounds [b n], for training and for evaluation alike; 0 on identical sounds.

Magnitudes are ``|X|/Σw``, so that a full-scale sine has 0.5 at every resolution, and √(·² + FLOOR²) keeps them, their
logarithms and all gradients finite on digital silence: what lies under −100 dB counts as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchaudio
from torch import Tensor, nn

FLOOR = 1e-5


def magnitude(audio: Tensor, n_fft: int) -> Tensor:
    """[b n] -> [b n_fft/2+1 t] at a hop of n_fft/4, in float32; zeros stand before and after the clip."""
    window = torch.hann_window(n_fft, device=audio.device)
    x = torch.stft(
        audio.float(), n_fft, n_fft // 4, window=window, center=True, pad_mode="constant", return_complex=True
    )
    x = torch.view_as_real(x / window.sum())
    return (x.square().sum(-1) + FLOOR**2).sqrt()


class MelDistance(nn.Module):
    """Mean over scales of the mean absolute difference of ln mel; a scale is (samples of a window, mel bands)."""

    def __init__(
        self,
        sample_rate: int,
        scales: Sequence[tuple[int, int]] = ((64, 5), (128, 10), (256, 20), (512, 40), (1024, 80), (2048, 160)),
    ) -> None:
        super().__init__()
        self.n_ffts = tuple(n_fft for n_fft, _ in scales)
        for n_fft, bands in scales:
            filters = torchaudio.functional.melscale_fbanks(
                n_fft // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate, norm=None, mel_scale="slaney"
            )
            if not bool((filters.sum(0) > 0).all()):
                raise ValueError(f"{bands} mel bands are too many for windows of {n_fft} samples at {sample_rate} Hz.")
            self.register_buffer(f"filters_{n_fft}", filters.T.contiguous(), persistent=False)

    def log_mel(self, audio: Tensor, n_fft: int) -> Tensor:
        """[b n] -> [b bands t]."""
        return (self.get_buffer(f"filters_{n_fft}") @ magnitude(audio, n_fft) + FLOOR).log()

    def forward(self, audio: Tensor, decoded: Tensor) -> Tensor:
        """[b n], [b n] -> scalar."""
        distances = [(self.log_mel(decoded, n_fft) - self.log_mel(audio, n_fft)).abs().mean() for n_fft in self.n_ffts]
        return torch.stack(distances).mean()
