"""Which representation plays which part in the decisions: the baseline, other codecs, readouts, VAEs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from arlat_core.config import UserError

from arlat_diag.conditions import Scene
from arlat_diag.results import Representation, Results

Part = Representation | None
VAES = ("vae", "inner")  # of audio, and of another codec's latents


def kind(codec: str) -> str:
    """The outermost name of a codec text.

    >>> kind("readout:32|mel:bins=80")
    'readout'
    """
    return re.split(r"[:=|]", codec, maxsplit=1)[0]


def source(codec: str) -> str:
    """What a wrapper wraps, "" for a codec that wraps nothing."""
    return codec.partition("|")[2]


def ar_loss(about: Representation) -> str:
    """The AR loss that a VAE was trained with, "none" for a β-VAE, "" where neither settings nor codec text say."""
    told = about.settings.get("vae", {}).get("ar_loss")
    found = re.search(r"\bar_loss=([^,|]+)", about.spec.codec.partition("|")[0])
    return str(told) if told is not None else found[1] if found else ""


def levels(codec: str) -> str:
    """How many quantiser levels a codec text asks for, "" where it does not say."""
    found = re.search(r"\blevels=(\d+)", codec)
    return found[1] if found else ""


def overlaps(codec: str) -> bool:
    """Whether a codec text is of a readout of several frames: neighbours share all but one, so most of the next is known."""
    return re.search(r"\bcontext_frames=\d+", codec.partition("|")[0]) is not None


def subjects(results: Results) -> dict[str, Representation]:
    """The representations that decisions are about: all but synthetic stores, whose answers are known anyway."""
    return {name: about for name, about in results.representations.items() if not about.truth}


def choose_baseline(results: Results, wanted: str = "") -> str | None:
    """The representation that the first question is about: `wanted`, else Mimi, else the first codec that wraps nothing.

    Raises UserError where `wanted` is not among the representations; None where nothing fits.
    """
    known = subjects(results)
    if wanted:
        if wanted not in known:
            raise UserError(
                f"--baseline names {wanted!r}, but the representations are {', '.join(known) or 'none'}. "
                "Give one of them (synthetic stores are never the subject of a decision)."
            )
        return wanted
    native = {name: kind(about.spec.codec) for name, about in known.items() if is_codec(about.spec.codec)}
    plain = [name for name, codec in native.items() if codec != "pca"]
    return next((name for name in plain if native[name] == "mimi"), next(iter(plain), None))


def is_codec(codec: str) -> bool:
    """Whether a codec text is that of a codec of audio: no wrapper, no trained VAE, no count of quantiser levels."""
    return not source(codec) and not levels(codec) and kind(codec) not in (*VAES, "readout", "rssm")


def at_its_rate(about: Representation, base: Part) -> bool:
    """Whether a representation is another codec at the baseline's frame rate, native or stacked, which loses nothing."""
    codec = source(about.spec.codec) if kind(about.spec.codec) == "stack" else about.spec.codec
    rates = (about.spec.frame_rate, base.spec.frame_rate) if base else (1.0, 0.0)
    return another(codec, base) and math.isclose(*rates, rel_tol=0.01)


def another(codec: str, base: Part) -> bool:
    """Whether a codec text is that of a codec of audio that the baseline neither is nor wraps."""
    return base is not None and is_codec(codec) and codec != base.spec.codec.rpartition("|")[2]


def of(codec: str, base: Part, outer: str) -> bool:
    """Whether a codec text is `outer` of the baseline."""
    return base is not None and kind(codec) == outer and source(codec) == base.spec.codec


GROUPS: Final[Mapping[str, Callable[[Representation, Part], bool]]] = {
    "codecs": lambda about, base: another(about.spec.codec, base),
    "codecs at the baseline's frame rate": at_its_rate,
    "readouts": lambda about, base: of(about.spec.codec, base, "readout") and not overlaps(about.spec.codec),
    "nonlinear dynamics latents": lambda about, base: of(about.spec.codec, base, "rssm"),
    "AR-loss VAEs": lambda about, _: kind(about.spec.codec) in VAES and ar_loss(about) not in ("", "none"),
    "β-VAEs": lambda about, _: kind(about.spec.codec) in VAES and ar_loss(about) == "none",
}
"""Whether a representation belongs to a group, given the baseline if there is one, which belongs to none."""


def cast(results: Results, baseline: str = "") -> tuple[Scene, list[str]]:
    """The scene of some results, and remarks: who plays what, and who plays nothing."""
    known = subjects(results)
    base = choose_baseline(results, baseline)
    groups = {
        group: tuple(name for name, about in known.items() if name != base and fits(about, known.get(base or "")))
        for group, fits in GROUPS.items()
    }
    native = {name: about.spec.codec for name, about in known.items() if not source(about.spec.codec)}
    parts = {
        "baseline": base,
        "reference": next((name for name, text in native.items() if kind(text) == "mimi" and not levels(text)), None),
        "8-level Mimi": next(
            (name for name, text in native.items() if kind(text) == "mimi" and levels(text) == "8"), None
        ),
    }
    words = {word: name for word, name in parts.items() if name is not None}
    playing = {name for members in groups.values() for name in members} | set(words.values())
    notes = [f"The baseline is {base}."] if base is not None else ["No representation can be the baseline."]
    notes += [f"The {group}: {', '.join(members)}." for group, members in groups.items() if members]
    if idle := [name for name in known if name not in playing]:
        notes.append(
            f"No part in the decisions: {', '.join(idle)} (wrapped, but no readout of single frames of the baseline, or VAEs "
            "that do not say their ar_loss)."
        )
    return Scene(results, words, groups), notes
