"""The built-in voices: speech-like, distinct, the same bytes every time."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from arlat_core.config import UserError
from arlat_data import voices
from arlat_data.audio import read_audio
from arlat_data.corpus import scan
from arlat_data.voices import VARIANTS, choose_voices, make_voices, sentences

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="arlat-data[voices] is not installed"
)


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip("arlat-data[voices] is not installed")
    return make_voices(tmp_path_factory.mktemp("voices") / "made", speakers=6, utterances=3)


def test_the_corpus(made: Path) -> None:
    corpus = scan(made)
    assert corpus.skipped == ()
    assert len(corpus.utterances) == 18
    assert (corpus.speakers("train"), corpus.speakers("eval")) == (["v01", "v02", "v03", "v05", "v06"], ["v04"])
    assert corpus.utterances[0].id == "v01/1/v01-1-0000"
    for utterance in corpus.utterances:
        assert utterance.rate == 22050
        assert 3 <= utterance.samples / utterance.rate <= 8
        assert utterance.note == ""
    readme = (made / "README.txt").read_text()
    assert "stand-in" in readme
    assert "no person speaks" in readme
    spoken = (made / "v01/1/v01-1.trans.txt").read_text().splitlines()
    assert [line.split(" ", 1)[0] for line in spoken] == ["v01-1-0000", "v01-1-0001", "v01-1-0002"]
    assert spoken[0].split(" ", 1)[1] in sentences()


def test_no_frame_is_digital_silence_and_levels_are_those_asked_for(made: Path) -> None:
    voice = choose_voices(1, 0)[0]
    samples = read_audio(made / "v01/1/v01-1-0000.flac").samples
    frames = samples[: len(samples) // 256 * 256].reshape(-1, 256)
    assert (frames.std(dim=1) > 0.3 * 10 ** (voice.noise_db / 20)).all()
    assert 20 * torch.log10(samples.square().mean().sqrt()) == pytest.approx(voice.level_db, abs=1.5)
    assert samples.abs().max() < 0.96


def test_the_same_bytes_whatever_came_before(made: Path, tmp_path: Path) -> None:
    again = make_voices(tmp_path / "again", speakers=6, utterances=3)
    assert bytes_of(again) == bytes_of(made)
    fewer = bytes_of(make_voices(tmp_path / "fewer", speakers=2, utterances=3))
    same = {name: digest for name, digest in fewer.items() if name.endswith((".flac", ".trans.txt"))}
    assert same.items() <= bytes_of(made).items()
    other = bytes_of(make_voices(tmp_path / "other", speakers=2, utterances=3, seed=1))
    assert not {other[name] for name in same} & set(same.values())


def test_breathy_voices_do_not_change_with_the_clock(made: Path) -> None:
    """espeak-ng seeds the breath of some variants with the time of day unless it is told otherwise."""
    library, data = voices.find_espeak()
    voice = voices.Voice("x", "en-us", "f5", 170, 50, 50, -24.0, -60.0)
    import time

    first = voices.synthesise(voice, sentences()[:2], library, data)
    time.sleep(1.1)
    second = voices.synthesise(voice, sentences()[:2], library, data)
    assert [clip.tobytes() for clip in first] == [clip.tobytes() for clip in second]


def test_what_is_there_is_kept_or_refused(made: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.flac")}
    assert make_voices(made, speakers=6, utterances=3) == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.flac")} == before
    with pytest.raises(UserError, match="other settings"):
        make_voices(made, speakers=6, utterances=3, seed=1)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no voices"):
        make_voices(tmp_path, speakers=2, utterances=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    hurt = make_voices(tmp_path / "hurt", speakers=2, utterances=1)
    (hurt / "v01/1/v01-1-0000.flac").write_bytes(b"")
    with pytest.raises(UserError, match="1 files are gone or changed"):
        make_voices(hurt, speakers=2, utterances=1)


def test_a_failure_leaves_nothing(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "VARIANTS", tuple(f"nobody{i}" for i in range(9)))
    monkeypatch.setattr(voices, "ACCENTS", ("xx-nowhere",))
    with pytest.raises(UserError, match="espeak-ng failed"):
        make_voices(tmp_path / "out", speakers=2, utterances=1)
    assert list(tmp_path.iterdir()) == []


@needs_espeak
def test_every_variant_is_there() -> None:
    """espeak-ng takes an unknown variant without a word and speaks as the plain voice."""
    folder = Path(voices.find_espeak()[1]) / "voices/!v"
    assert {name for name in VARIANTS if not (folder / name).is_file()} == set()
    assert len(set(VARIANTS)) == len(VARIANTS)


def test_voices_differ_and_do_not_depend_on_their_number() -> None:
    many = choose_voices(24, 0)
    assert choose_voices(8, 0) == many[:8]
    assert len({voice.variant for voice in many}) == 24
    assert len({(voice.rate, voice.pitch, voice.range) for voice in many}) == 24


def test_sentences() -> None:
    lines = sentences()
    assert len(set(lines)) == len(lines) >= 60
    assert all(line.isascii() and line[-1] in ".?" for line in lines)


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    for speakers, utterances in ((1, 2), (len(VARIANTS) + 1, 2), (2, 0), (2, 1000)):
        with pytest.raises(UserError, match="cannot be made"):
            make_voices(tmp_path / "out", speakers, utterances)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"arlat-data\[voices\]"):
        make_voices(tmp_path / "out", 2, 1)


def test_the_manifest_is_last(made: Path) -> None:
    found = json.loads((made / voices.FINISHED).read_text())
    assert len(found["files"]) == 18
    assert found["settings"]["seed"] == 0
