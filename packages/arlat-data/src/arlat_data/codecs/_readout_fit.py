"""What a linear readout looks for in a window of frames: its variance, what it tells of the future, or what changes slowly.

All three come from the moments of L + F successive frames: the window x = [z_{t−L+1} … z_t] and the future [z_{t+1} … z_{t+F}].

* `pca`: the directions of largest variance.
* `predictive`: canonical correlation analysis of window and future: the directions whose future is best known.
* `slow`: slow feature analysis, the directions y of smallest Var(y_{t+1} − y_t)/Var(y).

The last two do not change under an invertible linear map of the latents, but for the noise (`ridge`)
that they assume in every coordinate, and have variance 1 in every direction. Sources: Hotelling, 1936, "Relations between two
sets of variates"; Wiskott and Sejnowski, 2002, "Slow feature analysis".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from torch import Tensor

from arlat_data.codecs._principal import Moments, principal

Kind = Literal["pca", "predictive", "slow"]
# Noise of this share of the mean variance is assumed in every coordinate, so that rare directions are not trusted. 32 directions of
# Lyra latents tell 6.16 nats of other speakers' futures for any value from 1e-5 to 1e-2 when fitted on 48 000 frames; with 4 000
# frames for 512 numbers the first correlation is 0.15 at 1e-3 and 0.85 at 0.1, so that scarce data want more
RIDGE = 1e-3
FLAT = 1e-9  # of the mean variance of a coordinate: a direction with less does not vary, but for rounding


class Quality(BaseConfig):
    """What directions are worth on one split, and on how much of it."""

    speakers: int
    utterances: int
    frames: int
    """Windows that have their whole future."""
    explained: float
    """Share of the windows' variance, about the training mean, that lifting brings back; below 0 if worse than that mean."""
    future: list[float]
    """Correlations of the k-th canonical pair, y's and the future's, both chosen in training: near 0 on others if by chance."""
    slowness: list[float]
    """Var(y_{t+1} − y_t)/Var(y) of each direction: 2(1 − ρ_1), 2 for one frame of white noise."""


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


def noise(covariance: Tensor, ridge: float) -> float:
    """Variance of the noise that is assumed in every coordinate."""
    return ridge * float(covariance.diagonal().mean()) + 1e-30


def whitener(covariance: Tensor, ridge: float) -> Tensor:
    """W [r d] with W (C + noise) Wᵀ = I, on the r principal directions that vary."""
    values, vectors = torch.linalg.eigh(covariance)
    varies = values > FLAT * covariance.diagonal().mean()
    white: Tensor = (vectors[:, varies] * (values[varies] + noise(covariance, ridge)).rsqrt()).T
    return white


def unit(rows: Tensor, covariance: Tensor) -> Tensor:
    """The same directions with variance 1 and a positive largest entry, so that a fit has one answer."""
    variance = (rows @ covariance * rows).sum(1)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign() / variance.sqrt()[:, None]


def window_whitener(stretch: Stretch, dim: int, ridge: float) -> Tensor:
    """The whitener of the window; raises UserError where it varies in fewer than `dim` directions."""
    white = whitener(stretch.now(), ridge)
    if len(white) < dim:
        raise UserError(f"The windows vary in {len(white)} directions, but {dim} were asked for. Lower --dim.")
    return white


def by_variance(stretch: Stretch, dim: int, ridge: float) -> Tensor:
    """The directions [dim L·d] of largest variance, of length 1."""
    return principal(stretch.now(), dim)[0]


def by_future(stretch: Stretch, dim: int, ridge: float) -> Tensor:
    """The canonical directions [dim L·d] of the window, of variance 1."""
    white = window_whitener(stretch, dim, ridge)
    left, _, _ = torch.linalg.svd(white @ stretch.across() @ whitener(stretch.ahead(), ridge).T, full_matrices=False)
    if left.shape[1] < dim:
        raise UserError(
            f"A future of {stretch.future} frames of {stretch.dim} dimensions has {left.shape[1]} canonical directions, "
            f"not {dim}. Raise --future-frames or lower --dim."
        )
    return unit(left[:, :dim].T @ white, stretch.now())


def by_slowness(stretch: Stretch, dim: int, ridge: float) -> Tensor:
    """The slowest directions [dim L·d] of the window, slowest first, of variance 1."""
    now, white = stretch.now(), window_whitener(stretch, dim, ridge)
    # the noise changes too, by twice its variance: without that every direction weaker than the noise would look slow
    change = stretch.change() + 2 * noise(now, ridge) * torch.eye(len(now), dtype=now.dtype)
    _, vectors = torch.linalg.eigh(white @ change @ white.T)
    return unit(vectors[:, :dim].T @ white, now)


SEARCH: dict[Kind, Callable[[Stretch, int, float], Tensor]] = {
    "pca": by_variance,
    "predictive": by_future,
    "slow": by_slowness,
}


def lift_of(rows: Tensor, covariance: Tensor) -> Tensor:
    """The best linear guess [L·d dim] of the window from y = rows·x: C Wᵀ (W C Wᵀ)⁻¹."""
    seen = rows @ covariance
    up: Tensor = torch.linalg.lstsq(seen @ rows.T, seen).solution.T
    return up


def canonical(stretch: Stretch, rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Canonical pairs of y = rows·x and the future: directions [k L·d] of the window and [k F·d] of the future."""
    own, ahead = whitener(rows @ stretch.now() @ rows.T, ridge), whitener(stretch.ahead(), ridge)
    left, _, right = torch.linalg.svd(own @ rows @ stretch.across() @ ahead.T, full_matrices=False)
    return left.T @ own @ rows, right @ ahead


@dataclass(frozen=True)
class Fit:
    """What training gave: `rows` [dim L·d], `up` [L·d dim], the window's `mean` [L·d], and `pairs` by `canonical`."""

    rows: Tensor
    up: Tensor
    mean: Tensor
    pairs: tuple[Tensor, Tensor]


def fit(stretch: Stretch, kind: Kind, dim: int, whiten: bool = False, ridge: float = RIDGE) -> Fit:
    """Finds `dim` directions; `whiten` gives each variance 1, which those of `predictive` and `slow` have anyway."""
    rows = SEARCH[kind](stretch, dim, ridge)
    if whiten:
        window_whitener(stretch, dim, ridge)  # refuses directions that do not vary
        rows = unit(rows, stretch.now())
    mean = stretch.mean[: stretch.window * stretch.dim]
    return Fit(rows, lift_of(rows, stretch.now()), mean, canonical(stretch, rows, ridge))


def quality(stretch: Stretch, found: Fit, speakers: int, utterances: int) -> Quality:
    """How good a fit is on the frames behind `stretch`, of which there must be at least two."""
    now, rows = stretch.now(), found.rows
    shift = stretch.mean[: len(now)] - found.mean
    square = now + torch.outer(shift, shift)
    rest = square - found.up @ (rows @ square)
    left = (rest.diagonal() - ((rest @ rows.T) * found.up).sum(1)).sum()  # trace of (1 − UW) S (1 − UW)ᵀ
    mine, theirs = found.pairs
    spread = (mine @ now * mine).sum(1) * (theirs @ stretch.ahead() * theirs).sum(1)
    correlations = (mine @ stretch.across() * theirs).sum(1) / spread.clamp_min(1e-300).sqrt()
    slowness = (rows @ stretch.change() * rows).sum(1) / (rows @ now * rows).sum(1).clamp_min(1e-300)
    return Quality(
        speakers=speakers,
        utterances=utterances,
        frames=stretch.count,
        explained=1 - float(left / square.diagonal().sum().clamp_min(1e-300)),
        future=correlations.tolist(),
        slowness=slowness.tolist(),
    )
