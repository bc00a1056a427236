"""Horizons: first steps, "> K", the manifold's bar."""

from __future__ import annotations

import pytest
import torch
from arlat_core.types import Count, Value
from arlat_diag.geometry import Frames, Scale
from arlat_diag.horizons import curve_horizon, first_step, fit_manifold, horizon_values


def test_first_step_counts_from_one_and_never_is_k_plus_one() -> None:
    beyond = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0]]).bool()
    assert first_step(beyond).tolist() == [1, 3, 4]


def test_median_quartiles_and_more_than_k() -> None:
    at = torch.tensor([2] * 30 + [5] * 40 + [9] * 30)  # nine of eight steps: never
    beyond = torch.arange(1, 9) == at[:, None]
    unit = torch.arange(100)
    found = horizon_values("h", beyond, unit, unit, seed=0)
    assert found["h"].value == 5
    assert found["h.q25"].value == 2
    assert found["h.q75"].value is None
    assert found["h.q75"].status == "> 8"
    assert found["h"].resampled == "speakers"
    never = horizon_values("h", torch.zeros(50, 16, dtype=torch.bool), unit[:50], unit[:50], seed=0)["h"]
    assert (never.value, never.low, never.high, never.status) == (None, None, None, "> 16")


def curve(*ends: tuple[float, float]) -> list[Value]:
    n = Count(speakers=30, utterances=30, frames=30)
    return [Value(value=(low + high) / 2, low=low, high=high, n=n) for low, high in ends]


def test_curve_horizon_runs_from_the_first_touch_to_the_last_doubt() -> None:
    falling = curve_horizon(curve((0.5, 0.6), (0.2, 0.4), (0.05, 0.2), (-0.1, 0.05)), 0.1, falling=True)
    assert (falling.value, falling.low, falling.high) == (3, 3, 4)
    rising = curve_horizon(curve((-3, -2), (-1, 0.5), (-0.5, 1)), 0.0, falling=False)
    assert (rising.value, rising.low, rising.high) == (2, 2, None)
    assert curve_horizon(curve((-3, -2), (-3, -1)), 0.0, falling=False).status == "> 2"


def test_a_curve_that_blew_up_has_reached_its_horizon() -> None:
    lost = Value(value=None, n=Count(speakers=1, utterances=1, frames=1), status="3 of 9 are not finite")
    assert curve_horizon([*curve((0.5, 0.6)), lost], 0.1, falling=True).value == 2


def test_manifold_bar_is_passed_by_one_percent_of_truth_and_by_strangers() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 6000, 4, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0])
    rows = torch.arange(6000)
    frames = Frames(rows, rows // 100, rows // 200, 99 - rows % 100)
    scale = Scale(torch.zeros(4), z[0].std(0), torch.arange(4))
    known = fit_manifold(z[0], frames, z[1], frames, scale, generator, "cpu")
    assert float(known.beyond(z[2].view(60, 100, 4)).double().mean()) == pytest.approx(0.01, abs=0.008)
    assert known.beyond(z[2] + torch.tensor([6.0, 0, 0, 0])).double().mean() > 0.9
    odd = torch.stack([torch.zeros(4), torch.full((4,), torch.nan), torch.full((4,), torch.inf)])
    assert known.beyond(odd).tolist() == [False, True, True]
