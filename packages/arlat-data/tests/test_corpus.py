"""Folders to corpora: speakers, splits, ids, and a reason for everything that is not used."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from arlat_core.config import UserError
from arlat_data.corpus import Corpus, scan
from arlat_data.splits import assign, choose, guess_speaker
from arlat_data.tree import make_ids


@pytest.fixture(scope="module")
def shared() -> Path:
    folder = Path(os.environ.get("ARLAT_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder / "data"


def clip(path: Path, seconds: float = 0.5, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16000))
    soundfile.write(os.fsencode(path), samples, 16000, format="FLAC")
    return path


def tree(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        clip(folder / name, seed=i)
    return folder


def reasons(corpus: Corpus) -> dict[str, str]:
    return {skip.path: skip.reason for skip in corpus.skipped}


def speakers(corpus: Corpus) -> dict[str, str]:
    return {utterance.id: utterance.speaker for utterance in corpus.utterances}


def test_the_odd_folder_is_extracted_or_listed(shared: Path) -> None:
    corpus = scan(shared / "odd")
    files = {path.name for path in (shared / "odd").iterdir()} - {"ODD.md"}
    used = {utterance.path.name for utterance in corpus.utterances}
    assert used | reasons(corpus).keys() == files
    assert not used & reasons(corpus).keys()
    assert corpus.others == 1
    assert len(used) == 33
    assert {"short_0p05s.flac", "short_1sample.wav"} <= reasons(corpus).keys()
    assert "0.05 s, where 0.1 s are needed" in reasons(corpus)["short_0p05s.flac"]
    assert "each counts as a speaker of its own" in corpus.notes[0]
    assert scan(shared / "odd") == corpus
    short = scan(shared / "odd", min_seconds=0)
    assert {u.path.name for u in short.utterances} - used == {"short_0p05s.flac", "short_1sample.wav"}


def test_real_speech_has_its_own_lists(shared: Path) -> None:
    corpus = scan(shared / "speech", decode=False)
    assert (len(corpus.utterances), corpus.skipped, corpus.notes) == (366, (), ())
    assert (len(corpus.speakers("train")), len(corpus.speakers("eval"))) == (210, 33)
    assert sum(u.split == "eval" for u in corpus.utterances) == 70
    by_id = {u.id: u for u in corpus.utterances}
    assert by_id["60/121082/60-121082-0000"].speaker == "60"
    assert by_id["60/121082/60-121082-0000"].split == "eval"
    few = scan(shared / "speech", max_speakers=12)
    assert (len(few.speakers("train")), len(few.speakers("eval"))) == (9, 3)
    assert {u.id for u in few.utterances} < by_id.keys()
    assert all(replace(u, note="") == by_id[u.id] for u in few.utterances)
    assert scan(shared / "speech", max_speakers=12).hash == few.hash
    assert scan(shared / "speech", max_speakers=12, seed=1).hash != few.hash


def test_guessed_speakers(tmp_path: Path) -> None:
    tree(tmp_path, "dev-clean/84/12/84-12-0001.flac", "wav48/p225/p225_001.flac", "anna/monday/3.flac", "loose.flac")
    corpus = scan(tmp_path)
    assert speakers(corpus) == {
        "dev-clean/84/12/84-12-0001": "84",
        "wav48/p225/p225_001": "p225",
        "anna/monday/3": "anna",
        "loose": "loose",
    }
    assert corpus.notes[0].startswith("1 files stand directly")
    assert guess_speaker("19/198/19-198-0000.flac") == "19"


def test_a_speaker_pattern(tmp_path: Path) -> None:
    tree(tmp_path, "ann_1.flac", "ann_2.flac", "bob_1.flac", "noise.flac")
    corpus = scan(tmp_path, r"^(?P<speaker>[a-z]+)_\d")
    assert speakers(corpus) == {"ann_1": "ann", "ann_2": "ann", "bob_1": "bob"}
    assert reasons(corpus) == {"noise.flac": "the speaker pattern does not match"}
    assert corpus.notes == ()
    for pattern, message in {"(": "no regular expression", "([a-z]+)_": "no group named speaker"}.items():
        with pytest.raises(UserError, match=message):
            scan(tmp_path, pattern)


def test_splits_are_by_speaker_and_stand_when_files_come(tmp_path: Path) -> None:
    names = [f"s{i:02d}/{j}.flac" for i in range(20) for j in range(2)]
    tree(tmp_path, *names)
    before = scan(tmp_path)
    sides = {u.speaker: u.split for u in before.utterances}
    for utterance in before.utterances:
        assert utterance.split == sides[utterance.speaker]
    assert set(sides.values()) == {"train", "eval"}
    tree(tmp_path, "s00/new.flac", "t99/0.flac")
    after = {u.speaker: u.split for u in scan(tmp_path).utterances}
    assert {name: after[name] for name in sides} == sides
    other = {u.speaker: u.split for u in scan(tmp_path, seed=1).utterances}
    assert other != after


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [2, 3, 10, 200])
def test_assign_keeps_both_sides(count: int, seed: int) -> None:
    names = [f"speaker {i}" for i in range(count)]
    sides = assign(names, seed, 0.15)
    held = [name for name in names if sides[name] == "eval"]
    assert max(1, round(0.15 * count / 2)) <= len(held) <= min(count - 1, max(1, 0.3 * count + 1))
    assert len(held) == 1 or count > 3
    assert assign(reversed(names), seed, 0.15) == sides
    if count == 200:  # a fifth of the speakers leaves, nobody moves
        fewer = assign(names[:160], seed, 0.15)
        assert fewer == {name: sides[name] for name in names[:160]}


def test_choose_is_a_subset_with_both_sides() -> None:
    sides = assign([str(i) for i in range(100)], 0, 0.15)
    small, large = choose(sides, 8, 0), choose(sides, 40, 0)
    assert len(small) == 8
    assert small < large
    assert sum(sides[name] == "eval" for name in small) == 2
    assert choose(sides, 2, 0) == choose(dict(reversed(sides.items())), 2, 0)
    assert len(choose(sides, 1000, 0)) == 100
    assert {sides[name] for name in choose(sides, 2, 5)} == {"train", "eval"}
    with pytest.raises(UserError, match="at least 2"):
        choose(sides, 1, 0)


def test_lists(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.flac", "b/1.flac", "c/ä.flac", "d/1.flac")
    (tmp_path / "train.txt").write_text("\ufeff# mine\na/1.flac\r\n\nc/a\u0308\ngone/1.flac\n", encoding="utf-8")
    (tmp_path / "eval.txt").write_text("./b/1.flac\n")
    corpus = scan(tmp_path)
    assert {u.id: u.split for u in corpus.utterances} == {"a/1": "train", "b/1": "eval", "c/ä": "train"}
    assert reasons(corpus) == {
        "d/1.flac": "in neither train.txt nor eval.txt",
        "gone/1.flac": "listed in train.txt, but not there",
    }


@pytest.mark.parametrize(
    ("train", "evaluation", "message"),
    [
        ("a/1.flac\nb/1.flac\n", "b/1.flac\n", "stands in both"),
        ("a/1.flac\n", "a/2.flac\nb/1.flac\n", "not speaker-disjoint"),
        ("a/1.flac\n", None, "but no eval.txt"),
        ("hello there\n", "b/1|what she said\n", "No line of"),
        ("a/1.flac\n", "b/9.flac\n", "in the eval split"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, train: str, evaluation: str | None, message: str) -> None:
    tree(tmp_path, "a/1.flac", "a/2.flac", "b/1.flac")
    (tmp_path / "train.txt").write_text(train)
    if evaluation is not None:
        (tmp_path / "eval.txt").write_text(evaluation)
    with pytest.raises(UserError, match=message):
        scan(tmp_path)


def test_names_links_and_loops(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    odd = ["anna/naïve 音声.flac", 'bob/it\'s "$HOME" `x`;.flac', os.fsdecode(b"carl/caf\xe9.flac"), "dora/a\nb.flac"]
    tree(folder, *odd)
    outside = clip(tmp_path / "elsewhere/erik/1.flac", seed=9)
    (folder / "erik").symlink_to(outside.parent)  # a linked folder is followed
    (folder / "anna/again.flac").symlink_to(folder / "anna/naïve 音声.flac")
    (folder / "bob/gone.flac").symlink_to(folder / "nowhere.flac")
    (folder / "bob/gone").symlink_to(folder / "nowhere")
    (folder / "carl/up").symlink_to(folder)
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("no audio")
    os.mkfifo(folder / "dora/pipe.wav")
    corpus = scan(folder)
    ids = {u.id for u in corpus.utterances}
    assert ids == {"anna/again", 'bob/it\'s "$HOME" `x`;', "carl/caf\\xe9", "dora/a\\nb", "erik/1"}
    for text in ids:
        text.encode("utf-8")
    assert reasons(corpus) == {
        "anna/naïve 音声.flac": "the same file as anna/again.flac",
        "bob/gone": "a dangling link",
        "bob/gone.flac": "a dangling link",
        "carl/up": "a link back to a folder above it",
        "dora/pipe.wav": "not a regular file",
    }
    assert corpus.others == 2
    assert all(u.path.is_file() and u.samples == 8000 and u.rate == 16000 for u in corpus.utterances)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.flac", "b/1.flac", "c/1.flac")
    (tmp_path / "c").chmod(0)
    plain = os.scandir

    def scandir(path: Path) -> object:  # a superuser may look into every folder
        if Path(path).name == "c":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    try:
        assert reasons(scan(tmp_path)) == {"c": "the folder cannot be read: Permission denied"}
    finally:
        (tmp_path / "c").chmod(0o755)


def test_ids_are_unique() -> None:
    names = ["a/1.flac", "a/1.wav", "a/1.wav.flac", "b/x.y.flac", "b/x.z.flac", os.fsdecode(b"c\xff.wav"), "c\\xff.wav"]
    ids = make_ids(names)
    assert len(set(ids)) == len(names)
    assert ids[:5] == ["a/1.flac", "a/1.wav", "a/1.wav.flac", "b/x.y", "b/x.z"]


def test_audio_without_its_suffix_is_found(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.flac", "b/1.flac")
    shutil.copy(tmp_path / "a/1.flac", tmp_path / "b/unnamed")
    (tmp_path / "b/page.html").write_text("<html>")
    corpus = scan(tmp_path)
    assert [u.id for u in corpus.utterances] == ["a/1", "b/1", "b/unnamed"]
    assert corpus.others == 1


def test_hash(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.flac", "b/1.flac")
    corpus = scan(tmp_path)
    assert scan(tmp_path).hash == corpus.hash
    assert scan(tmp_path, decode=False).hash == corpus.hash
    moved = tmp_path.parent / "moved"
    shutil.copytree(tmp_path, moved)
    assert scan(moved).hash == corpus.hash
    clip(tmp_path / "b/1.flac", seconds=0.6)
    assert scan(tmp_path).hash != corpus.hash


def test_what_cannot_be_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        scan(tmp_path / "none")
    with pytest.raises(UserError, match="holds no audio file"):
        scan(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/text.flac").write_text("text")
    with pytest.raises(UserError, match=r"x/text\.flac: not readable as audio"):
        scan(tmp_path)
    with pytest.raises(UserError, match="eval_fraction is 1"):
        scan(tmp_path, eval_fraction=1)
    tree(tmp_path, "x/1.flac", "x/2.flac")
    with pytest.raises(UserError, match="belong to one speaker, 'x'"):
        scan(tmp_path)


def test_progress_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, "a/1.flac", "b/1.flac")
    scan(tmp_path, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Reading audio" in err
