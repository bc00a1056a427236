"""P1's baselines on latents whose first frames lie far from all that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from arlat_core.types import Value
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_diag.diagnostics import p1
from arlat_dynamics.train import TrainConfig


def known(value: Value) -> float:
    assert value.value is not None
    return value.value


@pytest.mark.parametrize("size", [0.0, 40.0])
def test_a_start_far_from_the_rest_is_no_information(size: float, tmp_path: Path) -> None:
    store = LatentStore.open(make("white", 8, 80, 80, 40, 1, tmp_path / "store"))
    splits = {name: store.load(name) for name in ("train", "eval")}
    for split in splits.values():  # less than a context: no frame of it is ever predicted
        for start in split.start.tolist():
            split.z[start : start + 3] *= 1 + size
    store.load = splits.__getitem__  # type: ignore[method-assign,assignment]
    config = p1.Config(horizons=(1, 4), lags=(), components=2, train=TrainConfig(max_steps=40))
    values = p1.run(store, config, tmp_path / "run").values
    for step in (1, 4):
        assert known(values[f"p1.h{step}.dnll_b5"]) == pytest.approx(0, abs=0.1)
        assert known(values[f"p1.h{step}.var_dnll_b5"]) == pytest.approx(0, abs=0.1)
