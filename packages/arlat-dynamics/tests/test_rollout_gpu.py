"""On a CUDA device: fused, captured and eager trainings are the same training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_train import train_rollout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there is no CUDA device (torch.cuda.is_available() is False)"
    ),
]


@pytest.mark.parametrize(
    ("model", "dim", "said"),
    [
        ({"width": 64, "hidden": 256}, 32, "rollout: fused (Triton)"),
        ({"width": 512, "hidden": 512}, 512, "rollout: graph (its stream is 512 wide"),
        ({"width": 64, "hidden": 256, "head": {"name": "gaussian"}}, 32, "rollout: graph (The fused rollout takes"),
        ({"name": "gru", "width": 64}, 32, "rollout: graph (The fused rollout runs the residual MLP"),
    ],
    ids=["fused", "wide", "gaussian", "gru"],
)
def test_the_route_of_the_device_has_the_loss_curve_of_the_loop(
    tmp_path: Path, model: dict[str, Any], dim: int, said: str
) -> None:
    store = LatentStore.open(make("ar1", dim, 24, 60, 12, 0, tmp_path / "ar1", rho=0.9))
    curves = []
    for route in ("auto", "eager"):
        settings = {"model": model, "steps": 8, "updates": 200, "log_every": 1, "evaluate_every": 100, "route": route}
        heard: list[str] = []
        config = RolloutTrainConfig.model_validate(settings | {"validation_rows": 64})
        train_rollout(store, config, tmp_path / route, "cuda", announce=heard.append)
        if route == "auto":
            assert heard[0].startswith(said)
        lines = (tmp_path / route / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert max(abs(one - other) for one, other in zip(*curves, strict=True)) < 1e-4
