"""Does a forecast mean what it says? Bins of frames by what was promised, and probability integral transforms.

A calibrated forecast has in every bin what it promised there, and its transform F(x) is uniform on [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from arlat_core.intervals import make_value
from arlat_core.types import Value
from torch import Tensor

FEWEST_IN_BIN = 20
PIT_BINS = 10
KOLMOGOROV_MEAN = math.sqrt(math.pi / 2) * math.log(2)  # of √n·sup|F_n − F|


@dataclass(frozen=True)
class Origin:
    """Where rows come from: speaker and utterance of each, and one half of the utterances as a mask, all [n]."""

    speaker: Tensor
    utterance: Tensor
    half: Tensor

    def value(
        self,
        values: Tensor,
        rows: Tensor | None = None,
        denominator: Tensor | None = None,
        **options: Any,
    ) -> Value:
        """The figure of values [n], or of those at `rows`, with its interval; options are those of `make_value`."""
        at = slice(None) if rows is None else rows
        below = None if denominator is None else denominator[at].numpy()
        where = (self.speaker[at].numpy(), self.utterance[at].numpy())
        return make_value(values[at].numpy(), *where, denominator=below, **options)


def bins(promised: Tensor, at_most: int) -> Tensor:
    """Bin 0, 1, … of each row [n]: as many rows of rising `promised` in each, 20 at least."""
    count = max(1, min(at_most, len(promised) // FEWEST_IN_BIN))
    bin_of = torch.empty(len(promised), dtype=torch.int64)
    bin_of[promised.argsort(stable=True)] = torch.arange(len(promised)) * count // max(1, len(promised))
    return bin_of


def bin_means(
    key: str, bin_of: Tensor, values: Tensor, origin: Origin, ceiling: Tensor | None = None
) -> dict[str, Value]:
    """`key`[i], i = 1 …: mean of values [n] in each bin; its ceiling is the mean of `ceiling` [n] there."""
    out = {}
    for i in range(int(bin_of.max()) + 1):
        rows = (bin_of == i).nonzero()[:, 0]
        top = None if ceiling is None else float(ceiling[rows].mean())
        out[f"{key}[{i + 1}]"] = origin.value(values, rows, ceiling=top)
    return out


def centred_squares(bin_of: Tensor, values: Tensor) -> Tensor:
    """Squared difference of each value [n] from the mean of its bin."""
    count = torch.bincount(bin_of).clamp_min(1)
    mean = torch.zeros(len(count), dtype=values.dtype).index_add_(0, bin_of, values) / count
    return (values - mean[bin_of]).square()


def root(value: Value) -> Value:
    """The square root of a figure and of the ends of its interval."""
    ends = {name: getattr(value, name) for name in ("value", "low", "high", "ceiling")}
    taken = {name: None if end is None else math.sqrt(max(0.0, end)) for name, end in ends.items()}
    return value.model_copy(update=taken | {"median": None, "trimmed_mean": None})


def binned_error(bin_of: Tensor, gap: Tensor, origin: Origin) -> Value:
    """Σ_bins share·abs(mean gap) of gaps [n] (found − promised), each bin's sign taken from the other half of the utterances.

    So noise cancels, and a calibrated forecast has 0 within the interval. Without a second half there is no value.
    """
    half = origin.half.long()
    if int(half.min()) == int(half.max()):
        found = origin.value(gap)
        return found.model_copy(update={"value": None, "low": None, "high": None, "status": "fewer than 2 utterances"})
    place = bin_of + (int(bin_of.max()) + 1) * half
    sums = torch.zeros(2 * (int(bin_of.max()) + 1), dtype=gap.dtype).index_add_(0, place, gap)
    sign = sums.sign().reshape(2, -1)
    return origin.value(sign[1 - half, bin_of] * gap, ceiling=0.0)


def transform(key: str, pit: Tensor, origin: Origin) -> dict[str, Value]:
    """`key`.pit[j], j = 1 … 10: density of the transforms pit [n] in tenths of [0, 1]; `key`.ks: sup|F_n(p) − p|.

    The interval of the distance is that of F_n(p) − p at the place where it is largest. Its ceiling is the mean distance
    of so many uniform draws, 0.869/√n.
    """
    out = {}
    tenth = (pit * PIT_BINS).long().clamp(0, PIT_BINS - 1)
    for j in range(PIT_BINS):
        out[f"{key}.pit[{j + 1}]"] = origin.value(PIT_BINS * (tenth == j).double(), ceiling=1.0)
    ordered = np.sort(pit.numpy())
    n = len(ordered)
    above, below = np.arange(1, n + 1) / n - ordered, ordered - np.arange(n) / n
    over = above.max() >= below.max()
    at = float(ordered[above.argmax() if over else below.argmax()])
    inside = (pit <= at) if over else (pit < at)
    gap = inside.double() - at
    out[f"{key}.ks"] = origin.value(gap if over else -gap, ceiling=KOLMOGOROV_MEAN / math.sqrt(n))
    return {name: value.model_copy(update={"median": None, "trimmed_mean": None}) for name, value in out.items()}
