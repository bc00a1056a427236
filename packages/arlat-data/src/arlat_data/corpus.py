"""A folder of speech to a corpus: what is usable, who speaks, which split; and what is not usable, with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from pydantic import Field

from arlat_data.audio import AudioError, audio_info, read_audio
from arlat_data.splits import SPLITS, Split, assign, choose, compile_pattern, guess_speaker, normal, read_lists
from arlat_data.tree import Skipped, drop_twins, make_ids, printable, walk

__all__ = ["Corpus", "Skipped", "Speech", "Utterance", "scan"]


@dataclass(frozen=True)
class Utterance:
    """One usable file: `samples` per channel at its own `rate` in Hz, `size` in bytes, `note` as `Audio.note`."""

    id: str
    path: Path
    speaker: str
    split: Split
    samples: int
    rate: int
    size: int = 0
    note: str = ""


@dataclass(frozen=True)
class Corpus:
    """What `scan` found, sorted by id; `others` counts files that are no audio, `notes` are sentences for the user."""

    folder: Path
    utterances: tuple[Utterance, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    others: int = 0

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits over ids, speakers, splits, lengths and sizes, without reading the audio again."""
        rows = [[u.id, u.speaker, u.split, u.samples, u.rate, u.size] for u in self.utterances]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def speakers(self, split: Split) -> list[str]:
        """The speakers of one split, sorted."""
        return sorted({u.speaker for u in self.utterances if u.split == split})


@dataclass(frozen=True)
class File:
    """A candidate before it has been read: relative path as the system spells it, id, speaker, side of its list."""

    relative: str
    id: str
    speaker: str = ""
    side: Split | None = None


def scan(
    folder: Path,
    speaker_pattern: str | None = None,
    seed: int = 0,
    *,
    eval_fraction: float = 0.15,
    min_seconds: float = 0.1,
    max_speakers: int | None = None,
    decode: bool = True,
    progress: bool = False,
) -> Corpus:
    """Finds the speech below `folder`, and decodes each file once so that what is listed as usable is usable.

    Speaker: the group `speaker` of `speaker_pattern`, searched in the relative path; else `guess_speaker`; a file
    directly in the folder counts as a speaker of its own, which a note tells. Split: the folder's train.txt and
    eval.txt if it has them, else `assign`. `max_speakers` takes a subset by `seed`. With `decode=False` headers are
    believed (faster; silence, clipping and damage are then found only by `read_audio`).

    Links are followed, a file that is reached twice is used once. Names that begin with a dot are not looked at.
    Raises UserError when nothing is usable, or when there are not two speakers to split.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the folder that holds the audio files.")
    if not 0 < eval_fraction < 1:
        raise UserError(f"eval_fraction is {eval_fraction}; it must lie between 0 and 1, for instance 0.15.")
    pattern = compile_pattern(speaker_pattern) if speaker_pattern is not None else None
    lists = read_lists(folder)
    names, skipped, others = walk(folder)
    names = drop_twins(folder, names, skipped)
    files = [File(name, id) for name, id in zip(names, make_ids(names), strict=True)]
    files = with_speakers(files, pattern, skipped)
    if lists is not None:
        files = with_sides(folder, files, lists, skipped)
    notes = flat_note(files) if pattern is None else []
    if max_speakers is not None and files:
        kept = choose(sides_of(files, seed, eval_fraction, folder), max_speakers, seed)
        notes.append(f"{len(kept)} of {len({file.speaker for file in files})} speakers are used (max_speakers).")
        files = [file for file in files if file.speaker in kept]
    usable = read_all(folder, files, reader(min_seconds, decode), progress, skipped)
    if not usable:
        raise UserError(nothing_usable(folder, skipped, others))
    sides = sides_of([file for file, _ in usable], seed, eval_fraction, folder)
    utterances = [replace(utterance, split=sides[file.speaker]) for file, utterance in usable]
    return Corpus(
        folder,
        tuple(sorted(utterances, key=lambda utterance: utterance.id)),
        tuple(sorted(skipped, key=lambda skip: (skip.path, skip.reason))),
        tuple(notes),
        others,
    )


class Speech(BaseConfig):
    """Which speech, and how its speakers are split: the same settings give the same split to every command."""

    audio: Path
    """Folder of speech: SPEAKER/…/file, or any folder with --speaker-pattern."""
    seed: int = Field(0, ge=0)
    """Seed of the speaker split."""
    eval_fraction: float = Field(0.15, gt=0, lt=1)
    """Part of the speakers held out, where the folder has no train.txt and eval.txt."""
    speaker_pattern: str | None = None
    """Regular expression with a group `speaker`, searched in the relative path."""
    max_speakers: int | None = Field(None, gt=1)
    """Use so many speakers only."""
    min_seconds: float = Field(0.1, gt=0)
    """Shorter files are listed, not used."""

    def scan(self) -> Corpus:
        """`scan` with these settings, with a progress bar on a terminal."""
        return scan(
            self.audio,
            self.speaker_pattern,
            self.seed,
            eval_fraction=self.eval_fraction,
            min_seconds=self.min_seconds,
            max_speakers=self.max_speakers,
            progress=sys.stderr.isatty(),
        )


def left_out(skipped: Iterable[tuple[str, str]]) -> str:
    """What was left out and why, a file a line; empty where nothing was.

    >>> print(left_out([("a.wav", "it is silent")]), end="")
    1 file was left out:
      a.wav: it is silent
    """
    rows = [f"  {path}: {reason}\n" for path, reason in skipped]
    if not rows:
        return ""
    return f"{len(rows)} {'file was' if len(rows) == 1 else 'files were'} left out:\n" + "".join(rows)


def with_speakers(files: list[File], pattern: re.Pattern[str] | None, skipped: list[Skipped]) -> list[File]:
    """Names each file's speaker, by the pattern or by `guess_speaker`."""
    named = []
    for file in files:
        shown = printable(file.relative)
        if pattern is None:
            speaker = guess_speaker(shown) or file.id
        else:
            match = pattern.search(shown)
            speaker = (match["speaker"] or "") if match else ""
        if speaker:
            named.append(replace(file, speaker=speaker))
        else:
            skipped.append(Skipped(shown, "the speaker pattern does not match"))
    return named


def with_sides(folder: Path, files: list[File], lists: dict[str, Split], skipped: list[Skipped]) -> list[File]:
    """Gives each file the side that the folder's lists say; lists what stands in no list, or in a list but not there."""
    unseen = dict(lists)
    sided = []
    for file in files:
        shown = normal(printable(file.relative))
        bare = str(PurePosixPath(shown).with_suffix(""))
        key = shown if shown in lists else bare
        if key in lists:
            sided.append(replace(file, side=lists[key]))
            unseen.pop(key, None)
        else:
            skipped.append(Skipped(printable(file.relative), "in neither train.txt nor eval.txt"))
    if not sided and files:
        raise UserError(
            f"No line of {folder}/train.txt or eval.txt is the path of an audio file below {folder} (the first line is "
            f"{next(iter(lists), '')!r}). Write one relative path a line, or take the lists away."
        )
    known = {skip.path for skip in skipped}
    gone = (name for name in unseen if name not in known)
    skipped.extend(Skipped(name, f"listed in {lists[name]}.txt, but not there") for name in gone)
    return sided


def sides_of(files: list[File], seed: int, eval_fraction: float, folder: Path) -> dict[str, Split]:
    """Speaker → side, from the lists where files have one. Raises UserError unless both sides have a speaker."""
    if files and files[0].side is not None:
        sides: dict[str, Split] = {}
        for file in files:
            if file.side is not None and sides.setdefault(file.speaker, file.side) != file.side:
                raise UserError(
                    f"The speaker {file.speaker!r} is in both train.txt and eval.txt of {folder} ({file.relative}), so the "
                    "split is not speaker-disjoint. Mend the lists, or give a --speaker-pattern that tells who speaks."
                )
    else:
        speakers = {file.speaker for file in files}
        if len(speakers) == 1:
            raise UserError(
                f"All {len(files)} usable files of {folder} belong to one speaker, {next(iter(speakers))!r}, and a split "
                "by speaker needs two. If there are more, give a --speaker-pattern such as '^[^/]+/(?P<speaker>[^/]+)/'."
            )
        sides = assign(speakers, seed, eval_fraction)
    for side in SPLITS:
        if side not in sides.values():
            raise UserError(
                f"No usable file of {folder} is in the {side} split. See the skipped files, or mend the lists."
            )
    return sides


def flat_note(files: list[File]) -> list[str]:
    """Tells that files outside any speaker's folder count as speakers of their own."""
    flat = sum("/" not in file.relative for file in files)
    if not flat:
        return []
    return [
        f"{flat} files stand directly in the folder, and each counts as a speaker of its own. "
        "Where one voice speaks in several, give --speaker-pattern, or the split leaks."
    ]


def read_all(
    folder: Path, files: list[File], read: Callable[[Path, File], Utterance], progress: bool, skipped: list[Skipped]
) -> list[tuple[File, Utterance]]:
    """Reads all files on a few threads (decoding frees the interpreter), keeping the order."""

    def attempt(file: File) -> Utterance | str:
        try:
            return read(folder, file)
        except AudioError as error:
            return str(error)

    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    usable: list[tuple[File, Utterance]] = []
    try:
        with bar(len(files), progress) as advance:
            for file, outcome in zip(files, pool.map(attempt, files), strict=True):
                if isinstance(outcome, str):
                    skipped.append(Skipped(printable(file.relative), outcome))
                else:
                    usable.append((file, outcome))
                advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return usable


def reader(min_seconds: float, decode: bool) -> Callable[[Path, File], Utterance]:
    """The function that turns a candidate into an utterance, or raises AudioError."""

    def read(folder: Path, file: File) -> Utterance:
        path = folder / file.relative
        if decode:
            audio = read_audio(path)
            samples, rate, note = len(audio.samples), audio.rate, audio.note
        else:
            info = audio_info(path)
            samples, rate, note = info.frames, info.rate, ""
        if samples < min_seconds * rate or samples == 0:
            raise AudioError(
                f"too short: {samples} samples, {samples / rate:.3g} s, where {min_seconds:g} s are needed"
            )
        return Utterance(file.id, path, file.speaker, "train", samples, rate, path.stat().st_size, note)

    return read


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, or nothing; yields what moves it on by one."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Reading audio", total=total)
        yield lambda: progress.advance(task)


def nothing_usable(folder: Path, skipped: list[Skipped], others: int) -> str:
    """The sentence for a folder without one usable file, with the first reasons."""
    if not skipped:
        return f"{folder} holds no audio file ({others} other files). Give a folder with WAV, FLAC, Ogg, Opus or MP3 files."
    shown = "".join(f"\n  {skip.path}: {skip.reason}" for skip in skipped[:5])
    more = f"\n  and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"None of the audio files in {folder} is usable:{shown}{more}"
