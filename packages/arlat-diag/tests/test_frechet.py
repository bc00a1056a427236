"""Fréchet distances agree with their closed forms, halves are of different speakers, the jackknife knows a mean's error."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_diag.ensemble import energy_score, power, scatter, spread_and_skill
from arlat_diag.frechet import equal_halves, frechet, jackknife, principal_axes, speaker_halves


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_has_the_closed_form_of_linear_maps() -> None:
    x = normal(500, 3, 4)
    assert float(frechet(x, x).abs().max()) < 1e-9
    torch.testing.assert_close(frechet(x, x + 2.0), torch.full((3,), 16.0, dtype=torch.float64))
    centred = x - x.mean(0)
    trace = centred.square().sum((0, 2)) / 499
    torch.testing.assert_close(frechet(centred, 3 * centred), 4 * trace)  # (3 − 1)² tr C
    # commuting covariances: Σ (a_i − b_i)² of the standard deviations; singular ones too
    white = torch.linalg.qr(centred[:, 0]).Q * math.sqrt(499)
    a, b = torch.tensor([3.0, 2, 1, 0]).double(), torch.tensor([1.0, 1, 1, 1]).double()
    found = frechet((white * a)[:, None], (white * b)[:, None])
    assert float(found) == pytest.approx(float((a - b).square().sum()), rel=1e-6)


def test_frechet_of_one_law_is_biased_by_dimension_over_count() -> None:
    small, large = (float(frechet(normal(n, 1, 8, seed=1), normal(n, 1, 8, seed=2))) for n in (64, 6400))
    assert small > 20 * large
    assert large < 0.05


def test_halves_share_no_speaker_and_are_of_one_size() -> None:
    unit = torch.arange(23).repeat_interleave(torch.arange(23) % 5 + 1)
    for seed in range(5):
        first = speaker_halves(unit, torch.Generator().manual_seed(seed))
        assert not set(unit[first].tolist()) & set(unit[~first].tolist())
        assert abs(int(first.sum()) * 2 - len(unit)) <= 5
        halves = equal_halves(torch.ones(len(unit), dtype=torch.bool), first, 4)
        assert halves is not None
        assert len(halves[0]) == len(halves[1])
        assert bool(first[halves[0]].all())
        assert not bool(first[halves[1]].any())
    assert equal_halves(torch.ones(len(unit), dtype=torch.bool), first, 1000) is None


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = normal(200)
    value, low, high = jackknife(lambda rows: x[rows].mean()[None], torch.arange(200), groups=200)
    assert float(value) == pytest.approx(float(x.mean()))
    assert float(high - low) / 2 == pytest.approx(1.972 * float(x.std()) / math.sqrt(200), rel=1e-3)
    few = jackknife(lambda rows: x[rows].mean()[None], torch.arange(200) % 2)
    assert bool(few[1].isnan().all())


def test_principal_axes_hold_the_variance_that_they_should() -> None:
    z = normal(4000, 3) * torch.tensor([1.0, 3.0, 2.0])
    axes, share = principal_axes(z.float(), 2)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(2, dtype=torch.float64))
    assert abs(float(axes[1, 0])) > 0.99
    assert share == pytest.approx(13 / 14, abs=0.01)


@pytest.mark.parametrize("draws", [2, 5, 30])
def test_a_perfect_ensemble_has_ratio_one_and_a_fair_score_at_any_size(draws: int) -> None:
    x = normal(4000, draws + 1, 6)
    ensemble, truth = x[:, 1:], x[:, 0]
    spread, miss = spread_and_skill(ensemble, truth)
    assert float(spread.mean() / miss.mean()) == pytest.approx(1, abs=0.03)
    chi = math.sqrt(2) * math.exp(math.lgamma(3.5) - math.lgamma(3))
    assert float(energy_score(ensemble, truth).mean()) == pytest.approx(chi / math.sqrt(2), rel=0.02)
    assert float(scatter(ensemble).mean()) == pytest.approx(chi / math.sqrt(2), rel=0.02)
    assert float(energy_score(ensemble + 1, truth).mean()) > 1.05 * chi / math.sqrt(2)
    assert float(energy_score(3 * ensemble, truth).mean()) > 1.05 * chi / math.sqrt(2)


def test_power_is_flat_for_white_noise_and_peaks_at_a_sinusoid() -> None:
    flat = power(normal(4000, 16, 4)).mean(0)
    torch.testing.assert_close(flat[:-1], torch.ones(7, dtype=torch.float64), rtol=0.03, atol=0)
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16, dtype=torch.float64) / 16)[:, None]
    line = power(wave)
    assert int(line.argmax()) == 2  # the third frequency, 3 cycles in 16 frames
    assert float(line[5:].max()) < 0.02 * float(line.max())
