"""Synthetic stores: what is written, and that it repeats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from arlat_core.config import UserError
from arlat_data.processes import names
from arlat_data.store import LatentStore
from arlat_data.synth import main, make, split_of


@pytest.mark.parametrize("name", names())
def test_every_process_makes_a_store_with_its_answers(name: str, tmp_path: Path) -> None:
    out = make(name, dim=4, utterances=7, frames=20, speakers=3, seed=5, out=tmp_path / "s", frame_rate=25.0)
    store = LatentStore.open(out)
    assert (store.spec.codec, store.spec.dim, store.spec.frame_rate) == (f"synth:{name}", 4, 25.0)
    assert store.spec.sample_rate == 0
    ids = {split: store.ids(split) for split in ("train", "eval")}
    assert len(ids["train"]) + len(ids["eval"]) == 7
    speakers = {split: {store.speaker(name) for name in ids[split]} for split in ids}
    assert speakers["train"]
    assert speakers["eval"]
    assert not speakers["train"] & speakers["eval"]
    for each in (*ids["train"], *ids["eval"]):
        frames = store.frames(each)
        assert frames.shape == (20, 4)
        assert frames.dtype == np.float32
        assert np.isfinite(frames).all()
        assert np.isnan(store.energy(each)).all()
    truth = store.truth
    assert truth is not None
    assert truth == json.loads((out / "truth.json").read_text())
    assert (truth["process"], truth["dim"], truth["seed"]) == (name, 4, 5)
    assert all(np.isfinite(entry["value"]) and entry["method"] for entry in truth["values"].values())
    assert {"p1.h1.dnll_b0", "p1.h1.cosine", "p4.rho[16]"} <= truth["values"].keys()


def test_the_same_seed_makes_the_same_store_and_another_does_not(tmp_path: Path) -> None:
    kept = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        store = LatentStore.open(make("var", 3, 6, 10, 3, seed, tmp_path / name))
        kept[name] = (store.spec, store.truth, {each: store.frames(each) for each in store.ids("train")})
    assert kept["a"][0] == kept["b"][0] != kept["c"][0]
    assert kept["a"][1] == kept["b"][1] != kept["c"][1]
    assert all(np.array_equal(z, kept["b"][2][each]) for each, z in kept["a"][2].items())


def test_the_split_is_of_speakers() -> None:
    for speakers, fraction in [(2, 0.01), (2, 0.99), (10, 0.25)]:
        split = list(split_of(speakers, fraction, seed=0).values())
        assert len(split) == speakers
        assert 1 <= split.count("eval") < speakers
    assert list(split_of(20, 0.25, seed=3).values()).count("eval") == 5


def test_the_command_makes_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--process",
        "ar1",
        "--rho",
        "0.5",
        "--dim",
        "3",
        "--utterances",
        "4",
        "--frames",
        "12",
        "--speakers",
        "2",
        "--seed",
        "1",
    ]
    assert main([*flags, "--out", str(tmp_path / "s")], "arlat data synth") == 0
    assert "truth.json" in capsys.readouterr().out
    truth = LatentStore.open(tmp_path / "s").truth
    assert truth is not None
    assert truth["params"] == {"rho": 0.5}


def test_mistakes_leave_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="utterance for each"):
        make("ar1", dim=2, utterances=2, frames=10, speakers=3, seed=0, out=tmp_path / "s")
    with pytest.raises(UserError, match="Known keys: rho"):
        make("ar1", dim=2, utterances=4, frames=10, speakers=2, seed=0, out=tmp_path / "s", kappa=1.0)
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        make("ar1", dim=2, utterances=4, frames=10, speakers=2, seed=0, out=tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["mine"]
