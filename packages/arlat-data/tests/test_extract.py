"""Extraction: the same bytes after any kill, nothing silently wrong, everything left out is named."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from arlat_core.config import UserError
from arlat_data import encode
from arlat_data.codecs import build_codec
from arlat_data.codecs.mel import Mel
from arlat_data.encode import frame_energy, load_audio
from arlat_data.extract import Config, extract, main
from arlat_data.show import codecs
from arlat_data.show import main as show
from arlat_data.store import LatentStore

Tree = Callable[[Path], dict[str, str]]


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
def die_at(rename):
    real, count = os.replace, [0]
    def replace(*names):
        count[0] += 1
        if count[0] == rename:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*names)
    os.replace = replace
def attempt(path, delay, rename=0):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        die_at(rename)
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
    for _ in range(5):  # at any time, or just before a file gets its final name
        at = random.randrange(1, 40)
        status = attempt(store, random.uniform(0.15, 1.0) * whole) if random.random() < 0.5 else attempt(store, None, at)
        done += status == -signal.SIGKILL
        if status == 0:
            break
    assert attempt(store, None) == 0
    trial += 1
print(json.dumps({"kills": done, "trials": trial}))
"""


def test_twenty_kills_leave_the_same_bytes(corpus: Path, tmp_path: Path, tree: Tree) -> None:
    command = [sys.executable, "-c", KILLER, str(corpus), str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    count = json.loads(done.stdout.splitlines()[-1])
    assert count["kills"] >= 20
    expected = tree(tmp_path / "whole")
    for trial in range(count["trials"]):
        assert tree(tmp_path / f"trial{trial}") == expected


def test_several_workers_write_the_same_bytes(corpus: Path, whole: Path, tmp_path: Path, tree: Tree) -> None:
    extract(Config(audio=corpus, codec="mel", out=tmp_path / "s", workers=2))
    assert tree(tmp_path / "s") == tree(whole)


def test_the_number_of_threads_does_not_change_the_bytes(corpus: Path, whole: Path, tmp_path: Path, tree: Tree) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3 if before != 3 else 2)
    try:
        extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    finally:
        torch.set_num_threads(before)
    assert tree(tmp_path / "s") == tree(whole)


def test_a_batch_gives_the_frames_of_single_files(corpus: Path, tmp_path: Path) -> None:
    single, batched = (
        Config(audio=corpus, codec="mel", out=tmp_path / str(seconds), dtype="float32", batch_seconds=seconds)
        for seconds in (0, 20)
    )
    assert extract(single).frames == extract(batched).frames
    one, other = LatentStore.open(single.out), LatentStore.open(batched.out)
    for item in one.items:
        np.testing.assert_allclose(
            other.frames(item.id), one.frames(item.id), atol=1e-4
        )  # ln of magnitudes: 1e-5 of them
        np.testing.assert_array_equal(other.energy(item.id), one.energy(item.id))


ORPHANS = """
import sys, torch
from pathlib import Path
from arlat_data.extract import Config, extract
if __name__ == "__main__":
    extract(Config(audio=Path(sys.argv[1]), codec="mel", out=Path(sys.argv[2]), workers=2))
"""


def test_workers_end_with_the_process_that_started_them(corpus: Path, whole: Path, tmp_path: Path, tree: Tree) -> None:
    script = tmp_path / "run.py"
    script.write_text(ORPHANS)
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([sys.executable, str(script), str(corpus), str(tmp_path / "s")], stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "s" / "manifest").exists() and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        children = psutil.Process(driver.pid).children(recursive=True)
        assert len(children) >= 2, (tmp_path / "log").read_text()
    finally:
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert not (tmp_path / "s" / "store.json").exists()
    extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    assert tree(tmp_path / "s") == tree(whole)


def test_other_settings_are_refused(
    corpus: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    with pytest.raises(UserError, match="dtype: was 'float16', is 'float32'"):
        extract(Config(audio=corpus, codec="mel", out=whole, dtype="float32"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr("arlat_data.store_writer.training_moments", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(Config(audio=corpus, codec="mel", out=out))
    with pytest.raises(UserError, match="seed: was 0, is 1"):
        extract(Config(audio=corpus, codec="mel", out=out, seed=1))
    extract(Config(audio=corpus, codec="mel", out=out))
    assert tree(out) == tree(whole)


def test_a_second_extractor_is_refused(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from arlat_data.store_writer import claim\n"
        "with claim(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    finally:
        holder.kill()
        holder.wait()
    extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))  # the lock of a dead process holds nobody


def test_a_full_disk_is_told_and_the_same_command_goes_on(
    corpus: Path, whole: Path, tmp_path: Path, tree: Tree
) -> None:
    out = tmp_path / "s"
    shard = max(file.stat().st_size for file in (whole / "z").rglob("0"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (shard // 2, hard))
    try:
        with pytest.raises(UserError, match=r"/s cannot be written: File too large\. Make room"):
            extract(Config(audio=corpus, codec="mel", out=out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(UserError, match="unfinished"):
        LatentStore.open(out)
    extract(Config(audio=corpus, codec="mel", out=out))
    assert tree(out) == tree(whole)


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
    real = encode.load_audio

    def shorter(path: Path, rate: int) -> torch.Tensor:
        sound = real(path, rate)
        return sound[:-5] if path.name == "101-1-0002.flac" else sound

    monkeypatch.setattr(encode, "load_audio", shorter)
    summary = extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    assert len(summary.skipped) == 1
    assert "when the lengths were planned" in summary.skipped[0][1]
    assert summary.utterances == 29
    store = LatentStore.open(tmp_path / "s")
    assert np.isfinite(store.load("train").z.numpy()).all()


@pytest.mark.parametrize(
    ("decoded", "message"),
    [
        (lambda z: torch.rand(len(z), z.shape[1] * 240) - 0.5, "agreement"),
        (lambda z: torch.zeros(len(z), z.shape[1] * 120), "promised audio"),
        (lambda z: torch.full((len(z), z.shape[1] * 240), torch.nan), "not finite"),
    ],
)
def test_a_codec_that_does_not_decode_is_refused(
    decoded: Callable[[torch.Tensor], torch.Tensor],
    message: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Mel, "decode", lambda self, z: decoded(z))
    with pytest.raises(UserError, match=message):
        extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_latents_that_are_not_finite_are_listed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Mel.encode, []

    def spoilt(self: Mel, audio: torch.Tensor) -> torch.Tensor:
        calls.append(len(audio))
        z = real(self, audio)
        return torch.full_like(z, torch.nan) if len(calls) == 9 else z

    monkeypatch.setattr(Mel, "encode", spoilt)
    summary = extract(Config(audio=corpus, codec="mel", out=tmp_path / "s"))
    assert len(summary.skipped) == 1
    assert "latents that are not finite" in summary.skipped[0][1]
    path, store = summary.skipped[0][0], LatentStore.open(tmp_path / "s")
    assert (corpus / path).is_file()
    assert path.removesuffix(".flac") not in {item.id for item in store.items}
    assert np.isfinite(store.load("train").z.numpy()).all()
    assert np.isfinite(store.load("eval").z.numpy()).all()


def test_what_a_store_holds_is_shown(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show([str(whole)], "arlat data show") == 0
    printed = capsys.readouterr().out
    assert "D = 80 at 100 Hz" in printed
    assert "train: 5 speakers, 25 utterances" in printed
    assert codecs([], "arlat data codecs") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"mel", "mimi", "lyra", "stack"} <= set(names)
