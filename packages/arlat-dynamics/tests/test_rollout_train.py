"""Training on rollouts: what each objective learns, schedules, killed and resumed runs, several processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.files import safe_name
from arlat_core.heads import HEADS
from arlat_core.training_state import load_state, save_state
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_data.windows import windows
from arlat_dynamics.headed import HeadConfig, HeadedModel
from arlat_dynamics.models import mlp, transformer
from arlat_dynamics.models.linear import LinearModel
from arlat_dynamics.objectives import OBJECTIVES, Task, distance, energy
from arlat_dynamics.rollout import Places, injections, rollout
from arlat_dynamics.rollout_config import ModelConfig, RolloutTrainConfig, rollout_steps, true_share
from arlat_dynamics.rollout_loss import RolloutLoss, draw_step
from arlat_dynamics.rollout_run import DivergedError
from arlat_dynamics.rollout_train import train_rollout
from arlat_dynamics.train_command import main

SMALL = ModelConfig(hidden=16, depth=1, head=HeadConfig(name="gaussian"))


def quick(**more: object) -> RolloutTrainConfig:
    base = {"model": SMALL, "context": 4, "steps": 4, "updates": 30, "batch": 16, "evaluate_every": 10, "log_every": 5}
    return RolloutTrainConfig.model_validate(base | {"validation_rows": 64} | more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("ar1", 3, 24, 60, 12, 0, tmp_path_factory.mktemp("stores") / "ar1", rho=0.9)


@pytest.fixture(scope="module")
def store(folder: Path) -> LatentStore:
    return LatentStore.open(folder)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_learns(store: LatentStore, tmp_path: Path, objective: str) -> None:
    head = HeadConfig(name="vmf" if objective != "energy" else "gaussian_mixture")
    config = quick(objective=objective, model=SMALL.model_copy(update={"head": head}), updates=60, state_weight=0.05)
    train_rollout(store, config, tmp_path)
    fit = json.loads((tmp_path / "fit.json").read_text())
    assert fit["best_loss"] < fit["initial_loss"]
    assert fit["best_update"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 61, 5))
    assert {"loss", "teacher", "state", "clipped", "saturated", "grad_norm", "lr", "k"} <= lines[0].keys()
    assert all(line["teacher"] != 0 and line["state"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("name", "more"), [("gru", {}), ("transformer", {"heads": 2, "window": 4, "short_context": 3})]
)
def test_models_with_a_memory_learn_from_noised_rollouts(
    store: LatentStore, tmp_path: Path, name: str, more: dict[str, int]
) -> None:
    model = ModelConfig(name=name, width=16, depth=1, head=HeadConfig(name="flow"), **more)
    noise = {"form": "variance_preserving", "level": 0.3}
    train_rollout(store, quick(model=model, noise=noise, objective="sampled_nll", updates=40, lr=5e-3), tmp_path)
    fit = json.loads((tmp_path / "fit.json").read_text())
    assert fit["best_loss"] < fit["initial_loss"]
    assert fit["skipped"] == 0


def test_the_energy_score_is_unbiased_and_smallest_at_the_true_law(
    exact_ar1: Callable[[float, int], LinearModel],
) -> None:
    dim, generator = 4, torch.Generator().manual_seed(0)
    z = torch.randn(4000, 5, dim, generator=generator)

    def score(scale: float) -> float:
        model = exact_ar1(0.0, dim)
        model.factor.mul_(scale)
        inject = torch.tensor(injections("D", 1)).expand(len(z), -1)
        task = Task(z[:, :4], z[:, :4], z[:, 4:], inject, None, 1.0, 4, torch.Generator().manual_seed(1))
        with torch.no_grad():
            return float(energy(model, task, None).loss)  # type: ignore[arg-type]

    chi = math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    assert score(1.0) == pytest.approx(chi / math.sqrt(2), rel=0.02)  # ½ E‖X − X′‖
    assert score(1.0) < min(score(0.5), score(1.5))


def test_a_distance_of_zero_has_a_finite_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(distance(x).sum(), x)
    assert torch.equal(slope, torch.zeros(2, 3))


def test_schedules() -> None:
    config = quick(steps=8, updates=100, curriculum=0.5, true_frames=(0.8, 0.0))
    grown = [rollout_steps(config, update) for update in range(1, 101)]
    assert grown[0] == 1
    assert grown[49] == 8
    assert set(grown[50:]) == {8}
    assert grown == sorted(grown)
    assert [rollout_steps(quick(curriculum=0.0), update) for update in (1, 30)] == [4, 4]
    assert true_share(config, 1) == 0.8
    assert true_share(config, 100) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="probabilities from 0 to 1"):
        quick(true_frames=(1.5, 0.0))


def test_noise_and_scheduled_sampling_change_training_and_not_judgement(store: LatentStore, tmp_path: Path) -> None:
    first = {}
    for name, more in {
        "plain": {},
        "noise": {"noise": {"level": 0.5}},
        "linear": {"noise": {"level": 0.5, "form": "linear"}},
        "true": {"true_frames": (1.0, 1.0)},
    }.items():
        train_rollout(store, quick(updates=5, curriculum=0.0, **more), tmp_path / name)
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        first[name] = line["loss"], json.loads((tmp_path / name / "fit.json").read_text())["initial_loss"]
    assert len({loss for loss, _ in first.values()}) == 4
    assert len({judged for _, judged in first.values()}) == 1


def test_bfloat16_stays_near(store: LatentStore, tmp_path: Path) -> None:
    found = {}
    for bf16 in (False, True):
        train_rollout(store, quick(bf16=bf16), tmp_path / str(bf16))
        found[bf16] = json.loads((tmp_path / str(bf16) / "fit.json").read_text())["best_loss"]
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], abs=0.05)


def same(one: Path, other: Path) -> bool:
    names = ("model/model.safetensors", "metrics.jsonl", "fit.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("objective", ["sampled_nll", "adversarial"])
def test_a_stopped_training_saves_and_ends_in_the_same_bytes(
    store: LatentStore, tmp_path: Path, objective: str
) -> None:
    config = quick(objective=objective, true_frames=(0.5, 0.0))
    train_rollout(store, config, tmp_path / "whole")

    def stop(text: str) -> None:
        if "update 10 " in text:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        train_rollout(store, config, tmp_path / "stopped", progress=stop)
    assert ended.value.code == 128 + signal.SIGTERM
    assert [path.stem for path in sorted((tmp_path / "stopped" / "state").glob("*.json"))] == ["000000010", "000000011"]
    assert not (tmp_path / "stopped" / "model").exists()
    train_rollout(store, config, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")


def command(folder: Path, out: Path, *more: str) -> list[str]:
    settings = [
        "model.hidden=16",
        "model.depth=1",
        "context=4",
        "steps=4",
        "updates=60",
        "batch=16",
        "evaluate_every=5",
    ]
    settings += ["validation_rows=32", "log_every=5", *more]
    return ["-m", "arlat_core.cli", "dynamics", "train", f"data.latents_dir={folder}", "--out", str(out), *settings]


def alone() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, *command(folder, tmp_path / "whole")], check=True, env=alone(), capture_output=True)
    log = tmp_path / "killed" / "metrics.jsonl"
    for lines in (1, 7):
        running = subprocess.Popen([sys.executable, *command(folder, tmp_path / "killed")], env=alone())
        while running.poll() is None and (not log.exists() or log.read_text().count("\n") < lines):
            time.sleep(0.005)
        running.kill()
        running.wait()
    resume = [sys.executable, "-m", "arlat_core.cli", "dynamics", "train", "--resume", str(tmp_path / "killed")]
    subprocess.run(resume, check=True, env=alone(), capture_output=True)
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_have_the_loss_curves_of_one_whatever_the_objective(folder: Path, tmp_path: Path) -> None:
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    sweep = ["updates=10", "noise.level=0.3", f"objective={','.join(sorted(OBJECTIVES))}"]
    curves: list[dict[str, list[tuple[float, float]]]] = []
    assert main(command(folder, tmp_path / "0", *sweep)[4:], "arlat dynamics train") == 0
    done = subprocess.run(
        [sys.executable, *two, *command(folder, tmp_path / "1", *sweep)], env=alone(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for out in (tmp_path / "0", tmp_path / "1"):
        found = {}
        for name in ["one step", *(f"objective={objective}" for objective in OBJECTIVES)]:
            lines = map(json.loads, (out / "points" / safe_name(name) / "metrics.jsonl").read_text().splitlines())
            found[name] = [(line["loss"], line["validation"]) for line in lines]
        curves.append(found)
    assert len({str(curve) for curve in curves[0].values()}) == 5
    for name, curve in curves[0].items():
        assert len(curve) == 2
        for one, both in zip(curve, curves[1][name], strict=True):
            assert both == pytest.approx(one, rel=1e-6), name


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"power_spherical"}))
def test_sequences_draw_alike_alone_and_among_others(store: LatentStore, head: str) -> None:
    near = windows(store.load("train"), 4, 1)
    rows = torch.arange(len(near))
    settings = SMALL.model_copy(update={"head": HeadConfig(name=head)}).settings(3, 4)
    model = mlp.start(settings, near, rows[:-50], rows[-50:], torch.Generator().manual_seed(0))
    z = torch.randn(12, 7, 3, generator=torch.Generator().manual_seed(0))

    def roll(part: torch.Tensor, places: Places | None) -> torch.Tensor:
        free, generator = injections("S", 3), torch.Generator().manual_seed(1)
        return rollout(model, part[:, :4], part[:, 4:], free, True, generator, places=places).step

    whole = roll(z, None)
    for rank in range(3):
        mine = roll(z[rank::3], Places(torch.arange(12)[rank::3], 12))
        torch.testing.assert_close(mine, whole[rank::3])
    assert not torch.allclose(roll(z[1::3], None), whole[1::3])


def test_a_clean_short_context_sees_no_noise_in_rollouts_either(store: LatentStore) -> None:
    near = windows(store.load("train"), 4, 1)
    rows = torch.arange(len(near))
    found: dict[int, list[float]] = {}
    for short in (0, 3):
        shape = ModelConfig(name="transformer", width=8, depth=1, heads=2, window=4, short_context=short)
        model = transformer.start(shape.settings(3, 4), near, rows[:-50], rows[-50:], torch.Generator().manual_seed(0))
        if short:  # nothing is left of what the long transformer sees
            long = model.stacks[0]
            for layer in (long.enter, long.layers[0].out, long.layers[0].block.down):  # type: ignore[union-attr,index]
                torch.nn.init.zeros_(layer.weight)  # type: ignore[union-attr,arg-type]
        frames = torch.randn(8, 8, 3, generator=torch.Generator().manual_seed(0))
        found[short] = []
        for level in (0.0, 0.5):
            config = quick(model=shape, noise={"level": level}, teacher_weight=1.0, batch=8)
            draws = draw_step(config, 3, 0.0, torch.Generator().manual_seed(1))
            with torch.no_grad():
                losses = RolloutLoss(model, config, 1.0)(frames, draws, 4, torch.Generator())
            found[short].append(float(losses.total))
    assert found[3][1] == pytest.approx(found[3][0], rel=1e-5)
    assert found[0][1] != pytest.approx(found[0][0], rel=1e-2)


def test_a_broken_state_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"x": torch.full((4,), float(step))}, {})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    newest = tmp_path / "000000003.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(bytes(data))
    state = load_state(tmp_path)
    assert state is not None
    assert state.step == 2
    assert float(state.tensors["x"][0]) == 2
    assert "not what was written" in state.notes[0]


def test_a_model_without_the_key_is_refused_in_words(store: LatentStore) -> None:
    with pytest.raises(UserError, match=r"'mlp' has no heads, window\. It has activation, depth, head, hidden, width"):
        ModelConfig(heads=2, window=4).settings(3, 8)


def test_a_store_that_is_too_small_is_refused(tmp_path: Path) -> None:
    tiny = LatentStore.open(make("ar1", 3, 4, 6, 4, 0, tmp_path / "tiny", rho=0.8))
    with pytest.raises(UserError, match="longer utterances"):
        train_rollout(tiny, quick(), tmp_path / "run")


def test_losses_that_stay_non_finite_end_the_run_with_a_sentence(store: LatentStore, tmp_path: Path) -> None:
    def spoil(model: HeadedModel) -> None:
        with torch.no_grad():
            model.enter.weight.fill_(torch.nan)  # type: ignore[union-attr,operator]

    start = mlp.start

    def broken(*arguments: object) -> HeadedModel:
        model = start(*arguments)  # type: ignore[arg-type]
        spoil(model)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, "start", broken)
        with pytest.raises(DivergedError, match="20 updates in a row"):
            train_rollout(store, quick(), tmp_path)
