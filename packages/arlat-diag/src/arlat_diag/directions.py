"""Von Mises–Fisher laws of directions: maximum likelihood, and the distribution of the cosine with the mean direction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from arlat_kernels import vmf_mean_resultant, vmf_nll
from scipy import optimize
from torch import Tensor

MOST = 1e8  # κ of directions that are all the same, to rounding
NODES = 96  # of Gauss–Legendre on either side of a cosine: 1e-11 of the integral
REACH = 12.0  # standard deviations of the angle around its mode beyond which there is nothing
BLOCK = 4096  # rows at a time


@dataclass(frozen=True)
class DirectionLaw:
    """vMF(mean/‖mean‖, κ) on directions, mean [d] float64."""

    mean: Tensor
    kappa: float

    def nll(self, directions: Tensor) -> Tensor:
        """NLL [n] of directions [n d] of any length, in nats against the sphere's surface measure."""
        return around(self.mean, self.kappa, directions)


def around(mean: Tensor, kappa: float, directions: Tensor) -> Tensor:
    """NLL [n] float64 of directions [n d] under vMF laws around mean [d] or [n d] that share one κ."""
    return vmf_nll(mean.double(), torch.tensor(kappa, dtype=torch.float64), directions.double())


def fit_directions(directions: Tensor) -> DirectionLaw:
    """The maximum-likelihood vMF law of directions [n d] of any length but 0: κ solves A(κ) = ‖mean direction‖.

    Source: Mardia and Jupp, Directional Statistics, 2000, §10.3.1.
    """
    total = torch.zeros(directions.shape[-1], dtype=torch.float64)
    for part in torch.split(directions, BLOCK):
        total += torch.nn.functional.normalize(part.double(), dim=-1).sum(0)
    mean = total / len(directions)
    return DirectionLaw(mean, concentration(float(mean.norm()), directions.shape[-1]))


def concentration(resultant: float, dim: int) -> float:
    """κ ≥ 0 with A(κ) = resultant in R^dim, 1e8 at most; 0 where the resultant is not positive."""
    if resultant <= 0:
        return 0.0

    def gap(log_kappa: float) -> float:
        return float(vmf_mean_resultant(torch.tensor(math.exp(log_kappa), dtype=torch.float64), dim)) - resultant

    if gap(math.log(MOST)) <= 0:
        return MOST
    lowest = math.log(resultant)  # A(κ) ≤ κ/d
    return math.exp(optimize.brentq(gap, lowest, math.log(MOST), xtol=1e-12, rtol=1e-12))


def cosine_cdf(cosine: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """P(μᵀx ≤ cosine) [n] float64 for x ~ vMF(μ, κ) in R^dim, by Gauss–Legendre in the angle θ.

    The density of θ is ∝ sin^{d−2}θ·exp(κ cos θ). With its mode and curvature as scale, both sides of the cosine are
    integrated over their part of the mode ± 12 standard deviations.
    """
    parts = zip(torch.split(cosine.double(), BLOCK), torch.split(kappa.double(), BLOCK), strict=True)
    return torch.cat([block_cdf(at.clamp(-1, 1), concentrated, dim) for at, concentrated in parts])


def block_cdf(cosine: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """`cosine_cdf` of one block."""
    power = float(dim - 2)
    # the mode has κ sin²θ = (d−2) cos θ; without cancellation at small κ
    mode_cosine = 2 * kappa / (power + torch.sqrt(power**2 + 4 * kappa**2)).clamp_min(1e-300)
    mode = torch.acos(mode_cosine.clamp(-1, 1))
    curvature = kappa * mode_cosine + power / (1 - mode_cosine**2).clamp_min(1e-12)
    reach = REACH / curvature.clamp_min(1e-300).sqrt()
    low, high = (mode - reach).clamp_min(0), (mode + reach).clamp_max(math.pi)
    at = torch.minimum(torch.maximum(torch.acos(cosine), low), high)
    top = log_density(mode.clamp_min(1e-8), kappa, power)

    def integral(start: Tensor, end: Tensor) -> Tensor:
        node, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(NODES))
        half = (end - start)[:, None] / 2
        angle = start[:, None] + half * (1 + node)
        height = torch.exp(log_density(angle, kappa[:, None], power) - top[:, None])
        return (half * weight * height).sum(-1)

    nearer, farther = integral(low, at), integral(at, high)
    return farther / (nearer + farther)


def log_density(angle: Tensor, kappa: Tensor, power: float) -> Tensor:
    """log of sin^power θ·exp(κ cos θ), unnormalised, at angles inside (0, π); −2κ sin²(θ/2) keeps the digits of cos θ − 1."""
    return power * angle.sin().clamp_min(1e-300).log() - 2 * kappa * (angle / 2).sin().square()
