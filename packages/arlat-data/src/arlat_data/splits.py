"""Who speaks, and which side of the speaker-disjoint split they are on."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from arlat_core.config import UserError

Split = Literal["train", "eval"]
SPLITS: tuple[Split, Split] = ("train", "eval")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compiles a speaker pattern, which must have the named group `speaker`."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"The speaker pattern {pattern!r} is no regular expression: {error}.") from error
    if "speaker" not in compiled.groupindex:
        raise UserError(
            f"The speaker pattern {pattern!r} has no group named speaker. Write e.g. '(?P<speaker>[^_/]+)_[^/]*$', "
            "which is searched in each file's path below the folder."
        )
    return compiled


def guess_speaker(relative: str) -> str | None:
    """Guesses a file's speaker from its path, None for a file that stands directly in the folder.

    The nearest folder whose name, followed by `-` or `_`, begins the file's name; else the first folder.

    >>> guess_speaker("LibriSpeech/dev-clean/84/121123/84-121123-0001.flac"), guess_speaker("anna/monday/3.wav")
    ('84', 'anna')
    """
    *folders, name = PurePosixPath(relative).parts
    for folder in reversed(folders):
        if name.startswith((f"{folder}-", f"{folder}_")):
            return folder
    return folders[0] if folders else None


def draw(seed: int, purpose: str, speaker: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{speaker}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def assign(speakers: Iterable[str], seed: int, eval_fraction: float) -> dict[str, Split]:
    """Gives each speaker a side by a hash of its name, so that speakers who are added move nobody who was there.

    Speaker → "eval" where its draw is below `eval_fraction`. Chance is unkind to small corpora: the speakers nearest to
    the threshold cross it until eval has between half and twice of its expected number, and each side at least one.
    """
    ranked = sorted(set(speakers), key=lambda name: (draw(seed, "split", name), name))
    least = min(len(ranked) - 1, max(1, round(eval_fraction * len(ranked) / 2)))
    most = max(least, min(len(ranked) - 1, math.ceil(2 * eval_fraction * len(ranked))))
    count = sum(draw(seed, "split", name) < eval_fraction for name in ranked)
    count = min(max(count, least), most)
    return {name: "eval" if place < count else "train" for place, name in enumerate(ranked)}


def choose(sides: Mapping[str, Split], most: int, seed: int) -> set[str]:
    """Picks `most` speakers by hash, the eval side in proportion but at least a quarter: intervals need speakers."""
    if most < 2:
        raise UserError(f"max_speakers is {most}; a speaker-disjoint split needs at least 2.")
    ranked = {
        side: sorted(
            (name for name in sides if sides[name] == side), key=lambda name: (draw(seed, "subset", name), name)
        )
        for side in SPLITS
    }
    share = max(0.25, len(ranked["eval"]) / max(1, len(sides)))
    evals = min(len(ranked["eval"]), max(1, min(round(most * share), most - 1)))
    trains = min(len(ranked["train"]), most - evals)
    return set(ranked["train"][:trains]) | set(ranked["eval"][: most - trains])


def read_lists(folder: Path) -> dict[str, Split] | None:
    """Reads the folder's own train.txt and eval.txt: relative path (NFC) → side; None when neither is there.

    One path a line, empty lines and `#` comments aside. Raises UserError for one list without the other, for a list
    that is no text, and for a path in both.
    """
    present = [side for side in SPLITS if (folder / f"{side}.txt").is_file()]
    if not present:
        return None
    if len(present) == 1:
        other = SPLITS[1 - SPLITS.index(present[0])]
        raise UserError(f"{folder} has {present[0]}.txt but no {other}.txt. Add the other list, or take this one away.")
    sides: dict[str, Split] = {}
    for side in SPLITS:
        path = folder / f"{side}.txt"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The list {path} cannot be read: {error}.") from error
        for line in lines:
            name = normal(line.strip())
            if not name or name.startswith("#"):
                continue
            if sides.setdefault(name, side) != side:
                raise UserError(f"{name!r} stands in both train.txt and eval.txt of {folder}. Keep it in one.")
    return sides


def normal(relative: str) -> str:
    """One spelling for a path: NFC, no leading `./` (macOS stores names decomposed, lists are typed composed)."""
    return unicodedata.normalize("NFC", relative).removeprefix("./")
