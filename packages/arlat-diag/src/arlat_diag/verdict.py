"""R4 in one word: a rollout explodes, collapses, drifts on the manifold, or is merely uncertain.

A pure function of figures and thresholds. A condition holds when the whole interval is past its threshold and fails when
the whole interval is short of it; where an interval straddles a threshold that decides, the verdict is "undecided".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arlat_core.types import Value

WORDS = ("explodes", "collapses", "drifts on-manifold", "merely uncertain", "drifts off-manifold", "undecided")


@dataclass(frozen=True)
class Thresholds:
    """Where one word ends and the next begins.

    Attributes:
        far: Squared error at step K in squared errors of the training mean. 2 is what two unrelated frames have, so
            that a rollout beyond it has left the range of the data.
        excess: Share of the squared error, over all steps, that a better forecaster is known to save.
        main: Share of that excess that one cause must have to name the verdict.
        near: kNN distance of samples at step K in those of true frames, below which they lie on the manifold.
    """

    far: float = 2.5
    excess: float = 0.1
    main: float = 0.5
    near: float = 1.25


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Verdict:
    """A word, the sentence behind it, and the keys of the figures that it rests on."""

    word: str
    why: str
    keys: tuple[str, ...]


def above(value: Value, bar: float) -> bool | None:
    """Whether a figure is above `bar`; None where its interval straddles it, or where it has no interval."""
    if value.value is None or value.low is None or value.high is None:
        return None
    if value.low > bar:
        return True
    return False if value.high < bar else None


def told(value: Value, percent: bool = False) -> str:
    """A figure with its interval."""
    if value.value is None:
        return value.status
    unit, digits = (100, ".0f") if percent else (1, ".3g")
    ends = (
        ""
        if value.low is None or value.high is None
        else f" [{value.low * unit:{digits}}, {value.high * unit:{digits}}]"
    )
    return f"{value.value * unit:{digits}}{ends}{' %' if percent else ''}"


def decide(values: Mapping[str, Value], prefix: str, thresholds: Thresholds = THRESHOLDS) -> Verdict | None:
    """The verdict on the figures under `prefix`; None where they are not there."""
    steps = sum(key.startswith(f"{prefix}.error.total[") for key in values)
    if not steps:
        return None
    return exploded(values, prefix, steps, thresholds) or sized(values, prefix, steps, thresholds)


def exploded(values: Mapping[str, Value], prefix: str, steps: int, thresholds: Thresholds) -> Verdict | None:
    """The verdict where the last error is out of the data's range, or may be."""
    key = f"{prefix}.error.total[{steps}]"
    last = values[key]
    if last.value is None:
        lost = "are not finite" in last.status
        return Verdict("explodes" if lost else "undecided", f"The error at step {steps}: {last.status}.", (key,))
    if not last.floor:
        return Verdict("undecided", "The data do not vary.", (key,))
    scaled = Value(
        n=last.n, **{n: None if (x := getattr(last, n)) is None else x / last.floor for n in ("value", "low", "high")}
    )
    text = (
        f"The squared error at step {steps} is {told(scaled)} times that of the training mean (bar {thresholds.far:g})"
    )
    found = above(scaled, thresholds.far)
    if found is False:
        return None
    return Verdict("explodes" if found else "undecided", f"{text}.", (key,))


def sized(values: Mapping[str, Value], prefix: str, steps: int, thresholds: Thresholds) -> Verdict:
    """The verdict of a rollout that stays in the data's range, by the size and the main cause of its excess error."""
    known = values[f"{prefix}.share.intrinsic"]
    keys = [f"{prefix}.share.intrinsic"]
    share = f"{told(known, percent=True)} of the squared error of all steps could not have been known"
    excess = above(known, 1 - thresholds.excess)
    if excess is None:
        return Verdict(
            "undecided", f"{share}: the interval straddles {100 * (1 - thresholds.excess):g} %.", tuple(keys)
        )
    if excess:
        return placed("merely uncertain", values, prefix, steps, thresholds, share, keys)
    straddled = False
    for part, word, why in (
        ("collapse", "collapses", "of the rest is movement that is missing"),
        ("amplification", "explodes", "of the rest is added by the model's own map, which makes errors longer"),
    ):
        key = f"{prefix}.excess.{part}"
        found = above(values[key], thresholds.main)
        keys.append(key)
        share += f"; {told(values[key], percent=True)} {why}"
        if found:
            return Verdict(word, f"{share}.", tuple(keys))
        straddled |= found is None
    if straddled:
        return Verdict("undecided", f"{share}: an interval straddles {100 * thresholds.main:g} %.", tuple(keys))
    share += "; the rest is errors of single steps that last"
    return placed("drifts on-manifold", values, prefix, steps, thresholds, share, keys)


def placed(
    word: str,
    values: Mapping[str, Value],
    prefix: str,
    steps: int,
    thresholds: Thresholds,
    text: str,
    keys: list[str],
) -> Verdict:
    """`word`, if sample rollouts are still where the data are at step K."""
    key = f"{prefix}.knn_ratio[{steps}]"
    near = values[key]
    text += (
        f". Samples at step {steps} lie {told(near)} times as far from training frames as true ones "
        f"(bar {thresholds.near:g})."
    )
    if near.value is None and "are not finite" in near.status:
        return Verdict("explodes", text, (*keys, key))
    off = above(near, thresholds.near)
    return Verdict("undecided" if off is None else "drifts off-manifold" if off else word, text, (*keys, key))
