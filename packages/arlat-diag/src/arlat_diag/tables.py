"""Figures as text: numbers rounded by their interval, cells that say what stands behind them, tables as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from arlat_core.types import Value

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    """One cell: the figure, its interval or floor in small print, all that is behind it on hover, and how it is meant.

    `tone` is "" for a figure, "name", "good", "bad" or "muted".
    """

    text: str
    small: str = ""
    floor: str = ""
    title: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table: what it shows, head, rows; neighbours with the same `folder` open together on a click."""

    caption: str
    head: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    folder: str = ""


def decimals(value: float, low: float | None, high: float | None) -> int:
    """Digits after the point: those that the interval's half width leaves meaningful, or three significant ones."""
    width = (high - low) / 2 if low is not None and high is not None and high > low else abs(value) / 20
    if width <= 0:
        return 0 if value == int(value) else 2
    exponent = math.floor(math.log10(width))
    return max(0, min(4, (1 if width < 2.5 * 10.0**exponent else 0) - exponent))


def number(value: float, places: int) -> str:
    """A number with a true minus sign, thin spaces in thousands, and powers of ten where it is very large or small.

    >>> number(-6.25, 1), number(5.03e13, 2)
    ('−6.2', '5.03 × 10¹³')
    """
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−", 1)
    text = f"{value:,.{places}f}".replace(",", "\u2009")
    return text.replace("-", "−") if float(f"{value:.{places}f}") else text.replace("-", "")


def count(value: int) -> str:
    """A count with thin spaces in thousands."""
    return f"{value:,}".replace(",", "\u2009")


def behind(value: Value) -> str:
    """How many speakers, utterances and frames stand behind a figure, and what was resampled."""
    n = value.n
    method = "no interval" if value.resampled == "none" else f"95 % interval: bootstrap over {value.resampled}"
    return f"{count(n.speakers)} speakers, {count(n.utterances)} utterances, {count(n.frames)} frames; {method}"


def cell(value: Value | None, floor: bool = False, unit: bool = False) -> Cell:
    """A figure with its interval; with its floor where asked for; "not run" where there is none, the reason where it failed."""
    if value is None:
        return Cell("not run", tone="muted")
    if value.value is None:
        short = value.status if len(value.status) <= 12 else "none"
        small = span(value, 0) if value.low is not None else ""
        return Cell(short, small, title=f"{value.status}; {behind(value)}", tone="muted")
    whole = value.unit == "steps" and value.value == int(value.value)
    places = 0 if whole else decimals(value.value, value.low, value.high)
    small = span(value, places)
    below = f"floor {number(value.floor, places)}" if floor and value.floor is not None else ""
    more = [behind(value)]
    if value.median is not None:
        more.append(f"median {number(value.median, places)}")
    if value.trimmed_mean is not None:
        more.append(f"1 %-trimmed mean {number(value.trimmed_mean, places)}")
    if value.status != "ok":
        more.append(value.status)
    text = number(value.value, places) + (f" {value.unit}" if unit and value.unit else "")
    return Cell(text, small, below, "; ".join(more))


def span(value: Value, places: int) -> str:
    """[low, high]; an open end where it lies beyond what was measured."""
    if value.low is None and value.high is None:
        return ""
    low, high = ("…" if end is None else number(end, places) for end in (value.low, value.high))
    return f"[{low}, {high}]"


def plain(value: float | None, like: Value | None = None) -> Cell:
    """A bare number, rounded like the figure beside it."""
    if value is None:
        return Cell("–", tone="muted")
    return Cell(number(value, decimals(value, like.low if like else None, like.high if like else None)))


def name(text: str, small: str = "") -> Cell:
    """The head cell of a row."""
    return Cell(text, small, tone="name")
