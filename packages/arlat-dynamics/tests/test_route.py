"""Which way rollouts of a training are computed: the rule in words, and that every way is the same training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from arlat_core.config import UserError
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_dynamics.headed import HeadConfig
from arlat_dynamics.models.mlp import Config, ResidualMLP
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_train import train_rollout
from arlat_dynamics.route import Asked, Route, Way, capture_obstacle, choose, training_route

UNFUSED, OFF_CHIP, NO_GRAPH = "The head is another.", "The stream is 512 wide.", "There is no graph here."


@pytest.mark.parametrize(
    ("asked", "unfused", "runs_by", "uncaptured", "expected"),
    [
        ("auto", None, "triton", None, Route("fused", "Triton")),
        ("auto", None, "triton", NO_GRAPH, Route("fused", "Triton")),
        ("auto", None, "reference", None, Route("graph", OFF_CHIP)),
        ("auto", None, "reference", NO_GRAPH, Route("fused", f"plain PyTorch: {OFF_CHIP}")),
        ("auto", UNFUSED, "", None, Route("graph", UNFUSED)),
        ("auto", UNFUSED, "", NO_GRAPH, Route("eager", UNFUSED)),
        ("fused", None, "reference", None, Route("fused", f"plain PyTorch: {OFF_CHIP}")),
        ("graph", None, "triton", None, Route("graph", "as asked for")),
        ("graph", UNFUSED, "", NO_GRAPH, Route("eager", NO_GRAPH)),
        ("eager", None, "triton", None, Route("eager", "as asked for")),
    ],
)
def test_the_rule(asked: Asked, unfused: str | None, runs_by: str, uncaptured: str | None, expected: Route) -> None:
    assert choose(asked, unfused, runs_by, OFF_CHIP if runs_by == "reference" else "", uncaptured) == expected


def test_what_is_asked_for_and_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match=r'"fused" cannot be taken: The head is another. Use route = "auto"'):
        choose("fused", UNFUSED, "", "", None)


def test_obstacles_to_a_graph() -> None:
    assert capture_obstacle("cuda:1", sample=False, world=1) is None
    assert "no CUDA graph on cpu" in str(capture_obstacle("cpu", sample=False, world=1))
    assert "draws" in str(capture_obstacle("cuda", sample=True, world=1))
    assert "here are 2" in str(capture_obstacle("cuda", sample=False, world=2))


def test_models_on_a_cpu() -> None:
    fits, other = ResidualMLP(Config(dim=6)), ResidualMLP(Config(dim=6, head=HeadConfig(name="gaussian")))
    said = "rollout: fused (plain PyTorch: the model is on a CPU.)"
    assert str(training_route("auto", fits, False, "float32", "cpu")) == said
    said = "rollout: eager (The fused rollout takes steps of a head vmf; the head of this model is gaussian.)"
    assert str(training_route("auto", other, False, "float32", "cpu")) == said
    said = "Steps that the fused rollout draws have no gradient; this rollout is sampled where gradients are needed."
    for device in ("cpu", "cuda"):
        assert training_route("auto", fits, True, "float32", device) == Route("eager", said)


def quick(route: Way, **more: object) -> RolloutTrainConfig:
    model = {"hidden": 16, "depth": 1, "width": 8}
    base = {"model": model, "context": 3, "steps": 3, "updates": 200, "batch": 8, "evaluate_every": 50, "log_every": 1}
    rest = {"true_frames": (0.5, 0.0), "state_weight": 0.05, "noise": {"level": 0.1}, "validation_rows": 32}
    return RolloutTrainConfig.model_validate(base | rest | more | {"route": route})


def curve(out: Path) -> list[tuple[float, float, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["state"], line["teacher"]) for line in lines]


def test_a_fused_training_has_the_loss_curve_of_an_eager_one(tmp_path: Path) -> None:
    store = LatentStore.open(make("ar1", 3, 24, 60, 12, 0, tmp_path / "ar1", rho=0.9))
    said: list[str] = []
    for route in ("fused", "eager"):
        train_rollout(store, quick(route), tmp_path / route, announce=said.append)
    fused, eager = curve(tmp_path / "fused"), curve(tmp_path / "eager")
    assert len(fused) == 200
    assert (
        max(abs(a - b) for one, other in zip(fused, eager, strict=True) for a, b in zip(one, other, strict=True)) < 1e-4
    )
    assert fused != eager  # two ways indeed
    assert said[0].startswith("rollout: fused (plain PyTorch")
    assert said[1] == "rollout: eager (as asked for)"
    assert json.loads((tmp_path / "fused" / "fit.json").read_text())["route"] == said[0]


INTERPRETED = """
import sys, pathlib
from arlat_data.store import LatentStore
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_train import train_rollout
folder = pathlib.Path(sys.argv[1])
config = RolloutTrainConfig.model_validate_json((folder / "config.json").read_text())
train_rollout(LatentStore.open(folder / "store"), config, folder / "fused", announce=print)
"""


def test_the_same_in_tritons_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    store = LatentStore.open(make("ar1", 32, 6, 40, 6, 0, tmp_path / "store", rho=0.9))
    small = {"model": {"hidden": 64, "depth": 1, "width": 32}, "context": 2, "steps": 3, "batch": 4}
    rest = {"validation_rows": 4, "evaluate_every": 100}
    (tmp_path / "config.json").write_text(quick("fused", **small, **rest).model_dump_json())
    environment = os.environ | {"TRITON_INTERPRET": "1", "ARLAT_KERNELS": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRETED, str(tmp_path)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed == "rollout: fused (Triton)\n"
    train_rollout(store, quick("eager", **small, **rest), tmp_path / "eager")
    fused, eager = curve(tmp_path / "fused"), curve(tmp_path / "eager")
    assert len(fused) == 200
    assert (
        max(abs(a - b) for one, other in zip(fused, eager, strict=True) for a, b in zip(one, other, strict=True)) < 1e-4
    )
