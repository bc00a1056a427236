"""Reconstruction losses on audio [b n]: waveform and multi-resolution STFT; each is 0 on identical audio.

Each is a mean over the batch, so that processes which share a batch have the mean of their losses. The multi-scale mel loss is
`arlat_data.mel_distance.MelDistance`, the measure that evaluation uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from arlat_data.mel_distance import FLOOR, magnitude
from torch import Tensor, nn

QUIET = 1e-4  # root-mean-square magnitude below which the spectral convergence is no longer relative

Loss = Callable[[Tensor, Tensor], Tensor]


def waveform_loss(audio: Tensor, decoded: Tensor) -> Tensor:
    """Mean absolute difference of samples."""
    return (decoded - audio).abs().mean()


class STFTLoss(nn.Module):
    """Mean over clips and resolutions of ‖Y − X‖/‖X‖ and the mean absolute ln(Y/X), X and Y a clip's magnitudes (arXiv:1910.11480)."""

    def __init__(self, n_ffts: Sequence[int] = (2048, 1024, 512, 256, 128)) -> None:
        super().__init__()
        self.n_ffts = tuple(n_ffts)

    def forward(self, audio: Tensor, decoded: Tensor) -> Tensor:
        """[b n], [b n] -> scalar."""
        total = audio.new_zeros(())
        for n_fft in self.n_ffts:
            x, y = magnitude(audio, n_fft), magnitude(decoded, n_fft)
            distance = ((y - x).square().mean((1, 2)) + FLOOR**2).sqrt() - FLOOR
            size = (x.square().mean((1, 2)) + QUIET**2).sqrt()
            total = total + (distance / size).mean() + (y.log() - x.log()).abs().mean()
        return total / len(self.n_ffts)
