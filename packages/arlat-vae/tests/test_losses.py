"""Losses: zero on identical audio, growing with noise, finite on silence and on clipping."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_core.testing.codec import example_audio
from arlat_data.mel_distance import FLOOR, MelDistance, magnitude
from arlat_vae.losses import Loss, STFTLoss, waveform_loss
from torch import Tensor

LOSSES: dict[str, Loss] = {"waveform": waveform_loss, "stft": STFTLoss(), "mel": MelDistance(24_000)}


def noise(audio: Tensor) -> Tensor:
    return torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def audio() -> Tensor:
    return example_audio(2, 12_000, 24_000)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_on_identical_audio_and_growing_with_noise(name: str, audio: Tensor) -> None:
    loss = LOSSES[name]
    values = [float(loss(audio, audio + level * noise(audio))) for level in (0.0, 1e-3, 1e-2, 1e-1)]
    assert values[0] == pytest.approx(0.0, abs=1e-7)
    assert values[1] > 1e-4
    assert values == sorted(values)
    assert values[3] > 1.5 * values[2]


def silent(audio: Tensor) -> Tensor:
    return torch.zeros_like(audio)


def clipped(audio: Tensor) -> Tensor:
    return (50 * audio).clamp(-1, 1)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("target", "guess"),
    [(silent, silent), (silent, clipped), (clipped, silent), (clipped, clipped), (torch.ones_like, silent)],
)
def test_gradients_are_finite_on_silence_and_on_clipping(name: str, target, guess, audio: Tensor) -> None:  # type: ignore[no-untyped-def]
    decoded = guess(audio).clone().requires_grad_()
    loss = LOSSES[name](target(audio), decoded)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(decoded.grad).all()  # type: ignore[arg-type]
    assert float(loss.detach()) < 1e3


@pytest.mark.parametrize("name", LOSSES)
def test_near_silence_the_gradient_pulls_down_and_stays_bounded(name: str, audio: Tensor) -> None:
    decoded = (1e-6 * noise(audio)).requires_grad_()
    LOSSES[name](torch.zeros_like(audio), decoded).backward()
    assert float((decoded.grad * decoded.detach()).sum()) > 0  # type: ignore[operator]
    assert float(decoded.grad.abs().max()) < 10.0  # type: ignore[union-attr]


@pytest.mark.parametrize("n_fft", [128, 1024])
def test_magnitude_of_a_full_scale_sine_is_a_half(n_fft: int) -> None:
    cycle = 2 * math.pi * torch.arange(8 * n_fft) / n_fft
    x = magnitude((10 * cycle).sin()[None], n_fft)
    assert float(x[0, 10, 8:-8].mean()) == pytest.approx(0.5, rel=1e-4)
    assert float(magnitude(torch.zeros(1, 4 * n_fft), n_fft).max()) == pytest.approx(FLOOR)


def test_half_the_level_is_ln_two() -> None:
    """Far above the floor, halving shifts every log magnitude by ln 2 and leaves half the spectrum."""
    loud = 0.5 * noise(torch.zeros(1, 12_000))
    assert float(LOSSES["mel"](loud, loud / 2)) == pytest.approx(math.log(2), rel=0.01)
    assert float(LOSSES["stft"](loud, loud / 2)) == pytest.approx(math.log(2) + 0.5, rel=0.02)
    assert float(LOSSES["waveform"](loud, loud / 2)) == pytest.approx(float(loud.abs().mean()) / 2)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_too_many_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="64 mel bands are too many for windows of 64 samples at 24000 Hz"):
        MelDistance(24_000, ((64, 64),))
