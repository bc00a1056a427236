"""The predictor's view of latents: moments, windows, surprise and its floor, on a process whose law is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from arlat_vae.predictor import Predictor, Standardised, contexts, mean_reversion, standardise, surprise
from torch import Tensor

HALF_LOG = 0.5 * math.log(2 * math.pi)
Process = Callable[..., Tensor]


def ask(predictor: Predictor, seen: Tensor, latents: Standardised) -> float:
    return float(surprise(predictor, seen, latents).mean().detach()) / latents.y.shape[-1]


def test_windows_are_the_frames_before_their_target() -> None:
    y = torch.arange(6.0)[None, :, None]
    assert contexts(y, 2)[0, ..., 0].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_an_autoregression_is_standardised(rho: float, autoregression: Process, stand_still: Predictor) -> None:
    latents = standardise(5 * autoregression(rho) + 1, 2)
    torch.testing.assert_close(latents.y[:, 2:].var((0, 1), correction=0), torch.ones(3), rtol=1e-3, atol=0)
    torch.testing.assert_close(latents.unit, torch.full((3,), math.sqrt(2 - 2 * rho)), rtol=0.06, atol=0)
    assert ask(stand_still, latents.y, latents) == pytest.approx(HALF_LOG + 0.5, abs=0.01)
    floor = HALF_LOG + 0.5 + 0.5 * math.log(1 - (1 - rho) / 2)  # r² = (1 − ρ)/2
    assert float(mean_reversion(latents)) == pytest.approx(floor, abs=0.01)


def test_a_law_must_bring_a_frame_back_from_the_noise(autoregression: Process, stand_still: Predictor) -> None:
    rho, k = 0.8, 0.3
    latents = standardise(autoregression(rho), 2)
    noise = torch.randn(latents.y.shape, generator=torch.Generator().manual_seed(1))
    seen = math.sqrt(1 - k) * latents.y + math.sqrt(k) * noise
    expected = HALF_LOG + 0.5 * (2 - 2 * math.sqrt(1 - k) * rho) / (2 - 2 * rho)
    assert ask(stand_still, seen, latents) == pytest.approx(expected, rel=0.03)


def test_a_dimension_that_hardly_moves_does_not_count(autoregression: Process) -> None:
    latents = standardise(autoregression(0.5) * torch.tensor([1.0, 1.0, 1e-5]), 2)
    assert float(latents.y[..., 2].square().mean()) < 1e-4 < float(latents.y[..., 1].square().mean())


def test_what_is_never_predicted_does_not_make_steps_small(autoregression: Process, stand_still: Predictor) -> None:
    z = autoregression(0.5)
    begun = z.clone()
    begun[:, 0] *= 50  # in the window of the first step alone
    found, expected = (standardise(one, 2) for one in (begun, z))
    torch.testing.assert_close(found.unit, expected.unit)
    torch.testing.assert_close(found.y[:, 1:], expected.y[:, 1:])
    assert ask(stand_still, found.y, found) == pytest.approx(ask(stand_still, expected.y, expected), rel=1e-5)
    assert float(mean_reversion(found)) == pytest.approx(float(mean_reversion(expected)), rel=1e-5)
