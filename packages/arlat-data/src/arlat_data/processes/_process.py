"""What every process gives: paths that are stationary from their first frame, and the answers that the battery must find."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from arlat_core.config import Config
from torch import Tensor

C = TypeVar("C", bound=Config)
Entry = dict[str, Any]
Truth = dict[str, Entry]
STEPS = 16  # rollout steps and autocorrelation lags whose answers are given
HORIZONS = (1, 2, 4, 8)
LAGS = (2, 4, 8)
CLUSTER_LAGS = (1, 2, 4)  # lags at which P0 clusters contexts


class Process(ABC, Generic[C]):
    """A stationary process in R^dim, the same for every speaker; at most two past frames matter unless it says so."""

    dim: int
    config: C

    @abstractmethod
    def simulate(self, utterances: int, frames: int, generator: torch.Generator) -> Tensor:
        """Draws independent paths [utterances frames dim] in float64; the first frame has the stationary law."""

    @abstractmethod
    def truth(self, frame_rate: float, generator: torch.Generator) -> Truth:
        """Key of results.json -> {"value", "method"[, "standard_error"]}; keys without an answer are absent.

        `generator` serves the entries that are Monte Carlo averages under the exact law.
        """

    def planted(self) -> dict[str, list[Any]]:
        """What was planted, by name, as nested lists (empty for most)."""
        return {}


def exact(value: float) -> Entry:
    """An answer in closed form."""
    return {"value": float(value), "method": "closed form"}


def quadrature(value: float) -> Entry:
    """An answer by one-dimensional quadrature, good to 1e-6 or better."""
    return {"value": float(value), "method": "quadrature"}


def monte_carlo(value: float, standard_error: float, draws: int) -> Entry:
    """An answer averaged over `draws` draws from the exact law."""
    return {
        "value": float(value),
        "method": f"Monte Carlo, {draws} draws, s.e. {standard_error:.2g}",
        "standard_error": float(standard_error),
    }


def average(values: Tensor, groups: Tensor | None = None, scale: float = 1.0, offset: float = 0.0) -> Entry:
    """`offset + scale` × the mean of `values` [n] (independent), or of [chains n] where only the rows are independent."""
    means = values.double().mean(-1) if values.dim() == 2 else values.double()
    error = float(means.std()) / math.sqrt(len(means))
    return monte_carlo(offset + scale * float(means.mean()), abs(scale) * error, values.numel())


def shifted(entry: Entry, scale: float, offset: float = 0.0) -> Entry:
    """`offset + scale · entry`, with its method and its standard error kept."""
    value = offset + scale * entry["value"]
    if "standard_error" not in entry:
        return {"value": value, "method": entry["method"]}
    error = abs(scale) * entry["standard_error"]
    return {
        **entry,
        "value": value,
        "standard_error": error,
        "method": entry["method"].split("s.e.")[0] + f"s.e. {error:.2g}",
    }


def bits_per_second(dnll_b5: Entry, frame_rate: float) -> Entry:
    """The information rate −ΔNLL_B5·f/ln 2 in bit/s."""
    return shifted(dnll_b5, -frame_rate / math.log(2))


def since_truth(mode: str, step: int) -> int:
    """Steps since the state entering `step` (1, 2, …) was last the truth, in the injection modes A–D and S."""
    if mode == "A":
        return 0
    if mode == "B":
        return (step - 1) % 4
    if mode == "C":
        return max(step - 2, 0)
    return step - 1
