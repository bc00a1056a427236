"""What a linear readout looks for in a window of frames: its variance, what it tells of the future, or what changes slowly.

All three come from the moments of L + F successive frames: the window x = [z_{t−L+1} … z_t] and the future [z_{t+1} … z_{t+F}].

* `pca`: the directions of largest variance.
* `predictive`: canonical correlation analysis of window and future: the directions whose future is best known.
* `slow`: slow feature analysis, the directions y of smallest Var(y_{t+1} − y_t)/Var(y).

The last two do not change under an invertible linear map of the latents. Sources: Hotelling, 1936, "Relations between two
sets of variates"; Wiskott and Sejnowski, 2002, "Slow feature analysis".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from arlat_data.codecs._principal import Moments, principal

Kind = Literal["pca", "predictive", "slow"]
RIDGE = 1e-3  # of the mean variance of a coordinate is added to every one, so that rare directions are not trusted


@dataclass(frozen=True)
class Stretch:
    """Moments of L + F successive frames of d dimensions: `mean` and `covariance` of all of them, of `count` stretches."""

    mean: Tensor
    covariance: Tensor
    count: int
    window: int
    future: int

    @property
    def dim(self) -> int:
        """d."""
        return len(self.mean) // (self.window + self.future)

    def now(self) -> Tensor:
        """Covariance [L·d L·d] of the window."""
        size = self.window * self.dim
        return self.covariance[:size, :size]

    def ahead(self) -> Tensor:
        """Covariance [F·d F·d] of the future."""
        size = self.window * self.dim
        return self.covariance[size:, size:]

    def across(self) -> Tensor:
        """Covariance [L·d F·d] of window and future."""
        size = self.window * self.dim
        return self.covariance[:size, size:]

    def change(self) -> Tensor:
        """Covariance [L·d L·d] of the window's change from one frame to the next."""
        size, step = self.window * self.dim, self.dim
        later, earlier = slice(step, step + size), slice(0, size)
        both = self.covariance[later, earlier]
        return self.covariance[later, later] - both - both.T + self.covariance[earlier, earlier]


def gather(z: Tensor, start: list[int], length: list[int], window: int, future: int) -> Stretch:
    """The moments of all stretches of window + future frames in utterances z [T d], float64.

    Before the start of an utterance stands its first frame, as in the windows of a readout.
    """
    moments = Moments((window + future) * z.shape[1])
    for first, count in zip(start, length, strict=True):
        if count > future:
            own = z[first : first + count]
            padded = torch.cat([own[:1].expand(window - 1, -1), own])
            moments.add(padded.unfold(0, window + future, 1).movedim(-1, -2).flatten(1))
    mean = moments.mean() if moments.count else moments.total
    covariance = moments.covariance() if moments.count else moments.products
    return Stretch(mean, covariance, moments.count, window, future)


def whitener(covariance: Tensor) -> Tensor:
    """A symmetric W with W (C + ridge) W = I."""
    ridge = RIDGE * float(covariance.diagonal().mean()) + 1e-30
    values, vectors = torch.linalg.eigh(covariance)
    white: Tensor = (vectors * (values.clamp_min(0) + ridge).rsqrt()) @ vectors.T
    return white


def by_variance(stretch: Stretch, dim: int) -> Tensor:
    """The directions [dim L·d] of largest variance, of length 1."""
    return principal(stretch.now(), dim)[0]


def by_future(stretch: Stretch, dim: int) -> Tensor:
    """The canonical directions [dim L·d] of the window, of variance 1."""
    white = whitener(stretch.now())
    left, _, _ = torch.linalg.svd(white @ stretch.across() @ whitener(stretch.ahead()))
    return signed(left[:, :dim].T @ white)


def by_slowness(stretch: Stretch, dim: int) -> Tensor:
    """The slowest directions [dim L·d] of the window, slowest first, of variance 1."""
    white = whitener(stretch.now())
    _, vectors = torch.linalg.eigh(white @ stretch.change() @ white)
    return signed(vectors[:, :dim].T @ white)


def signed(rows: Tensor) -> Tensor:
    """The same directions with a positive largest entry, so that a fit has one answer."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign()


SEARCH: dict[Kind, Callable[[Stretch, int], Tensor]] = {
    "pca": by_variance,
    "predictive": by_future,
    "slow": by_slowness,
}


def lift_of(rows: Tensor, covariance: Tensor) -> Tensor:
    """The best linear guess [L·d dim] of the window from y = rows·x: C Wᵀ (W C Wᵀ)⁻¹."""
    seen = rows @ covariance
    up: Tensor = torch.linalg.lstsq(seen @ rows.T, seen).solution.T
    return up


def quality(stretch: Stretch, rows: Tensor, up: Tensor) -> dict[str, list[float]]:
    """How good directions [dim L·d] are on the frames behind `stretch`.

    explained: share of the window's variance that `up` brings back, in all. future: canonical correlations of y with the
    future. slowness: Var(y_{t+1} − y_t)/Var(y) of each direction, 2 for white noise. Empty where there is no stretch.
    """
    if stretch.count <= len(rows):
        return {}
    now = stretch.now()
    rest = torch.eye(len(now), dtype=now.dtype) - up @ rows
    explained = 1 - float((rest @ now @ rest.T).diagonal().sum() / now.diagonal().sum())
    y = rows @ now @ rows.T
    correlations = torch.linalg.svdvals(whitener(y) @ rows @ stretch.across() @ whitener(stretch.ahead()))
    slowness = (rows @ stretch.change() @ rows.T).diagonal() / y.diagonal().clamp_min(1e-300)
    return {"explained": [explained], "future": correlations[: len(rows)].tolist(), "slowness": slowness.tolist()}
