"""Extraction: the same bytes after any kill, nothing silently wrong, everything left out is named."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from arlat_core.config import UserError
from arlat_data.codecs import build_codec
from arlat_data.extract import Config, extract, frame_energy, load_audio, main
from arlat_data.store import LatentStore
from arlat_data.verify import broken_shards
from arlat_data.verify import main as verify


def make_corpus(folder: Path, speakers: int = 6, files: int = 5, seconds: float = 3.0) -> Path:
    """Noise with a moving filter and level: enough like speech for a log-mel codec to give it back."""
    generator = np.random.default_rng(0)
    for speaker in range(speakers):
        for number in range(files):
            samples = int(16000 * (seconds + 0.137 * number))
            time = np.arange(samples) / 16000
            tone = sum(np.sin(2 * np.pi * (110 + 15 * speaker) * k * time) / k for k in range(1, 12))
            level = 0.05 + 0.1 * np.abs(np.sin(2 * np.pi * (1.5 + 0.2 * number) * time))
            path = folder / f"{100 + speaker}" / "1" / f"{100 + speaker}-1-{number:04d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, level * (0.3 * tone + 0.1 * generator.normal(size=samples)), 16000)
    return folder


def tree(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "store"
    extract(Config(audio=corpus, codec="mel", out=out))
    return out


def test_frames_are_those_of_the_codec(corpus: Path, whole: Path) -> None:
    store = LatentStore.open(whole)
    codec = build_codec("mel")
    assert store.spec == codec.spec
    assert not set(map(store.speaker, store.ids("train"))) & set(map(store.speaker, store.ids("eval")))
    for name in [store.ids("train")[0], store.ids("eval")[-1]]:
        (path,) = corpus.rglob(f"{Path(name).name}.flac")
        sound = load_audio(path, 24000)
        expected = codec.encode(sound[None])[0].numpy()
        np.testing.assert_allclose(store.frames(name), expected, atol=0.02, rtol=2e-3)
        assert np.isfinite(store.energy(name)).all()


def test_energy_is_aligned_with_frames() -> None:
    samples = torch.cat([torch.zeros(100), torch.full((100,), 0.5)])
    np.testing.assert_allclose(frame_energy(samples, 4, 50.0), [-120, -120, -6.0206, -6.0206], atol=1e-3)


KILLER = """
import json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from arlat_data.extract import Config, extract
import arlat_data.codecs.mel, rich.progress, soundfile, zarr, torchaudio.functional
audio, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def attempt(path, delay):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        extract(Config(audio=audio, codec="mel", out=path))
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
start = time.monotonic()
assert attempt(out / "whole", None) == 0
whole = time.monotonic() - start
random.seed(0)
done, trial = 0, 0
while done < kills:
    store = out / f"trial{trial}"
    for _ in range(5):
        status = attempt(store, random.uniform(0.15, 1.0) * whole)
        done += status == -signal.SIGKILL
        if status == 0:
            break
    assert attempt(store, None) == 0
    trial += 1
print(json.dumps({"kills": done, "trials": trial}))
"""


def test_twenty_kills_leave_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, str(corpus), str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    count = json.loads(done.stdout.splitlines()[-1])
    assert count["kills"] >= 20
    expected = tree(tmp_path / "whole")
    for trial in range(count["trials"]):
        assert tree(tmp_path / f"trial{trial}") == expected


def test_several_workers_write_the_same_bytes(corpus: Path, whole: Path, tmp_path: Path) -> None:
    extract(Config(audio=corpus, codec="mel", out=tmp_path / "s", workers=2))
    assert tree(tmp_path / "s") == tree(whole)


def test_other_settings_and_a_second_writer_are_refused(corpus: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype: was 'float16', is 'float32'"):
        extract(Config(audio=corpus, codec="mel", out=whole, dtype="float32"))
    code = (
        "import sys, time; from pathlib import Path; from arlat_core.run import run_directory\n"
        "with run_directory(Path(sys.argv[1]), {}): print('in', flush=True); time.sleep(60)"
    )
    work = tmp_path / "s" / ".work"
    holder = subprocess.Popen([sys.executable, "-c", code, str(work)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="in use by process"):
            extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    finally:
        holder.kill()
        holder.wait()


def test_a_broken_shard_is_repaired_to_its_bytes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    extract(Config(audio=corpus, codec="mel", out=out))
    before = tree(out)
    file = out / "z" / "c" / "1" / "0"
    file.write_bytes(file.read_bytes()[:-7])
    assert verify([str(out)], "arlat data verify") == 1
    assert "shard 1" in capsys.readouterr().out
    assert verify([str(out), "--repair", "--audio", str(corpus)], "arlat data verify") == 0
    assert broken_shards(out) == {}
    assert tree(out) == before


def test_bad_files_are_listed_and_too_many_are_an_error(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "audio"
    for path in sorted(corpus.rglob("*.flac"))[:20]:
        (folder / path.relative_to(corpus)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(corpus)).write_bytes(path.read_bytes())
    (folder / "100" / "1" / "broken.flac").write_bytes(b"not audio")
    arguments = ["--audio", str(folder), "--codec", "mel", "--out", str(tmp_path / "s")]
    assert main(arguments, "arlat data extract") == 0
    assert "broken.flac" in capsys.readouterr().out
    assert [row["path"] for row in LatentStore.open(tmp_path / "s").skipped] == ["100/1/broken.flac"]
    assert main([*arguments, "--max-bad", "0.01"], "arlat data extract") == 2


def test_a_file_that_changes_after_planning_is_listed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arlat_data import extract as module

    real = module.load_audio

    def shorter(path: Path, rate: int) -> torch.Tensor:
        sound = real(path, rate)
        return sound[:-5] if path.name == "101-1-0002.flac" else sound

    monkeypatch.setattr(module, "load_audio", shorter)
    summary = extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    assert len(summary.skipped) == 1
    assert "when the lengths were planned" in summary.skipped[0][1]
    assert summary.utterances == 29
    store = LatentStore.open(tmp_path / "s")
    assert np.isfinite(store.load("train").z.numpy()).all()


def test_a_codec_that_does_not_decode_is_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arlat_data.codecs.mel import build

    codec = build_codec("mel")
    monkeypatch.setattr(type(codec), "decode", lambda self, z: torch.rand(len(z), z.shape[1] * 240) - 0.5)
    assert build is not None
    with pytest.raises(UserError, match="agreement"):
        extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
