"""`arlat dynamics train`: a store to a model on disk, that the same command finds again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from arlat_core.config import UserError
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_dynamics import checkpoint
from arlat_dynamics.models.mdn import ResidualMixture
from arlat_dynamics.one_step import main

QUICK = ["train.max_steps=20", "train.evaluate_every=10", "components=2"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make("ar1", 3, 12, 80, 6, 0, tmp_path / "store", rho=0.8)


def test_train_writes_a_model_of_the_store(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"data.latents_dir={store}", "--out", str(tmp_path / "run"), *QUICK]
    assert main(arguments, "arlat dynamics train") == 0
    model = checkpoint.load(tmp_path / "run" / "model", LatentStore.open(store).spec, ResidualMixture)
    assert float(model.linear.weight[:3].diagonal().mean()) == pytest.approx(-0.2, abs=0.1)
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["steps"] > 0
    before = (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(arguments, "arlat dynamics train") == 0
    assert "finished already" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="seed: was 0, is 1"):
        main([*arguments, "seed=1"], "arlat dynamics train")


def test_killed_before_the_end_starts_anew_and_ends_the_same(store: Path, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        main([f"data.latents_dir={store}", "--out", str(tmp_path / name), *QUICK], "arlat dynamics train")
    (tmp_path / "killed" / "model" / "model.json").unlink()  # what a kill before the last write leaves
    main([f"data.latents_dir={store}", "--out", str(tmp_path / "killed"), *QUICK], "arlat dynamics train")
    whole, killed = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_a_store_that_is_too_small_is_refused(tmp_path: Path) -> None:
    tiny = make("ar1", 3, 4, 6, 4, 0, tmp_path / "tiny", rho=0.8)
    with pytest.raises(UserError, match="longer utterances"):
        main([f"data.latents_dir={tiny}", "--out", str(tmp_path / "run"), *QUICK], "arlat dynamics train")
