"""R2 on an AR(1): a model trained on rollouts has the perfect mean rollout, with its floor, its ceiling and its horizons."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from arlat_core.types import Result
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_diag.diagnostics import p1, r2
from arlat_dynamics.headed import HeadConfig
from arlat_dynamics.rollout_config import ModelConfig, RolloutTrainConfig
from arlat_dynamics.train import TrainConfig

RHO = 0.8
QUICK: dict[str, Any] = {
    "starts_per_utterance": 2,
    "draws": 8,
    "manifold_starts": 32,
    "manifold_draws": 2,
    "pairs": 500,
    "predictor": p1.Config(train=TrainConfig(max_steps=40), components=1),
}


def chi(dim: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, LatentStore, Path]:
    folder = tmp_path_factory.mktemp("r2")
    store = LatentStore.open(make("ar1", 4, 96, 60, 48, 0, folder / "store", rho=RHO, eval_fraction=0.5))
    training = RolloutTrainConfig(
        model=ModelConfig(hidden=32, depth=1, head=HeadConfig(name="gaussian")), updates=120, batch=64, lr=2e-3
    )
    config = r2.Config(trained=(6,), training=training, **QUICK)
    return r2.run(store, config, folder / "run"), store, folder / "run"


def test_the_mean_rollout_is_the_perfect_one(found: tuple[Result, LatentStore, Path]) -> None:
    values = found[0].values
    for s in range(1, 7):
        perfect = math.sqrt((1 - RHO) / 2) * RHO ** (s - 1)
        ratio, cosine = values[f"r2.k6.D.magnitude_ratio[{s}]"], values[f"r2.k6.D.cosine[{s}]"]
        assert ratio.ceiling == pytest.approx(perfect, rel=1e-6)
        if s <= 3:  # later steps are too short for the likelihood to care about
            assert ratio.value == pytest.approx(perfect, abs=0.1)
            assert cosine.value == pytest.approx(perfect, abs=0.1)
        error = math.sqrt(1 - RHO ** (2 * s - 2)) * chi(4)
        assert values[f"r2.k6.D.state_error[{s}]"].value == pytest.approx(error, rel=0.06)
        assert cosine.floor is not None
    assert values["r2.k6.D.state_error[1]"].value == 0
    assert "r2.k6.D.cosine[7]" not in values


def test_samples_horizons_and_saturation_are_there(found: tuple[Result, LatentStore, Path]) -> None:
    values = found[0].values
    assert values["r2.k6.S.magnitude_ratio[6]"].value == pytest.approx(1.0, abs=0.15)
    energy = values["r2.k6.S.energy_score[6]"].value
    spread = values["r2.k6.S.spread[6]"].value
    assert energy is not None
    assert spread is not None
    assert 0 < energy < spread
    assert values["r2.k6.horizon.seed"].status == "> 6"
    assert values["r2.k6.saturated_fraction"].value == 0
    assert found[0].settings["head"] == "gaussian"
    assert found[0].notes[0].startswith("R2, K = 6: 96 starts")


def test_a_finished_model_is_read_again(found: tuple[Result, LatentStore, Path]) -> None:
    result, store, run = found
    model = run / "models" / "r2-k6" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    again = r2.run(store, r2.Config.model_validate(again_settings(result)), run)
    assert model.stat().st_mtime_ns == before
    assert again.values["r2.k6.D.nll[6]"] == result.values["r2.k6.D.nll[6]"]


def again_settings(result: Result) -> dict[str, Any]:
    return {key: value for key, value in result.settings.items() if key != "head"}


def test_utterances_that_are_too_short_are_said_so(tmp_path: Path) -> None:
    store = LatentStore.open(make("ar1", 2, 24, 40, 12, 0, tmp_path / "store", rho=RHO))
    result = r2.run(store, r2.Config(trained=(64,), **QUICK), tmp_path / "run")
    value = result.values["r2.k64.D.cosine[1]"]
    assert value.value is None
    assert "8 + 64 frames" in value.status
