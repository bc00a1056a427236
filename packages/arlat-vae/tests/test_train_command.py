"""`arlat vae train`: a folder of speech ends in a codec, a [grid] in a table, and what is finished is not done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch
from arlat_core.config import UserError
from arlat_core.testing.codec import example_audio
from arlat_data.codecs import build_codec
from arlat_vae import checkpoint, train_command
from arlat_vae.model import VAE
from arlat_vae.train_command import encode_whole, main, on_latents

PROG = "arlat vae train"
SMALL = ["data.crop.frames=6", "train.steps=2", "train.batch=1", "held_out_crops=2", "bottleneck.dim=5", "save_every=1"]
SMALL += ["ar.predictor.window_frames=2", "probe.predictor.window_frames=2", "probe.steps=3"]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for speaker in ("1", "2"):
        (folder / speaker / "1").mkdir(parents=True)
        sound = example_audio(1, 16_000, 16_000, int(speaker))[0].numpy()
        soundfile.write(folder / speaker / "1" / f"{speaker}-1-0000.flac", sound, 16_000)
    return folder


def test_the_command_makes_a_codec(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = [f"data.audio_dir={speech}", "--out", str(run), *SMALL, "ar.pred.weight=0.1"]
    assert main(command, PROG) == 0
    told = capsys.readouterr().out
    assert "on held-out speakers waveform" in told
    assert "bit/s" in told
    assert build_codec(f"vae={run / 'vae'}").spec.codec == "vae:5,beta=0.01,ar_loss=pred"
    written = (run / "vae" / "vae.safetensors").read_bytes()
    next((run / "audio").glob("*/train.npy")).unlink()  # nothing is read again
    for again in (command, ["--resume", str(run)]):
        assert main(again, PROG) == 0
        assert "is finished already: on held-out" in capsys.readouterr().out
    assert (run / "vae" / "vae.safetensors").read_bytes() == written
    probed = json.loads((run / "probe.json").read_text())
    assert probed["probe.information_rate"]["n"] == {"speakers": 1, "utterances": 1, "frames": 11}
    with pytest.raises(UserError, match="seed: was 0, is 1"):
        main([*command, "seed=1"], PROG)
    assert checkpoint.exists(run / "vae")


def test_a_grid_makes_a_table(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both points read the same samples once; one that fails is told and does not stop the other."""
    read: list[str] = []
    monkeypatch.setattr(train_command, "prepare", counted(read))
    preset = tmp_path / "grid.toml"
    preset.write_text('[grid]\n"ar.smooth.weight" = [0, 0.1]\n"probe.predictor.window_frames" = [2, 99]\n')
    command = [str(preset), f"data.audio_dir={speech}", "--out", str(tmp_path / "run"), *SMALL[:-2], "probe.steps=3"]
    assert main(command, PROG) == 1
    found = json.loads((tmp_path / "run" / "table.json").read_text())
    points = [f"ar.smooth.weight={weight},probe.predictor.window_frames=2" for weight in (0, 0.1)]
    assert list(found["points"]) == points
    assert len(found["failed"]) == 2
    assert all("longer than its window of 99 frames" in why for why in found["failed"].values())
    folders = {str(Path(path).parent) for path in read}
    assert len(folders) == 1
    assert len(list(Path(folders.pop()).glob("*.npy"))) == 2
    names = [
        build_codec(f"vae={tmp_path / 'run' / 'points' / folder / 'vae'}").spec.codec for folder in finished(tmp_path)
    ]
    assert sorted(names) == ["vae:5,beta=0.01,ar_loss=none", "vae:5,beta=0.01,ar_loss=smooth"]
    table = (tmp_path / "run" / "table.md").read_text()
    assert table in capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith(f"| {points[1]} |"))
    mel = found["points"][points[1]]["held_out"]["mel"]
    assert f"{mel:.3g} (" in row
    assert table.count("failed: The probe needs") == 2


def counted(read: list[str]) -> object:
    """`prepare` that notes where it looks."""
    real = train_command.prepare

    def prepare(*arguments: object) -> object:
        read.append(str(arguments[2]))
        return real(*arguments)  # type: ignore[arg-type]

    return prepare


def finished(folder: Path) -> list[str]:
    return [path.parent.parent.name for path in (folder / "run" / "points").glob("*/vae/vae.json")]


def test_a_clip_is_encoded_in_blocks_as_in_one(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = example_audio(1, 2000, 2400)[0]
    monkeypatch.setattr(train_command, "BLOCK_SECONDS", 0.13)  # 13 frames of 24 samples
    with torch.no_grad():
        whole = vae.encode(audio[None]).mean[0]
    torch.testing.assert_close(encode_whole(vae, audio), whole, rtol=1e-4, atol=1e-5)


def test_what_is_trained_on_is_seen_from_the_arguments(tmp_path: Path) -> None:
    preset, run = tmp_path / "p.toml", tmp_path / "run"
    preset.write_text('[data]\nlatents_dir = "store"\n')
    run.mkdir()
    (run / "resolved.json").write_text('{"data": {"latents_dir": "store"}}')
    for arguments in (["data.latents_dir=x"], ["--data.latents-dir", "x"], [str(preset)], ["--resume", str(run)]):
        assert on_latents(arguments), arguments
    for arguments in (["data.audio_dir=latents_dir"], ["--help"]):
        assert not on_latents(arguments), arguments
    with pytest.raises(UserError, match=r"no resolved\.json"):
        on_latents(["--resume", str(tmp_path)])
