"""What lies below a folder: audio candidates, their ids, and what could not be looked at."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from arlat_data.audio import check_regular
from arlat_data.containers import AudioError, looks_like_audio

SUFFIXES = frozenset(
    [
        ".wav",
        ".wave",
        ".flac",
        ".fla",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".w64",
        ".rf64",
        ".caf",
        ".sph",
        ".m4a",
        ".mp4",
        ".aac",
        ".wma",
        ".ape",
        ".wv",
        ".amr",
        ".webm",
        ".mka",
        ".ac3",
        ".spx",
        ".tta",
    ]
)


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not used, by its path below the corpus's folder, and why."""

    path: str
    reason: str


def walk(folder: Path) -> tuple[list[str], list[Skipped], int]:
    """Relative paths of all audio candidates, sorted; what could not be looked into; the number of other files."""
    found: list[str] = []
    skipped: list[Skipped] = []
    others = 0
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        relative, above = waiting.pop()
        try:
            status = os.stat(folder / relative)
            here = (status.st_dev, status.st_ino)
            if here in above:
                skipped.append(Skipped(printable(relative), "a link back to a folder above it"))
                continue
            with os.scandir(folder / relative) as listing:
                names = [entry.name for entry in listing]
        except OSError as error:
            skipped.append(Skipped(printable(relative) or ".", f"the folder cannot be read: {error.strerror}"))
            continue
        for name in names:
            inner, path = f"{relative}/{name}".lstrip("/"), folder / relative / name
            if name.startswith("."):
                others += 1
            elif path.is_dir():
                waiting.append((inner, above | {here}))
            elif path.suffix.lower() in SUFFIXES or looks_like_audio(path):
                found.append(inner)
            elif not os.path.exists(path):
                skipped.append(Skipped(printable(inner), "a dangling link"))
            else:
                others += 1
    return sorted(found, key=os.fsencode), skipped, others


def printable(name: str) -> str:
    """A path as valid Unicode without control characters; bytes that are none are written as \\xNN."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def make_ids(names: list[str]) -> list[str]:
    """Utterance ids: the relative path without its extension, with it where two files would share an id.

    >>> make_ids(["1/a.flac", "1/b.flac", "1/b.wav"])
    ['1/a', '1/b.flac', '1/b.wav']
    """
    whole = [printable(name) for name in names]
    ids = [str(PurePosixPath(name).with_suffix("")) for name in whole]
    while twice := {id for id, count in Counter(ids).items() if count > 1}:
        longer = [full if id in twice else id for full, id in zip(whole, ids, strict=True)]
        if longer == ids:  # names that differ only in bytes which `printable` spells alike
            hashes = [hashlib.sha256(os.fsencode(name)).hexdigest()[:8] for name in names]
            longer = [f"{id}-{h}" if id in twice else id for id, h in zip(ids, hashes, strict=True)]
        ids = longer
    return ids


def drop_twins(folder: Path, names: list[str], skipped: list[Skipped]) -> list[str]:
    """Keeps the first of the names that lead to one file: the same clip in two splits would leak."""
    first: dict[tuple[int, int], str] = {}
    kept = []
    for name in names:
        try:
            status = check_regular(folder / name)
        except AudioError as error:
            skipped.append(Skipped(printable(name), str(error)))
            continue
        other = first.setdefault((status.st_dev, status.st_ino), name)
        if other == name:
            kept.append(name)
        else:
            skipped.append(Skipped(printable(name), f"the same file as {printable(other)}"))
    return kept
