"""Series read out of results by key, ready to be drawn: x, y and the ends of the interval."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arlat_core.types import Value

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Line:
    """Points of one curve; a missing end of an interval is NaN."""

    pairs: tuple[tuple[float, Value], ...]

    @property
    def x(self) -> list[float]:
        return [x for x, _ in self.pairs]

    @property
    def y(self) -> list[float]:
        return [math.nan if v.value is None else v.value for _, v in self.pairs]

    @property
    def low(self) -> list[float]:
        return [math.nan if v.low is None else v.low for _, v in self.pairs]

    @property
    def high(self) -> list[float]:
        return [math.nan if v.high is None else v.high for _, v in self.pairs]

    @property
    def has_band(self) -> bool:
        """Whether any point has an interval."""
        return any(v.low is not None and v.high is not None for _, v in self.pairs)

    def scaled(self, factor: float) -> Line:
        """The same curve with x in another unit."""
        return Line(tuple((x * factor, v) for x, v in self.pairs))

    def take(self, rows: Sequence[int]) -> Line:
        """Some of the points."""
        return Line(tuple(self.pairs[row] for row in rows))

    def at(self, x: Sequence[float]) -> Line:
        """The same values at other places."""
        return Line(tuple((place, v) for place, (_, v) in zip(x, self.pairs, strict=True)))


def horizons(values: Values, form: str = "h") -> list[int]:
    """The horizons (`form` "h") or lags ("lag") of P1 that were measured, in order."""
    found = {int(match[1]) for key in values if (match := re.match(rf"p1\.{form}(\d+)\.", key))}
    return sorted(found)


def points(values: Values, pattern: str, steps: Sequence[int]) -> Line:
    """The figures under `pattern` ("p1.h{}.cosine") at `steps`, where they exist."""
    found = ((float(step), values.get(pattern.format(step))) for step in steps)
    return Line(tuple((x, value) for x, value in found if value is not None))


def curve(values: Values, prefix: str) -> Line:
    """The figures `prefix`[i] by i."""
    found = [(int(key[len(prefix) + 1 : -1]), key) for key in values if key.startswith(f"{prefix}[")]
    return Line(tuple((float(i), values[key]) for i, key in sorted(found)))


def label(text: str, at_most: int) -> str:
    """A name that can stand in a figure: one line, printable, not too long, and not hidden from a legend by a leading `_`.

    What is too long loses its middle: wrappers stand at the beginning of a codec's name, what sets trained ones apart at the end.
    """
    flat = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text).strip() or "(no name)"
    begin = (at_most - 1) // 3
    short = flat if len(flat) <= at_most else f"{flat[:begin]}…{flat[begin + 1 - at_most :]}"
    return f"\u200a{short}" if short.startswith("_") else short


def numbered(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, since mathtext is off."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axis.set_minor_formatter(NullFormatter())
