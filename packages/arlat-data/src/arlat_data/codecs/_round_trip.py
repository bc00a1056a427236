"""The gate before extraction: does what a codec decodes resemble what it encoded?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from arlat_core.config import UserError
from arlat_core.types import Codec
from torch import Tensor

from arlat_data.codecs._spectrum import FLOOR, mel_matrix, stft

MIN_AGREEMENT = (
    0.4  # speech: the worst real codec tried (64 waveform directions at 12.5 Hz) has 0.59, random weights 0.30
)
MAX_DISTANCE_DB = 25.0  # speech: the same codec 15, random weights 29 and more


@dataclass(frozen=True)
class RoundTrip:
    """How near the decoded sound is, over 40 mel bands in frames of 10 ms.

    Attributes:
        agreement: Correlation of log-mel after removing each band's mean: 1 is the same sound, 0 another one.
        distance_db: Root-mean-square difference over bands, mean over frames.
    """

    agreement: float
    distance_db: float


def round_trip(codec: Codec, audio: Tensor) -> RoundTrip:
    """Encodes and decodes audio [b n] and compares; needs at least 0.1 s of sound that is not silent."""
    decoded = codec.decode(codec.encode(audio)).to(audio)[:, : audio.shape[-1]]
    before, after = (_log_mel(sound, codec.spec.sample_rate) for sound in (audio, decoded))
    distance = (after - before).square().mean(1).sqrt().mean() * 20 / 2.302585
    x, y = (value - value.mean(2, keepdim=True) for value in (before, after))
    agreement = (x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-9)
    return RoundTrip(float(agreement), float(distance))


def require_round_trip(codec: Codec, audio: Tensor) -> RoundTrip:
    """Returns the round trip; raises UserError when it says that encoder and decoder do not fit each other."""
    found = round_trip(codec, audio)
    if not (found.agreement >= MIN_AGREEMENT and found.distance_db <= MAX_DISTANCE_DB):
        raise UserError(
            f"{codec.spec.codec} does not give back what it was given: agreement {found.agreement:.2f} (at least "
            f"{MIN_AGREEMENT}), distance {found.distance_db:.0f} dB (at most {MAX_DISTANCE_DB:.0f}). Its encoder and "
            f"decoder may come from different models, or its weights may be random."
        )
    return found


def _log_mel(audio: Tensor, sample_rate: int) -> Tensor:
    """[b n] -> [b 40 t]."""
    n_fft = 2 ** round(math.log2(0.04 * sample_rate))
    filters = mel_matrix(40, n_fft, sample_rate, 0.0, sample_rate / 2).to(audio)
    window = torch.hann_window(n_fft).to(audio)
    return (filters @ stft(audio, n_fft, sample_rate // 100, window).abs()).clamp(min=FLOOR).log()
