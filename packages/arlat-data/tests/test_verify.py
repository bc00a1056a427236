"""Verification and repair: every fault is named, and mended to the same bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from arlat_core.config import UserError
from arlat_data.extract import Config, extract
from arlat_data.verify import main as verify

Tree = Callable[[Path], dict[str, str]]


@pytest.mark.parametrize(
    "fault", ["missing", "empty", "truncated", "flipped", "manifest", "index", "moments", "metadata"]
)
def test_what_is_broken_is_repaired_to_its_bytes(
    fault: str, corpus: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Tree
) -> None:
    out = tmp_path / "s"
    shutil.copytree(whole, out)
    others = {"manifest": "manifest/shard-000001.json", "index": "speaker/c/0", "moments": "moments.safetensors"}
    name = (others | {"metadata": "energy/zarr.json"}).get(fault, "z/c/1/0")
    data = bytearray((out / name).read_bytes())
    if fault == "missing":
        (out / name).unlink()
    else:
        data[len(data) // 2] ^= 1
        (out / name).write_bytes({"empty": b"", "truncated": bytes(data[:-7])}.get(fault, bytes(data)))
    times = {file: file.stat().st_mtime_ns for file in out.rglob("z/c/*/0")}
    assert verify([str(out)], "arlat data verify") == 1
    printed = capsys.readouterr().out
    assert name in printed
    assert ("shard 1: " in printed) == (fault in ("missing", "empty", "truncated", "flipped", "manifest"))
    with pytest.raises(UserError, match="--audio"):
        verify([str(out), "--repair"], "arlat data verify")
    assert verify([str(out), "--repair", "--audio", str(corpus)], "arlat data verify") == 0
    assert tree(out) == tree(whole)
    untouched = {file for file, when in times.items() if file.stat().st_mtime_ns == when}
    assert len(untouched) >= len(times) - 1
    assert verify([str(out)], "arlat data verify") == 0


def test_a_broken_header_is_made_again_from_whole_shards(corpus: Path, whole: Path, tmp_path: Path, tree: Tree) -> None:
    out = tmp_path / "s"
    shutil.copytree(whole, out)
    (out / "store.json").write_bytes((whole / "store.json").read_bytes()[:100])
    with pytest.raises(UserError, match="Remove that file and run the command that made the store"):
        extract(Config(audio=corpus, codec="mel", out=out))
    (out / "store.json").unlink()
    with pytest.raises(UserError, match="dtype: was 'float16', is 'float32'"):
        extract(Config(audio=corpus, codec="mel", out=out, dtype="float32"))
    times = {file: file.stat().st_mtime_ns for file in out.rglob("z/c/*/0")}
    extract(Config(audio=corpus, codec="mel", out=out))
    assert tree(out) == tree(whole)
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_repair_from_other_audio_is_refused_and_harms_nothing(
    corpus: Path, whole: Path, tmp_path: Path, tree: Tree, make_corpus: Callable[[Path, int, int], Path]
) -> None:
    out = tmp_path / "s"
    shutil.copytree(whole, out)
    (out / "z" / "c" / "1" / "0").write_bytes(b"")
    before = tree(out)
    other = make_corpus(tmp_path / "other", 3, 2)
    with pytest.raises(UserError, match="corpus"):
        verify([str(out), "--repair", "--audio", str(other)], "arlat data verify")
    assert tree(out) == before
