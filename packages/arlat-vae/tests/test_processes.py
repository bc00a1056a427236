"""Two processes that share a batch have the losses of one, whatever the losses; torch.compile changes none."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from arlat_core.testing.codec import example_audio
from arlat_vae import model, train_command

MICRO = model.Config(channels=2, max_channels=8, width=8, layers=1, heads=2, bottleneck={"dim": 3})  # type: ignore[arg-type]
LOSSES = {
    "sum": ["loss.kl=0.1"],
    "ar": ["ar.smooth.weight=0.1", "ar.smooth.target=0.5", "ar.pred.weight=0.1", "data.crop.frames=4"],
    "balanced": [
        *("--loss.balanced", "loss.adversarial=1", "loss.feature=1", "loss.adversarial_start=1"),
        *("--judge.n-ffts", "128", "judge.channels=2", "loss.kl_warmup_steps=3"),
    ],
}
Run = Callable[[Path, list[str]], None]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for speaker in ("1", "2"):
        (folder / speaker / "1").mkdir(parents=True)
        sound = example_audio(1, 16_000, 16_000, int(speaker))[0].numpy()
        soundfile.write(folder / speaker / "1" / f"{speaker}-1-0000.flac", sound, 16_000)
    return folder


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.SIZES, "tiny", MICRO)
    torch.set_num_threads(1)


def command(speech: Path, out: Path, more: list[str]) -> list[str]:
    # AdamW's first steps divide a gradient by its own size: of one that is all rounding they keep the sign, times the rate
    few = [
        "train.batch=4",
        "train.steps=4",
        "train.lr=1e-4",
        "train.warmup_steps=0",
        "held_out_crops=2",
        "data.crop.frames=2",
        "probe.steps=2",
        "ar.predictor.window_frames=2",
    ]
    return [f"data.audio_dir={speech}", "--out", str(out), *few, "log_every=1", "save_every=2", *more]


def run(arguments: list[str], place: dict[str, str]) -> None:
    """What torchrun does for one process."""
    os.environ.update(place)
    status = 1
    try:
        status = train_command.main(arguments, "arlat vae train")
    finally:
        os._exit(status)


def run_both(arguments: list[str]) -> list[int | None]:
    """The exit statuses of two processes that share the training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    fork = multiprocessing.get_context("fork")
    children = []
    for rank in ("0", "1"):
        place = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        children.append(fork.Process(target=run, args=(arguments, place)))
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def rows(out: Path) -> list[dict[str, float | str]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_have_the_loss_curves_of_one(speech: Path, tmp_path: Path, name: str) -> None:
    assert train_command.main(command(speech, tmp_path / "one", LOSSES[name]), "arlat vae train") == 0
    assert run_both(command(speech, tmp_path / "two", LOSSES[name])) == [0, 0]
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [(row["step"], row["part"]) for row in one] == [(row["step"], row["part"]) for row in two]
    assert len(one) == 6
    names = [
        sorted(path.name for path in (tmp_path / run / "samples" / "000000004").iterdir()) for run in ("one", "two")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 6
    for alone, shared in zip(one, two, strict=True):
        assert shared.keys() == alone.keys()
        figures = {key: value for key, value in alone.items() if not isinstance(value, str)}
        norm = figures.pop("gradient_norm", 0.0)  # no loss, and more rounding
        assert shared.get("gradient_norm", 0.0) == pytest.approx(norm, rel=1e-5)
        assert {key: shared[key] for key in figures} == pytest.approx(figures, rel=1e-6, abs=1e-7), alone["step"]
    assert len({row["mel"] for row in one}) == 6


@pytest.mark.slow
def test_a_compiled_model_has_the_losses_of_the_other(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: compiled(function, **more | {"backend": "eager"}))
    for flag in ("--compile", "--no-compile"):
        assert (
            train_command.main(
                command(speech, tmp_path / flag, [flag, "train.steps=2", "train.batch=1"]), "arlat vae train"
            )
            == 0
        )
    one, two = rows(tmp_path / "--compile"), rows(tmp_path / "--no-compile")
    for row, other in zip(one, two, strict=True):
        assert row["mel"] == pytest.approx(other["mel"], rel=1e-5)
