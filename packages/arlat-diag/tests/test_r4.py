"""R4 on a small synthetic store, end to end: its figures hold their truth, its notes say the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_diag.diagnostics import p1, r4
from arlat_dynamics.train import TrainConfig

LIGHT = p1.Config(components=1, train=TrainConfig(max_steps=2))


def store_of(folder: Path, frames: int) -> LatentStore:
    make("ar1", dim=4, utterances=80, frames=frames, speakers=40, seed=1, out=folder, rho=0.8, eval_fraction=0.5)
    return LatentStore.open(folder)


def test_a_store_of_ar1_has_a_rollout_that_is_merely_uncertain(tmp_path: Path) -> None:
    config = r4.Config(predictor=LIGHT, draws=4, map_starts=4, sweeps=3)
    result = r4.run(store_of(tmp_path / "store", 60), config, tmp_path)
    verdict, about = result.notes
    assert verdict.startswith("R4: the rollout is merely uncertain.")
    assert about.startswith("R4: 160 starts; 0 held-out utterances are shorter than 8 + 16 frames.")
    assert "on 4 principal axes with 100 % of the variance" in about
    assert result.settings["spectrum_hz"] == [12.5 * i / 16 for i in range(1, 9)]
    known = {key: value for key, value in result.values.items() if value.truth is not None}
    assert len(known) == 32
    wrong = [
        key
        for key, value in known.items()
        if not (value.low or 0) <= (value.truth or 0) <= (value.high or 0)
        and abs((value.value or 0) / (value.truth or 1) - 1) > 0.05
    ]
    assert len(wrong) <= 4, wrong


def test_utterances_that_are_too_short_are_named(tmp_path: Path) -> None:
    result = r4.run(store_of(tmp_path / "store", 23), r4.Config(predictor=LIGHT), tmp_path)
    (value,) = result.values.values()
    assert value.value is None
    assert value.status == "not run: no utterance has 8 + 16 frames"


def test_config_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 4"):
        r4.Config(steps=3)
