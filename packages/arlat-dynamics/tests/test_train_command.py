"""`arlat dynamics train`: one model, a [grid] with its table, and mean rollouts that stop where they must and not elsewhere."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from arlat_core.config import UserError
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_dynamics import checkpoint
from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.train_command import main

QUICK = ["model.hidden=32", "model.depth=1", "context=4", "batch=64", "evaluate_every=50", "validation_rows=64"]
PROG = "arlat dynamics train"
SWEEP = Path(__file__).resolve().parents[3] / "conf" / "dynamics" / "teacher_state_sweep.toml"
presets = pytest.mark.skipif(not SWEEP.exists(), reason="the presets are not beside an installed package")


def run(store: Path, out: Path, *more: str) -> int:
    return main([*more, f"data.latents_dir={store}", "--out", str(out), *QUICK], PROG)


@pytest.fixture(scope="module")
def ar1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("ar1", 3, 24, 60, 12, 0, tmp_path_factory.mktemp("stores") / "ar1", rho=0.9)


def test_one_model_is_trained_read_again_and_not_mixed_up(
    ar1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ar1, tmp_path / "run", "updates=5", "steps=4") == 0
    printed = capsys.readouterr().out
    model = checkpoint.load(tmp_path / "run" / "model", LatentStore.open(ar1).spec, HeadedModel)  # type: ignore[type-abstract]
    assert model.plugin == "mlp"
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    assert figures["ratio[4]"]["n"]["speakers"] == 3
    assert "| this model |" in printed
    assert "| linear VAR |" in printed
    before = (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(ar1, tmp_path / "run", "updates=5", "steps=4") == 0
    assert main(["--resume", str(tmp_path / "run")], PROG) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="seed: was 0, is 1"):
        run(ar1, tmp_path / "run", "updates=5", "steps=4", "seed=1")
    with pytest.raises(UserError, match=r"no resolved\.json"):
        main(["--resume", str(tmp_path)], PROG)


def test_a_grid_goes_past_a_point_that_fails_and_lists_it(ar1: Path, tmp_path: Path) -> None:
    preset = tmp_path / "grid.toml"
    preset.write_text("updates = 2\n[grid]\nsteps = [2, 4, 58]\n")  # no utterance holds 4 + 58 frames
    assert run(ar1, tmp_path / "sweep", str(preset)) == 1
    found = json.loads((tmp_path / "sweep" / "table.json").read_text())
    assert set(found["figures"]) == {"linear VAR", "one step", "steps=2", "steps=4"}
    assert "longer utterances" in found["failed"]["steps=58"]
    text = (tmp_path / "sweep" / "table.md").read_text()
    assert "| steps=58 | failed:" in text
    models = list((tmp_path / "sweep" / "points").glob("*/model/model.json"))
    assert len(models) == 3
    models[0].unlink()
    assert main(["--resume", str(tmp_path / "sweep")], PROG) == 1
    assert models[0].is_file()
    assert (tmp_path / "sweep" / "table.md").read_text() == text


CALM = SWEEP.with_name("calm_ablation.toml")


@presets
def test_the_ablation_of_noise_short_context_and_head_is_one_table(ar1: Path, tmp_path: Path) -> None:
    small = [
        "model.width=16",
        "model.depth=1",
        "model.window=4",
        "context=4",
        "batch=8",
        "validation_rows=32",
        "updates=2",
    ]
    sweep = [str(CALM), f"data.latents_dir={ar1}", "--out", str(tmp_path), *small, "measured_steps=3"]
    assert main(sweep, PROG) == 0
    found = json.loads((tmp_path / "table.json").read_text())["figures"]
    trained = found.keys() - {"linear VAR"}
    assert len(trained) == 8  # the points are themselves trained on one step: nothing is trained twice
    assert all("ratio[3]" in found[name] for name in trained)
    assert len({found[name]["teacher.nll[1]"]["value"] for name in trained}) == 8
    records = [json.loads((folder / "resolved.json").read_text()) for folder in (tmp_path / "points").iterdir()]
    switches = {(r["noise"]["level"], r["model"]["short_context"], r["model"]["head"]["name"]) for r in records}
    assert switches == set(itertools.product((0.0, 0.5), (0, 10), ("gaussian_mixture", "flow")))


def test_points_that_are_trained_on_one_step_have_no_twin(ar1: Path, tmp_path: Path) -> None:
    one = ["updates=1", "teacher_weight=0", "curriculum=0", "measured_steps=2"]
    assert run(ar1, tmp_path, "steps=1,2", *one) == 0
    found = json.loads((tmp_path / "table.json").read_text())["figures"]
    assert set(found) == {"linear VAR", "steps=1", "steps=2"}


def test_nothing_starts_until_every_point_can_be_built(ar1: Path, tmp_path: Path) -> None:
    preset = tmp_path / "grid.toml"
    preset.write_text('updates = 2\n[grid]\n"model.heads" = [2]\n')
    with pytest.raises(UserError, match="'mlp' has no heads"):
        run(ar1, tmp_path / "sweep", str(preset))
    assert not (tmp_path / "sweep").exists()


@presets
def test_mean_rollouts_stand_still_where_nothing_can_be_known_and_not_where_it_can(tmp_path: Path) -> None:
    white = make("white", 4, 32, 80, 8, 0, tmp_path / "white")
    cycle = make(
        "cycle", 4, 32, 80, 8, 0, tmp_path / "cycle", phase_noise=0.01, radius_noise=0.01, memory=0.9, period_min=8.0
    )
    ratios = {}
    for store in (white, cycle):
        out = tmp_path / f"sweep-{store.name}"
        assert run(store, out, str(SWEEP), "updates=150", "steps=8", "lr=3e-3") == 0
        rows = json.loads((out / "table.json").read_text())["figures"]
        assert len(rows) == 8  # linear VAR, one step, and the grid
        ratios[store.name] = {name: values["ratio[8]"]["value"] for name, values in rows.items()}
    assert max(ratios["white"].values()) < 0.35, ratios
    assert min(ratios["cycle"].values()) > 0.7, ratios
