"""Fréchet distance of Gaussian fits, between halves of the speakers, and its interval by the jackknife.

d² = ‖μ_x − μ_y‖² + tr(C_x + C_y − 2 (C_x^½ C_y C_x^½)^½). A fit to n frames in p dimensions is biased upwards by about
p²/n; every distance here is between two sets of the same size from different speakers, so that all share that bias, and a
distance of rolled-out from true frames is read beside the distance of true frames from true frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]  # a mask of rows [n] -> figures [v]
FRAMES_PER_DIMENSION = 4  # in either half, at least


def principal_axes(z: Tensor, dims: int) -> tuple[Tensor, float]:
    """The first `dims` principal directions [d dims] of frames z [n d], and their share of the variance."""
    covariance = torch.cov(z.double().mT, correction=0).reshape(z.shape[1], z.shape[1])
    values, vectors = torch.linalg.eigh(covariance)
    return vectors[:, -dims:].flip(-1), float(values[-dims:].sum() / values.sum().clamp_min(1e-300))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [k p] and covariance [k p p] of x [n k p]."""
    mean = x.mean(0)
    centred = (x - mean).transpose(0, 1)  # [k n p]
    return mean, centred.mT @ centred / (len(x) - 1)


def frechet(x: Tensor, y: Tensor) -> Tensor:
    """d² [k] between Gaussian fits of x [n k p] and y [m k p]; the square root's trace is that of eigenvalues of C_x^½ C_y C_x^½."""
    (mean_x, cov_x), (mean_y, cov_y) = moments(x), moments(y)
    values, vectors = torch.linalg.eigh(cov_x)
    root = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    product = root @ cov_y @ root
    cross = torch.linalg.eigvalsh((product + product.mT) / 2).clamp_min(0).sqrt().sum(-1)
    trace = (cov_x + cov_y).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance: Tensor = (mean_x - mean_y).square().sum(-1) + trace - 2 * cross
    return distance


def speaker_halves(unit: Tensor, generator: torch.Generator) -> Tensor:
    """A random half of the units (speakers) of rows [n], with about half of the rows: a mask [n]."""
    names, index, counts = torch.unique(unit, return_inverse=True, return_counts=True)
    first, balance = torch.zeros(len(names), dtype=torch.bool), 0
    for name in torch.randperm(len(names), generator=generator).tolist():
        first[name] = balance <= 0
        balance += int(counts[name]) if first[name] else -int(counts[name])
    return first[index]


def equal_halves(rows: Tensor, first: Tensor, enough: int) -> tuple[Tensor, Tensor] | None:
    """Rows (mask [n]) inside and outside `first`, evenly thinned to the same number; None where that is below `enough`."""
    one, two = (rows & first).nonzero()[:, 0], (rows & ~first).nonzero()[:, 0]
    size = min(len(one), len(two))
    if size < enough:
        return None
    return thin(one, size), thin(two, size)


def thin(index: Tensor, size: int) -> Tensor:
    """`size` of the positions, evenly spaced."""
    return index[torch.linspace(0, len(index) - 1, size, dtype=torch.float64).long()]


def jackknife(statistic: Statistic, unit: Tensor, groups: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """(value, low, high), each [v], of a smooth statistic of rows, leaving out one group of units [n] at a time.

    The bootstrap repeats rows, which makes covariances and so Fréchet distances wrong; leaving some out does not.
    """
    names, index = torch.unique(unit, return_inverse=True)
    count = min(groups, len(names))
    every = torch.ones(len(unit), dtype=torch.bool)
    value = statistic(every)
    if count < 3:
        return value, torch.full_like(value, torch.nan), torch.full_like(value, torch.nan)
    left = torch.stack([statistic(index % count != group) for group in range(count)])
    error = ((left - left.mean(0)).square().sum(0) * (count - 1) / count).sqrt()
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    return value, value - reach, value + reach


def decibel(power: Tensor, other: Tensor) -> Tensor:
    """10 log₁₀ of a ratio of powers."""
    return 10 / float(np.log(10)) * (power.clamp_min(1e-300) / other.clamp_min(1e-300)).log()
