"""95 % intervals: a bootstrap over speakers (over utterances where there are fewer than 20 speakers), as SPEC §1 asks.

Whole speakers are drawn with replacement, so that frames of one voice, which resemble each other, count as one witness.
A mean or a ratio of sums needs only each cluster's sums: all draws are one product of a weight matrix [draws, clusters].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from arlat_core.types import Count, Value, WorstFrame

Floats = npt.NDArray[np.float64]
Resampled = Literal["speakers", "utterances", "none"]
Statistic = Literal["mean", "median"] | float

FEWEST_SPEAKERS = 20
LEVEL = 0.95


@dataclass(frozen=True)
class Clusters:
    """Which resampling unit each row belongs to: `index` [n] in [0, count)."""

    index: npt.NDArray[np.int64]
    count: int
    resampled: Resampled
    n: Count


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95 % interval; each is [] or [K]; low and high are NaN where there are fewer than 2 clusters."""

    value: Floats
    low: Floats
    high: Floats
    resampled: Resampled


def clusters(speakers: npt.ArrayLike, utterances: npt.ArrayLike) -> Clusters:
    """Groups rows [n] by speaker, or by utterance where there are fewer than 20 speakers; ids are integers or strings."""
    speaker_ids, speaker_index = np.unique(np.asarray(speakers), return_inverse=True)
    utterance_ids, utterance_index = np.unique(np.asarray(utterances), return_inverse=True)
    if speaker_index.shape != utterance_index.shape:
        raise ValueError(f"{len(speaker_index)} speakers and {len(utterance_index)} utterances: one of each per row.")
    n = Count(speakers=len(speaker_ids), utterances=len(utterance_ids), frames=len(speaker_index))
    if len(speaker_ids) >= FEWEST_SPEAKERS:
        return Clusters(speaker_index.astype(np.int64), len(speaker_ids), "speakers", n)
    kind: Resampled = "utterances" if len(utterance_ids) > 1 else "none"
    return Clusters(utterance_index.astype(np.int64), len(utterance_ids), kind, n)


@lru_cache(maxsize=8)
def bootstrap_weights(count: int, draws: int, seed: int) -> Floats:
    """How often each of `count` clusters appears in each draw, [draws, count]; rows sum to `count`."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(count, (draws, count), generator=generator)
    weights = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, picks, torch.ones_like(picks).double())
    array: Floats = weights.numpy()
    array.setflags(write=False)
    return array


def tail(count: int) -> float:
    """The lower percentile of the draws that makes a 95 % interval from `count` clusters.

    The bootstrap's spread is √((n−1)/n) too small and its tails are normal; t-quantiles mend both (Hesterberg 2015,
    "expanded percentile interval"). It tends to 2.5 % as n grows.
    """
    reach = np.sqrt(count / (count - 1)) * stats.t.ppf(0.5 + LEVEL / 2, count - 1)
    return float(stats.norm.cdf(-reach))


def finite(array: npt.ArrayLike, what: str) -> Floats:
    """The array as float64; raises ValueError with the number and place of non-finite entries."""
    numbers = np.asarray(array, dtype=np.float64)
    bad = ~np.isfinite(numbers)
    if bad.any():
        raise ValueError(
            f"{what} has {int(bad.sum())} non-finite entries of {numbers.size}, the first at {np.argwhere(bad)[0].tolist()}: "
            "a figure cannot be made of them. Say what they mean (leave them out and report how many, or report no value)."
        )
    return numbers


def interval(
    values: npt.ArrayLike,
    speakers: npt.ArrayLike,
    utterances: npt.ArrayLike,
    *,
    statistic: Statistic = "mean",
    denominator: npt.ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """The statistic of `values` [n] or [n K] with its 95 % percentile interval.

    `statistic` is "mean", "median" or a quantile level in (0, 1). With `denominator` (same shape) the mean becomes the
    ratio of sums Σ values / Σ denominator; a mask is such a denominator. Values must be finite; at least one row.
    """
    group = clusters(speakers, utterances)
    numbers = finite(values, "values")
    if numbers.shape[:1] != group.index.shape or numbers.ndim > 2:
        raise ValueError(
            f"values have shape {numbers.shape}, but there are {len(group.index)} speakers: [n] or [n K] expected."
        )
    if not len(numbers):
        raise ValueError("An interval needs at least one row, but there is none.")
    table = numbers if numbers.ndim == 2 else numbers[:, None]
    if statistic == "mean":
        below = np.ones_like(table) if denominator is None else finite(denominator, "denominator").reshape(table.shape)
        found = ratio_interval(table, below, group, draws, seed)
    else:
        if denominator is not None:
            raise ValueError(f"A denominator makes a ratio of sums and does not go with statistic={statistic!r}.")
        level = 0.5 if statistic == "median" else float(statistic)
        found = quantile_interval(table, level, group, draws, seed)
    shape = numbers.shape[1:]
    value, low, high = (part.reshape(shape) for part in found)
    return Interval(value, low, high, group.resampled)


def ratio_interval(
    above: Floats, below: Floats, group: Clusters, draws: int, seed: int
) -> tuple[Floats, Floats, Floats]:
    """Σ above / Σ below [K] of rows [n K] with its interval; a draw whose denominator is 0 does not count."""
    sums = np.zeros((2, group.count, above.shape[1]))
    np.add.at(sums[0], group.index, above)
    np.add.at(sums[1], group.index, below)
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Floats = sums[0].sum(0) / sums[1].sum(0)
        if group.count < 2:
            return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
        weights = bootstrap_weights(group.count, draws, seed)
        # centred first, so that constant data gives low = high = value to the last digit
        safe = np.where(np.isfinite(value), value, 0.0)
        drawn = safe + (weights @ (sums[0] - safe * sums[1])) / (weights @ sums[1])
    drawn[~np.isfinite(drawn)] = np.nan
    return value, *percentiles(drawn, group.count)


def quantile_interval(
    table: Floats, level: float, group: Clusters, draws: int, seed: int
) -> tuple[Floats, Floats, Floats]:
    """The quantile `level` [K] of rows [n K] with its interval, by weighted order statistics."""
    value: Floats = np.quantile(table, level, axis=0, method="averaged_inverted_cdf")
    if group.count < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    weights = bootstrap_weights(group.count, draws, seed)
    drawn = np.empty((draws, table.shape[1]))
    block = max(1, int(4e6 // len(table)))
    for column in range(table.shape[1]):
        order = np.argsort(table[:, column], kind="stable")
        ordered, unit = table[order, column], group.index[order]
        for first in range(0, draws, block):
            mass = weights[first : first + block][:, unit].cumsum(1)
            goal = level * mass[:, -1:]
            at, after = (mass < goal * (1 - 1e-12)).sum(1), (mass <= goal * (1 + 1e-12)).sum(1)
            last = len(ordered) - 1
            drawn[first : first + block, column] = (ordered[at.clip(max=last)] + ordered[after.clip(max=last)]) / 2
    return value, *percentiles(drawn, group.count)


def percentiles(drawn: Floats, count: int) -> tuple[Floats, Floats]:
    """The ends [K] of the 95 % interval of drawn statistics [draws K] from `count` clusters."""
    share = tail(count)
    usable = np.isfinite(drawn).any(0)
    ends = np.full((2, drawn.shape[1]), np.nan)
    if usable.any():
        ends[:, usable] = np.nanquantile(drawn[:, usable], [share, 1 - share], axis=0)
    return ends[0], ends[1]


def make_curve(
    values: npt.ArrayLike,
    speakers: npt.ArrayLike,
    utterances: npt.ArrayLike,
    *,
    denominator: npt.ArrayLike | None = None,
    statistic: Statistic = "mean",
    unit: str = "",
    floor: Sequence[float | None] | float | None = None,
    ceiling: Sequence[float | None] | float | None = None,
    truth: Sequence[float | None] | float | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Value]:
    """One `Value` per column of `values` [n K]: median and 1 %-trimmed mean beside a mean; floors may be one or K.

    Where there are no rows, or a denominator sums to 0, the value is None and the status says so. A column with
    non-finite entries has no value either: its status counts them.
    """
    table = np.asarray(values, dtype=np.float64)
    group = clusters(speakers, utterances)
    below = None if denominator is None else np.broadcast_to(np.asarray(denominator, dtype=np.float64), table.shape)
    bad = ~np.isfinite(table) if below is None else ~(np.isfinite(table) & np.isfinite(below))
    good = np.flatnonzero(~bad.any(0)) if len(table) else np.array([], dtype=np.int64)
    found = dict(
        zip(good.tolist(), intervals_of(table, below, good, speakers, utterances, statistic, draws, seed), strict=True)
    )
    plain = statistic == "mean" and denominator is None
    out = []
    for column in range(table.shape[1]):
        extra: dict[str, Any] = {
            name: entry[column] if isinstance(entry, Sequence) else entry
            for name, entry in (("floor", floor), ("ceiling", ceiling), ("truth", truth))
        }
        value, low, high = found.get(column, (None, None, None))
        if value is not None and plain:
            extra |= {"median": float(np.median(table[:, column]))}
            extra |= {"trimmed_mean": float(stats.trim_mean(table[:, column], 0.01))}
        status = "ok" if value is not None else missing(len(table), int(bad[:, column].sum()))
        if value is not None and low is None:
            status = "no interval: fewer than 2 speakers and 2 utterances"
        out.append(
            Value(
                value=value, low=low, high=high, n=group.n, unit=unit, resampled=group.resampled, status=status, **extra
            )
        )
    return out


def intervals_of(
    table: Floats,
    below: Floats | None,
    columns: npt.NDArray[np.int64],
    speakers: npt.ArrayLike,
    utterances: npt.ArrayLike,
    statistic: Statistic,
    draws: int,
    seed: int,
) -> list[tuple[float | None, float | None, float | None]]:
    """(value, low, high) of each chosen column, None for what is not finite."""
    if not len(columns):
        return []
    under = None if below is None else below[:, columns]
    found = interval(
        table[:, columns], speakers, utterances, statistic=statistic, denominator=under, draws=draws, seed=seed
    )
    rows = np.stack([found.value, found.low, found.high], 1)
    return [tuple(float(x) if np.isfinite(x) else None for x in row) for row in rows]  # type: ignore[misc]


def missing(rows: int, bad: int) -> str:
    """Why a figure has no value."""
    if rows == 0:
        return "no frames"
    return f"{bad} of {rows} are not finite" if bad else "the denominator is 0"


def make_value(values: npt.ArrayLike, speakers: npt.ArrayLike, utterances: npt.ArrayLike, **options: Any) -> Value:
    """One `Value` of `values` [n]; options are those of `make_curve`. Non-finite values raise ValueError."""
    column = finite(values, "values")[:, None]
    below = options.pop("denominator", None)
    under = None if below is None else finite(below, "denominator").reshape(-1, 1)
    return make_curve(column, speakers, utterances, denominator=under, **options)[0]


def difference_value(
    first: npt.ArrayLike, second: npt.ArrayLike, speakers: npt.ArrayLike, utterances: npt.ArrayLike, **options: Any
) -> Value:
    """The mean of `first` − `second` on the same frames [n], paired: what both share does not widen the interval."""
    return make_value(finite(first, "first") - finite(second, "second"), speakers, utterances, **options)


def worst(
    values: npt.ArrayLike, key: str, utterance_ids: Sequence[str], frames: npt.ArrayLike, count: int = 20
) -> list[WorstFrame]:
    """The `count` frames with the largest values [n], worst first; ties keep their order."""
    numbers = finite(values, "values")
    where = np.asarray(frames)
    order = np.argsort(-numbers, kind="stable")[:count].tolist()
    return [
        WorstFrame(key=key, utterance=utterance_ids[row], frame=int(where[row]), value=float(numbers[row]))
        for row in order
    ]
