"""What can be said of a figure against a bar: three-valued logic plus "not run", and intervals of ratios.

| state | meaning |
| --- | --- |
| holds, fails | the whole 95 % interval says so |
| undecided | the interval straddles the bar, or there is none |
| not run | a figure is missing or has no value; the verdict says which command would make it |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from arlat_core.config import Config
from arlat_core.types import Value

from arlat_diag.tables import decimals, number

State = Literal["holds", "fails", "undecided", "not run"]
Span = tuple[float, float]
UNKNOWN: Final[Span] = (-math.inf, math.inf)
OPPOSITE: Final[dict[State, State]] = {
    "holds": "fails",
    "fails": "holds",
    "undecided": "undecided",
    "not run": "not run",
}


class Verdict(Config):
    """What a condition says: its state, the sentence that was judged, the evidence, and what would have to be run."""

    text: str
    state: State
    evidence: str = ""
    command: str = ""
    parts: tuple[Verdict, ...] = ()

    def commands(self) -> list[str]:
        """What must be run to know more, each once, in order."""
        own = [self.command] if self.command else []
        return list(dict.fromkeys(own + [command for part in self.parts for command in part.commands()]))

    def decisive(self) -> list[Verdict]:
        """The comparisons that make this verdict what it is; behind a "not", those of the opposite state."""
        if not self.parts:
            return [self]
        alike = [part for part in self.parts if part.state == self.state] or self.parts
        return [leaf for part in alike for leaf in part.decisive()]

    def leaves(self) -> list[Verdict]:
        """The comparisons behind this verdict, in order."""
        return [leaf for part in self.parts for leaf in part.leaves()] if self.parts else [self]


def strongest(states: Iterable[State], order: tuple[State, ...]) -> State:
    """The first of `order` that is among the states, or its last."""
    found = set(states)
    return next((state for state in order if state in found), order[-1])


def every(states: Iterable[State]) -> State:
    """Kleene's "and": one failure decides; else what is not run, then what is undecided, keeps it open."""
    return strongest(states, ("fails", "not run", "undecided", "holds"))


def some(states: Iterable[State]) -> State:
    """Kleene's "or": one that holds decides; else what is not run, then what is undecided, keeps it open."""
    return strongest(states, ("holds", "not run", "undecided", "fails"))


@dataclass(frozen=True)
class Estimate:
    """A figure whose interval's ends are known to lie in a span: at a point, or beyond K where a horizon was never reached.

    `missing` says why there is no figure; `command` what would make it.
    """

    name: str
    value: float | None = None
    low: Span = UNKNOWN
    high: Span = UNKNOWN
    shown: str = ""
    missing: str = ""
    command: str = ""

    def in_seconds(self, rate_hz: float) -> Estimate:
        """A first lost step as the time by which it was lost; the interval begins one step earlier, when it was not yet."""
        low = ((self.low[0] - 1) / rate_hz, (self.low[1] - 1) / rate_hz)
        high = (self.high[0] / rate_hz, self.high[1] / rate_hz)
        value = None if self.value is None else self.value / rate_hz
        text = f"{self.shown}: {interval_text(value, low, high)} s at {rate_hz:g} Hz"
        return replace(self, value=value, low=low, high=high, shown=text)


def interval_text(value: float | None, low: Span, high: Span) -> str:
    """A figure with its interval, 0.71 [0.70, 0.73]; the interval alone where the value is not known."""
    ends = [end if math.isfinite(end) else None for end in (low[0], high[1])]
    places = decimals(next((x for x in (value, *ends) if x is not None), 0.0), *ends)
    span = ", ".join("…" if end is None else number(end, places) for end in ends)
    return f"[{span}]" if value is None else f"{number(value, places)} [{span}]"


def estimate(name: str, value: Value | None, command: str) -> Estimate:
    """A `Value` as an estimate: a missing upper end lies at or above the value, "> K" at K + 1 or above.

    A figure without an interval may be anything: comparisons with it are undecided.
    """
    if value is None:
        return Estimate(name=name, missing="not run", command=command)
    beyond = re.fullmatch(r"> (\d+)", value.status)
    if value.value is None and beyond is None:
        return Estimate(name=name, missing=value.status, command=command)
    least = float(beyond[1]) + 1 if beyond else value.value
    if value.value is not None and value.low is None:
        return Estimate(name=name, value=value.value, shown=f"{number(value.value, 3)} (no interval)")
    if least is None:
        raise ValueError(f"{name} has neither a value nor the status '> K'.")
    low = (least, math.inf) if value.low is None else (value.low, value.low)
    high = (least, math.inf) if value.high is None else (value.high, value.high)
    shown = f"> {beyond[1]} steps" if beyond else interval_text(value.value, low, high)
    return Estimate(name=name, value=value.value, low=low, high=high, shown=shown)


def ratio(first: Estimate, second: Estimate) -> Estimate:
    """first / second of two positive figures, with an interval of the log-ratio.

    The distances of either figure from its ends, in logarithms, are combined as the root of the sum of their squares
    (MOVER: Zou and Donner 2008, with independent figures; those of the same speakers mostly rise and fall together, so
    that the interval is rather too wide). Where an interval reaches 0 its logarithm has no end: the ratio's lower end is then
    0 (first) or its upper end infinite (second), and an end whose centre is not positive is the plain quotient of ends.
    """
    name = f"{first.name} ÷ {second.name}"
    absent = [item for item in (first, second) if item.missing]
    if absent:
        return Estimate(
            name=name,
            missing="; ".join(f"{item.name}: {item.missing}" for item in absent),
            command="; ".join(dict.fromkeys(item.command for item in absent if item.command)),
        )
    (a_low, a_high), (b_low, b_high) = ((item.low[0], item.high[1]) for item in (first, second))
    a, b = first.value, second.value
    low = quotient_end(a, b, a_low, b_high)
    high = 1 / below if (below := quotient_end(b, a, b_low, a_high)) > 0 else math.inf
    value = a / b if a is not None and b is not None and a > 0 and b > 0 else None
    return Estimate(
        name=name,
        value=value,
        low=(low, low),
        high=(high, high),
        shown=f"{interval_text(value, (low, low), (high, high))} ({first.shown} ÷ {second.shown})",
    )


def quotient_end(a: float | None, b: float | None, a_low: float, b_high: float) -> float:
    """The lower end of a/b: 0 where a may be nothing, infinite where b is nothing, the plain quotient without a centre."""
    if a_low <= 0:
        return 0.0
    if b_high <= 0:
        return math.inf
    if a is None or b is None or min(a, b) <= 0 or math.isinf(b_high):
        return a_low / b_high
    return math.exp(math.log(a / b) - math.hypot(math.log(a / a_low), math.log(b_high / b)))


RELATIONS: Final[dict[str, tuple[Callable[[Estimate, float], bool], Callable[[Estimate, float], bool]]]] = {
    # relation: (surely true, surely false)
    ">": (lambda x, bar: x.low[0] > bar, lambda x, bar: x.high[1] <= bar),
    "≥": (lambda x, bar: x.low[0] >= bar, lambda x, bar: x.high[1] < bar),
    "<": (lambda x, bar: x.high[1] < bar, lambda x, bar: x.low[0] >= bar),
    "≤": (lambda x, bar: x.high[1] <= bar, lambda x, bar: x.low[0] > bar),
}


def against(found: Estimate, relation: str, bar: float) -> Verdict:
    """Judges an estimate against a number: the whole interval on one side decides."""
    text = f"{found.name} {relation} {bar:g}"
    if found.missing:
        return Verdict(text=text, state="not run", evidence=found.missing, command=found.command)
    surely, surely_not = RELATIONS[relation]
    state: State = "holds" if surely(found, bar) else "fails" if surely_not(found, bar) else "undecided"
    return Verdict(text=text, state=state, evidence=found.shown)


def clearly_above(first: Estimate, second: Estimate) -> Verdict:
    """Judges whether the first interval lies wholly above the second.

    Undecided only where an end lies beyond what was measured and could decide: intervals that overlap are not clearly apart.
    """
    text = f"{first.name} clearly above {second.name}"
    absent = [item for item in (first, second) if item.missing]
    if absent:
        evidence = "; ".join(f"{item.name}: {item.missing}" for item in absent)
        command = "; ".join(dict.fromkeys(item.command for item in absent if item.command))
        return Verdict(text=text, state="not run", evidence=evidence, command=command)
    low, high = first.low, second.high
    state: State = "holds" if low[0] > high[1] else "fails" if low[1] <= high[0] else "undecided"
    return Verdict(text=text, state=state, evidence=f"{first.shown} against {second.shown}")
