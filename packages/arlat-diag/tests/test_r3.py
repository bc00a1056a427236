"""Forecasts without a network, on processes whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from arlat_core.types import Result
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_diag.diagnostics import r3


def measured(out: Path, process: str, dim: int, **params: float) -> tuple[Result, LatentStore]:
    make(process, dim=dim, utterances=120, frames=80, speakers=40, seed=3, out=out, **params)
    store = LatentStore.open(out)
    return r3.run(store, r3.Config(), out.parent), store


def chi(dim: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


def test_persistence_and_climatology_of_ar1_have_their_closed_forms(tmp_path: Path) -> None:
    result, store = measured(tmp_path / "store", "ar1", 16, rho=0.8)
    scale = math.sqrt(torch.as_tensor(store.covariance).diagonal().mean())
    for s in range(1, 17):
        still = result.values[f"r3.persistence.state_error[{s}]"].value
        average = result.values[f"r3.climatology.state_error[{s}]"].value
        assert still == pytest.approx(scale * math.sqrt(2 * (1 - 0.8 ** (s - 1))) * chi(16), rel=0.08, abs=1e-6)
        assert average == pytest.approx(scale * chi(16) if s > 1 else 0.0, rel=0.08)
    known = result.values["r3.persistence.state_error[16]"]
    assert known.low is not None
    assert known.n.speakers == len({store.speaker(item) for item in store.ids("eval")})


def test_the_analog_knows_what_the_past_knows(tmp_path: Path) -> None:
    smooth, _ = measured(tmp_path / "cycle", "cycle", 4)
    far = smooth.values["r3.climatology.state_error[8]"].value
    near = smooth.values["r3.analog.state_error[8]"].value
    assert far is not None
    assert near is not None
    # Two planes whose phases have drifted by N(0, 7·0.2²): no forecast is nearer, on average, than this.
    best = math.sqrt(2 * (1 - math.exp(-7 * 0.2**2)))
    assert 0.93 * best < near < 1.2 * best
    assert near < 0.6 * far
    white, _ = measured(tmp_path / "white", "white", 16)
    lost, random = white.values["r3.analog.cosine[8]"], white.values["r3.analog.state_error[8]"]
    assert lost.low is not None
    assert lost.high is not None
    assert lost.low <= 0.0 <= lost.high or abs(lost.value or 1) < 0.03
    blind = white.values["r3.climatology.state_error[8]"].value or 0
    assert blind < (random.value or 0) < 1.15 * blind  # a mean of ten random frames: √1.1 times as far


def test_the_analog_of_ar1_comes_near_the_perfect_forecast(tmp_path: Path) -> None:
    result, store = measured(tmp_path / "store", "ar1", 16, rho=0.8)
    scale = math.sqrt(torch.as_tensor(store.covariance).diagonal().mean())
    for s in (2, 4, 8):
        perfect = scale * math.sqrt(1 - 0.8 ** (2 * (s - 1))) * chi(16)
        found = result.values[f"r3.analog.state_error[{s}]"].value or 0
        assert 0.93 * perfect < found < 1.15 * perfect


def test_utterances_too_short_for_a_start_are_said(tmp_path: Path) -> None:
    make("white", dim=4, utterances=30, frames=20, speakers=30, seed=0, out=tmp_path / "store")
    result = r3.run(LatentStore.open(tmp_path / "store"), r3.Config(), tmp_path)
    (value,) = result.values.values()
    assert value.value is None
    assert value.status == "not run: no utterance has 8 + 16 frames"
