"""A training ends in the same bytes whatever stopped it: SIGKILL at any write or step, SIGTERM, SIGUSR1."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from arlat_core.config import UserError
from arlat_core.run import RESOLVED
from arlat_core.testing.codec import example_audio
from arlat_data.codecs import build_codec
from arlat_data.store import write_store
from arlat_vae import checkpoint, inner_command, model, train, train_command
from arlat_vae.crops import Clips
from arlat_vae.train_config import Config

MICRO = model.Config(channels=2, max_channels=8, width=8, layers=1, heads=2, bottleneck={"dim": 3})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.SIZES, "tiny", MICRO)


@pytest.fixture(scope="module")
def clips() -> Clips:
    audio = (example_audio(3, 30_000, 24_000) * 32767).to(torch.int16)
    return Clips(audio.flatten().numpy(), torch.arange(3) * 30_000, torch.full((3,), 30_000))


def config(out: Path, **changes: Any) -> Config:
    """Twelve steps on two frames."""
    small = {"log_every": 1, "save_every": 3, "held_out_crops": 2}
    steps = {"steps": 12, "batch": 1, "warmup_steps": 0}
    data = {"audio_dir": out, "crop": {"frames": 2}}
    return Config(data=data, out=out, train=steps, **{**small, **changes})  # type: ignore[arg-type]


def left(out: Path) -> dict[str, bytes]:
    """What a training has left, by name; what a kill cut off while it was written begins with a dot.

    Not how often it was begun, nor where and when.
    """
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    timed = ("owner.json", RESOLVED)
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in files
        if path.name not in timed and path.parent.name != "tensorboard"
    }


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for speaker in ("1", "2"):
        (folder / speaker / "1").mkdir(parents=True)
        sound = example_audio(1, 16_000, 16_000, int(speaker))[0].numpy()
        soundfile.write(folder / speaker / "1" / f"{speaker}-1-0000.flac", sound, 16_000)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of 12 frames, of two speakers."""
    path = tmp_path_factory.mktemp("latents") / "store"
    draw = np.random.default_rng(0)
    rows = [(f"u{i}", f"s{i}", part, draw.normal(size=(12, 16)), None) for i, part in enumerate(("train", "eval"))]
    write_store(path, build_codec("pool:4|mel:bins=16").spec, rows, dtype="float32")
    return path


def latents_command(store: Path, out: Path, *more: str) -> list[str]:
    few = ["train.batch=2", "train.warmup_steps=0", "held_out_crops=2", "data.crop_frames=6", "probe.steps=2", *more]
    few += ["shape.width=8", "shape.layers=1", "shape.heads=2", "shape.bottleneck.dim=3", "ar.pred.weight=0.1"]
    return [f"data.latents_dir={store}", "--out", str(out), *few]


def command(speech: Path, out: Path, *more: str) -> list[str]:
    few = ["train.batch=1", "train.warmup_steps=0", "held_out_crops=2", "data.crop.frames=2", "probe.steps=2", *more]
    return [f"data.audio_dir={speech}", "--out", str(out), *few]


JUDGED = ["--judge.n-ffts", "128", "judge.channels=2", "loss.adversarial=1", "loss.feature=1", "--loss.balanced"]
WARMED = ["loss.adversarial_start=3", "loss.kl_warmup_steps=5"]
STEPS = ["train.steps=9", "save_every=3", "log_every=1"]


def run_killed(arguments: list[str], out: Path, after: int) -> None:
    """Runs the command, and dies of SIGKILL at the `after`-th file below `out` that is opened, renamed or removed, or step that is made."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, about: tuple[object, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod") and str(out) in str(about[0]):
            count()

    def show(bar: object, task: object, step: int, planned: int) -> None:
        count()

    train_command.show = inner_command.show = show
    sys.addaudithook(hook)
    status = 1
    try:
        status = train_command.main(arguments, "arlat vae train")
        (out.parent / "moments").write_text(str(done))
    finally:
        os._exit(status)


def forked(arguments: list[str], out: Path, after: int) -> int:
    """The exit status of `run_killed` in a process of its own."""
    child = multiprocessing.get_context("fork").Process(target=run_killed, args=(arguments, out, after))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def die_at_random(make: Callable[[Path], list[str]], folder: Path, wanted: int) -> dict[str, bytes]:
    """Kills runs of the command that `make` gives at random moments, goes on, and compares; what a run leaves.

    Most of the moments that are drawn from are those of writing.
    """
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    train_command.main(make(folder / "warm"), "arlat vae train")  # what is imported on use
    assert forked(make(folder / "whole"), folder / "whole", 0) == 0
    expected, moments = left(folder / "whole"), int((folder / "moments").read_text())
    assert moments > 60
    generator, kills, run = np.random.default_rng(0), 0, 0
    while kills < wanted:
        out = folder / str(run)
        while status := forked(make(out), out, int(generator.integers(1, moments))):
            assert status == -signal.SIGKILL
            kills += 1
        found = left(out)
        assert [name for name in expected if found.get(name) != expected[name]] == []
        run += 1
    assert run >= 2
    return expected


@pytest.mark.filterwarnings("ignore:.*fork")
def test_twenty_kills_at_random_leave_no_trace(speech: Path, tmp_path: Path) -> None:
    expected = die_at_random(lambda out: command(speech, out, *JUDGED, *WARMED, *STEPS), tmp_path, 20)
    assert "samples/000000009/01.png" in expected


@pytest.mark.filterwarnings("ignore:.*fork")
def test_kills_of_a_training_on_latents_leave_no_trace(store: Path, tmp_path: Path) -> None:
    expected = die_at_random(lambda out: latents_command(store, out, *STEPS), tmp_path, 12)
    assert {"inner/inner.safetensors", "latents/zarr.json", "probe.json"} <= expected.keys()


def at(step: int, number: int) -> train.Progress:
    """Sends itself a signal after a step."""

    def send(done: int, planned: int) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return send


def saved(out: Path) -> list[int]:
    return [int(path.stem) for path in sorted((out / "state").glob("*.json"))]


def test_signals_save_after_the_next_step_and_only_sigterm_ends_it(clips: Clips, tmp_path: Path) -> None:
    whole, told = config(tmp_path / "whole", save_every=50), config(tmp_path / "told", save_every=50)
    train.train(whole, clips, clips)
    assert saved(whole.out) == [0, 12]
    with pytest.raises(SystemExit) as ended:
        train.train(told, clips, clips, at(4, signal.SIGTERM))
    assert ended.value.code == 128 + signal.SIGTERM
    assert saved(told.out) == [0, 5]
    train.train(told, clips, clips, at(7, signal.SIGUSR1))
    assert saved(told.out) == [8, 12]
    names = ("state/000000012.safetensors", "state/000000012.json", "metrics.jsonl")
    assert all((whole.out / name).read_bytes() == (told.out / name).read_bytes() for name in names)


def test_an_unfinished_run_says_how_to_go_on(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, prog = tmp_path / "run", "arlat vae train"
    show = train_command.show
    monkeypatch.setattr(train_command, "show", lambda bar, task, done, planned: at(3, signal.SIGTERM)(done, planned))
    with pytest.raises(SystemExit):
        train_command.main(command(speech, out, *STEPS), prog)
    assert f"{out} is not finished. Go on with: arlat vae train --resume {out}" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"Its training is not finished; go on with: arlat vae train --resume {out}"):
        checkpoint.load(out / "vae")
    monkeypatch.setattr(train_command, "show", show)
    monkeypatch.chdir(tmp_path)
    assert train_command.main(["--resume", "run"], prog) == 0
    assert train_command.main(command(speech, tmp_path / "whole", *STEPS), prog) == 0
    found, whole = left(out), left(tmp_path / "whole")
    assert [name for name in whole if found.get(name) != whole[name]] == []
    with pytest.raises(UserError, match="takes one run directory and nothing else"):
        train_command.main(["--resume", "run", "seed=1"], prog)


def test_a_grid_goes_on_from_its_folder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the first of two points; what is given from elsewhere is found again."""
    monkeypatch.chdir(store.parent)
    out, prog, grid = tmp_path / "run", "arlat vae train", latents_command(Path(store.name), tmp_path / "run", *STEPS)
    show = inner_command.show
    monkeypatch.setattr(inner_command, "show", lambda bar, task, done, planned: at(3, signal.SIGTERM)(done, planned))
    with pytest.raises(SystemExit):
        train_command.main([*grid, "kl=0,0.1"], prog)
    assert f"{out} is not finished. Go on with: arlat vae train --resume {out}" in capsys.readouterr().err
    monkeypatch.setattr(inner_command, "show", show)
    monkeypatch.chdir(tmp_path)
    assert train_command.main(["--resume", "run"], prog) == 0
    whole = latents_command(store, tmp_path / "whole", *STEPS, "kl=0,0.1")
    assert train_command.main(whole, prog) == 0
    names = [name for name in left(tmp_path / "whole") if name.endswith("inner.safetensors") or name == "table.json"]
    assert len(names) == 3
    assert all((out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
