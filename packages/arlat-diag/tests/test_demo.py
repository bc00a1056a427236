from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from arlat_core import registry
from arlat_core.config import UserError
from arlat_core.run import run_directory
from arlat_diag import battery, calibration, demo
from arlat_diag.results import Results, read_results, write_results

Maker = Callable[..., Results]


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Four speakers with two clips of 2 s each: tones that fit a PCA frame of 80 ms, swelling in turn."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(2 * 24_000) / 24_000
    for speaker in range(4):
        for clip in range(2):
            rates = 0.5 + 2 * torch.rand(5, generator=generator)
            swells = (1 + torch.sin(2 * math.pi * rates[:, None] * time + speaker + clip)) / 2
            tones = torch.sin(2 * math.pi * torch.tensor([[100.0], [250.0], [600.0], [1500.0], [4000.0]]) * time)
            sound = 0.1 * (swells * tones).sum(0)
            path = tmp_path / "speech" / f"s{speaker}" / "1" / f"s{speaker}-1-{clip}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, (sound + 1e-3 * torch.randn(len(time), generator=generator)).numpy(), 24_000)
    return tmp_path / "speech"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, real_results: Maker, synthetic_results: Maker) -> list[str]:
    """Puts made-up results in the place of the battery and the calibration; lists what they were called on."""
    calls: list[str] = []

    def run_battery(config: Any, progress: Callable[[str], None] = lambda _: None) -> Path:
        calls.append(config.name)
        progress("P1 h1")
        write_results(config.out / "results.json", real_results({config.name: 8}))
        return Path(config.out / "results.json")

    def calibrate(config: Any, progress: Callable[[str], None] = lambda _: None) -> list[Path]:
        calls.append("calibration")
        write_results(config.out / "runs" / "ar1" / "results.json", synthetic_results())
        return [config.out / "runs" / "ar1"]

    monkeypatch.setattr(battery, "run_battery", run_battery)
    monkeypatch.setattr(calibration, "calibrate", calibrate)
    return calls


def arguments(speech: Path, out: Path, *more: str) -> list[str]:
    return ["--audio", str(speech), "--out", str(out), "--pca-dim", "16", "--readout-dim", "4", *more]


NAMES = ["stack:8|mel", "pool:8|mel", "pca:16", "readout:4|stack:8|mel"]


def test_one_command_leaves_a_report_of_every_representation(
    speech: Path, measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert demo.main(arguments(speech, out), "arlat demo") == 0
    assert measured == [*NAMES, "calibration"]
    results = read_results(out)
    assert sorted(results.results) == sorted(NAMES)
    refused = ["vae:speech-tiny"] if "vae" in registry.names("codecs") else []  # the VAE of speech knows no tones
    assert [note.split(",")[0] for note in results.notes] == [f"Without {name}" for name in refused]
    assert any("no one-step model" in note for note in results.representations["pool:8|mel"].notes)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "ar1 rho=0.8 D=8: every figure with a known answer" in text
    assert (out / "report.md").exists()
    printed = capsys.readouterr().out
    assert str(out / "report.html") in printed
    assert "bit/s" in printed


def test_the_same_command_goes_on_after_a_kill(speech: Path, measured: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "stores" / "readout.unfinished").mkdir(parents=True)
    (out / "stores" / "readout.unfinished" / "half").write_text("half")
    demo.main(arguments(speech, out), "arlat demo")
    assert not (out / "stores" / "readout.unfinished").exists()
    made = {path: path.stat().st_mtime_ns for path in out.glob("stores/*/store.json")}
    assert len(made) == len(NAMES)
    report = (out / "report.html").read_bytes()
    demo.main(arguments(speech, out), "arlat demo")
    assert {path: path.stat().st_mtime_ns for path in out.glob("stores/*/store.json")} == made
    assert (out / "report.html").read_bytes() == report


def test_another_seed_does_not_resume_a_run(speech: Path, tmp_path: Path) -> None:
    begun = demo.Config(audio=speech, out=tmp_path / "run", pca_dim=16, readout_dim=4)
    with run_directory(begun.out, demo.settings_of(begun)):
        pass
    with pytest.raises(UserError, match="seed: was 0, is 1"):
        demo.main(arguments(speech, tmp_path / "run", "--seed", "1"), "arlat demo")


def test_more_codecs_are_taken_in_either_way_of_writing(speech: Path, measured: list[str], tmp_path: Path) -> None:
    both = ["--codec", "stride:8|mel", "--quick", "--codec=stack:4|mel"]
    demo.main(arguments(speech, tmp_path / "run", *both), "arlat demo")
    assert measured == [*NAMES[:-1], "stride:8|mel", "stack:4|mel", NAMES[-1], "calibration"]
    assert any("quick run" in note for note in read_results(tmp_path / "run").notes)


def test_synthetic_voices_are_called_a_stand_in(
    speech: Path,
    measured: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("arlat_data.voices.make_voices", lambda out, **options: speech)
    demo.main(arguments(speech, tmp_path / "run")[2:], "arlat demo")
    for text in (
        capsys.readouterr().out,
        (tmp_path / "run" / "report.html").read_text(),
        (tmp_path / "run" / "report.md").read_text(),
    ):
        assert "synthetic stand-in" in " ".join(text.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--codec", "mel", "mel"], "more than once"),
        (["--audio", "/nowhere"], "is no folder"),
        (["--codec", "nope"], "nope"),
    ],
)
def test_mistakes_are_sentences(
    speech: Path, measured: list[str], tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        demo.main([*arguments(speech, tmp_path / "run"), *more], "arlat demo")
    assert measured == []
