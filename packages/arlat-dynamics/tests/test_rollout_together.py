"""Several trainings in the same launches: each is what it would be alone, killed or not, beside one that diverges or not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from arlat_core.distributed import Ranks
from arlat_core.files import safe_name
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_dynamics import rollout_train, train_command
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_run import Run
from arlat_dynamics.rollout_together import shared
from arlat_dynamics.rollout_train import train_rollout, train_several
from safetensors.torch import load_file

DIFFERENCES = (
    {"teacher_weight": 0.0},
    {"seed": 3, "lr": 3e-3, "state_weight": 0.2, "noise": {"level": 0.2}},
    {"teacher_weight": 1.0, "true_frames": (0.5, 0.0), "clip": 0.1},
)


def quick(**more: object) -> RolloutTrainConfig:
    base = {"model": {"hidden": 16, "depth": 1}, "context": 3, "steps": 3, "updates": 12, "batch": 8, "log_every": 3}
    return RolloutTrainConfig.model_validate(
        base | {"evaluate_every": 4, "validation_rows": 32, "curriculum": 0.5} | more
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("ar1", 3, 24, 60, 12, 0, tmp_path_factory.mktemp("stores") / "ar1", rho=0.9)


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trainings one by one."""
    out = tmp_path_factory.mktemp("alone")
    for at, more in enumerate(DIFFERENCES):
        train_rollout(LatentStore.open(folder), quick(**more), out / str(at))
    return [out / str(at) for at in range(len(DIFFERENCES))]


def require_same(one: Path, other: Path) -> None:
    """Weights, records and reports of two trainings agree to 1e-6."""
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-6, atol=1e-6)
    lines, rest = ((path / "metrics.jsonl").read_text().splitlines() for path in (one, other))
    assert len(lines) == len(rest) == 4
    for line, same in zip(map(json.loads, lines), map(json.loads, rest), strict=True):
        assert line == pytest.approx(same, rel=1e-5, abs=1e-6)
    fit, same = (json.loads((path / "fit.json").read_text()) for path in (one, other))
    assert fit["best_update"] == same["best_update"]


def test_each_is_what_it_is_alone(folder: Path, alone: list[Path], tmp_path: Path) -> None:
    configs = {tmp_path / str(at): quick(**more) for at, more in enumerate(DIFFERENCES)}
    assert len({shared(config) for config in configs.values()}) == 1
    train_several(LatentStore.open(folder), configs)
    for one, other in zip(configs, alone, strict=True):
        require_same(one, other)
    found = [load_file(path / "model" / "model.safetensors")["enter.weight"] for path in configs]
    assert len({float(weight.sum()) for weight in found}) == len(configs)


def test_stopped_trainings_go_on_together_and_alone(folder: Path, alone: list[Path], tmp_path: Path) -> None:
    store = LatentStore.open(folder)
    configs = {tmp_path / str(at): quick(**more) for at, more in enumerate(DIFFERENCES)}
    first, second, third = configs

    def stop(text: str) -> None:
        if "update 4 " in text:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        train_several(store, configs, progress=stop)
    assert ended.value.code == 128 + signal.SIGTERM
    newest = [sorted((path / "state").glob("*.json"))[-1] for path in configs]
    assert [path.stem for path in newest] == ["000000005"] * 3
    newest[1].unlink()  # as if a kill had come while this one was being saved: it is behind the others
    train_rollout(store, configs[third], third)
    train_several(store, configs)
    for one, other in zip((first, second, third), alone, strict=True):
        require_same(one, other)


def test_one_that_diverges_leaves_the_others_alone(folder: Path, alone: list[Path], tmp_path: Path) -> None:
    prepared = rollout_train.prepared

    def broken(store: LatentStore, config: RolloutTrainConfig, out: Path, here: Ranks, *rest: object) -> Run:
        run = prepared(store, config, out, here, *rest)  # type: ignore[arg-type]
        if out.name == "broken":
            with torch.no_grad():
                run.model.enter.weight.fill_(torch.nan)  # type: ignore[union-attr,operator]
        return run

    config = quick(**DIFFERENCES[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout_train, "prepared", broken)
        patch.setattr("arlat_dynamics.rollout_run.MOST_SKIPPED", 3)
        train_several(LatentStore.open(folder), {tmp_path / "fine": config, tmp_path / "broken": config})
    require_same(tmp_path / "fine", alone[0])
    assert not (tmp_path / "broken" / "model").exists()


def test_a_grid_of_seeds_rates_and_weights_takes_one_launch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["model.hidden=16", "model.depth=1", "context=3", "steps=2,3", "updates=3", "batch=8", "validation_rows=32"]
    varied = ["seed=0,1", "teacher_weight=0,0.1", "curriculum=0", "measured_steps=3"]
    command = [f"data.latents_dir={folder}", *shape, *varied]
    taken: list[int] = []
    several = rollout_train.train_several

    def counted(store: LatentStore, configs: dict[Path, RolloutTrainConfig], *rest: object) -> None:
        taken.append(len(configs))
        several(store, configs, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout_train, "train_several", counted)
        assert train_command.main([*command, "--out", str(tmp_path / "at_once"), "together=3"], "train") == 0
    assert taken == [2, 3, 3]  # one step, then three of four points for each number of steps
    assert "3 points at once, rollout: fused" in capsys.readouterr().err
    assert train_command.main([*command, "--out", str(tmp_path / "in_turn"), "together=1"], "train") == 0
    tables = [json.loads((tmp_path / name / "table.json").read_text()) for name in ("at_once", "in_turn")]
    assert tables[0]["figures"].keys() == tables[1]["figures"].keys()
    for name, values in tables[0]["figures"].items():
        for key, value in values.items():
            assert value["value"] == pytest.approx(tables[1]["figures"][name][key]["value"], rel=1e-4, abs=1e-5)
    assert (tmp_path / "at_once" / "points" / safe_name(name) / "fit.json").exists()


def test_what_cannot_be_shared_keeps_points_apart() -> None:
    assert shared(quick()) == shared(quick(seed=5, lr=0.1, weight_decay=0.0, state_weight=1.0))
    for other in ({"steps": 4}, {"batch": 16}, {"longest": 5.0}, {"model": {"hidden": 32}}, {"bf16": True}):
        assert shared(quick()) != shared(quick(**other))
