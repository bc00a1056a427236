"""How alike two sounds are, and how good one sounds: each score has a value, or a status that says why it has none.

| metric | what | better |
| --- | --- | --- |
| pesq_wb | PESQ, wide band (ITU-T P.862.2), MOS-LQO from 1.04 to 4.64; the `pesq` package | higher |
| stoi | short-time objective intelligibility (Taal et al. 2011); `pystoi`, which goes to 10 kHz and leaves silent frames out | higher |
| estoi | the same, extended (Jensen and Taal 2016) | higher |
| si_sdr | 10 log10(‖αs‖² / ‖αs − ŝ‖²), α = ⟨ŝ, s⟩ / ‖s‖², both with their means removed (Le Roux et al. 2019), in dB | higher |
| mel_distance | `arlat_data.mel_distance.MelDistance` at 16 kHz | lower |
| mos | a predicted mean opinion score of the decoded sound alone, 1 to 5; the `distillmos` package | higher |

Sounds are mono [n] float32 at 16 kHz and of equal length. Nothing shifts them in time or changes their level, but PESQ,
which does both itself.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from arlat_data.mel_distance import MelDistance
from torch import Tensor

RATE: Final = 16_000
SHORTEST_SECONDS: Final = 0.5
SILENCE_DB: Final = -80.0
DIGITS: Final = 6  # pystoi adds unseeded noise of 2e-16 to what it normalises

Metric = Callable[[Tensor, Tensor], float]


class UnscoredError(Exception):
    """There is no score; the message is the status."""


@dataclass(frozen=True)
class Score:
    """A value, or None and the reason: silent, too short, non-finite, failed: WHY, not run: WHAT IS MISSING."""

    value: float | None
    status: str = "ok"


def level_db(sound: Tensor) -> float:
    """Power about the mean in dB relative to full scale."""
    power = float((sound.double() - sound.double().mean()).square().mean())
    return 10 * math.log10(max(power, 1e-30))


def guard(original: Tensor, decoded: Tensor) -> str:
    """ "ok", or why no metric can be taken of a pair; raises ValueError where the lengths differ."""
    if original.shape != decoded.shape or original.dim() != 1:
        raise ValueError(f"Sounds [n] of equal length were expected: {tuple(original.shape)}, {tuple(decoded.shape)}.")
    for sound, which in ((original, "original"), (decoded, "decoded")):
        if not bool(torch.isfinite(sound).all()):
            return f"non-finite: {which}"
    if len(original) < SHORTEST_SECONDS * RATE:
        return "too short"
    for sound, which in ((original, "original"), (decoded, "decoded")):
        if level_db(sound) < SILENCE_DB:
            return f"silent: {which}"
    return "ok"


def score(metric: Metric, original: Tensor, decoded: Tensor) -> Score:
    """The metric of a pair [n], [n], rounded to 1e-6, or why there is none."""
    status = guard(original, decoded)
    if status != "ok":
        return Score(None, status)
    try:
        value = metric(original, decoded)
    except UnscoredError as reason:
        return Score(None, str(reason))
    return Score(round(value, DIGITS)) if math.isfinite(value) else Score(None, "non-finite")


def pesq_wb(original: Tensor, decoded: Tensor) -> float:
    """PESQ-WB."""
    try:
        from pesq import BufferTooShortError, PesqError, pesq
    except ImportError as error:
        raise UnscoredError("not run: install arlat-diag[perceptual]") from error
    try:
        return float(pesq(RATE, original.numpy(), decoded.numpy(), "wb"))
    except BufferTooShortError as error:
        raise UnscoredError("too short") from error
    except PesqError as error:
        raise UnscoredError(f"failed: PESQ: {words(error)}") from error


def words(error: Exception) -> str:
    """An error's text; PESQ gives bytes."""
    first = error.args[0] if error.args else type(error).__name__
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)


def intelligibility(original: Tensor, decoded: Tensor, extended: bool) -> float:
    """STOI or eSTOI."""
    try:
        from pystoi import stoi
    except ImportError as error:
        raise UnscoredError("not run: install arlat-diag[perceptual]") from error
    with warnings.catch_warnings():  # it would give 1e-5 with a warning
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(stoi(original.double().numpy(), decoded.double().numpy(), RATE, extended=extended))
        except RuntimeWarning as error:
            raise UnscoredError("too short: less than 0.4 s of speech") from error


def stoi(original: Tensor, decoded: Tensor) -> float:
    """STOI."""
    return intelligibility(original, decoded, extended=False)


def estoi(original: Tensor, decoded: Tensor) -> float:
    """eSTOI."""
    return intelligibility(original, decoded, extended=True)


def si_sdr(original: Tensor, decoded: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB; no score where one is a multiple of the other, or orthogonal to it."""
    s, guess = (sound.double() - sound.double().mean() for sound in (original, decoded))
    target = (guess @ s) / (s @ s) * s
    signal, rest = float(target @ target), float((target - guess) @ (target - guess))
    if rest <= 1e-20 * signal:
        raise UnscoredError("infinite: the decoded sound is the original")
    if signal <= 0:
        raise UnscoredError("infinite: the decoded sound is orthogonal to the original")
    return 10 * math.log10(signal / rest)


@cache
def mel_distance_at_rate() -> MelDistance:
    """The distance, with its filters."""
    return MelDistance(RATE)


def mel_distance(original: Tensor, decoded: Tensor) -> float:
    """Multi-scale log-mel distance."""
    return float(mel_distance_at_rate()(original[None], decoded[None]))


@cache
def mos_model() -> Any:
    """Distill-MOS with the weights of its package, on the CPU."""
    try:
        from distillmos import ConvTransformerSQAModel
    except ImportError as error:
        raise UnscoredError("not run: install arlat-diag[mos]") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
        model = ConvTransformerSQAModel()
    return model.eval()


def mos(original: Tensor, decoded: Tensor) -> float:
    """Predicted mean opinion score of the decoded sound; the original is not looked at."""
    model = mos_model()
    with torch.inference_mode():
        return float(model(decoded[None]))


METRICS: Final[Mapping[str, Metric]] = {
    "pesq_wb": pesq_wb,
    "stoi": stoi,
    "estoi": estoi,
    "si_sdr": si_sdr,
    "mel_distance": mel_distance,
    "mos": mos,
}
UNITS: Final[Mapping[str, str]] = {"pesq_wb": "MOS-LQO", "si_sdr": "dB", "mos": "MOS"}
BEST: Final[Mapping[str, Any]] = {"mel_distance": min}
"""What picks the better of several scores, where it is not the larger one."""
