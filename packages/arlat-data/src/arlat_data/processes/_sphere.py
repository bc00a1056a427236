"""Directions: exact vMF draws, and steps m·u with u ~ vMF(·, κ) and m ~ LogNormal, in float64."""

from __future__ import annotations

import math

import torch
from arlat_core.config import UserError
from arlat_kernels.vmf import vmf_entropy, vmf_log_norm, vmf_mean_resultant
from scipy import optimize
from torch import Tensor


def log_area(dim: int) -> float:
    """log of the area of the unit sphere in R^dim."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def resultant(kappa: float, dim: int) -> float:
    """A_d(κ) = E[u·μ]."""
    return float(vmf_mean_resultant(torch.tensor(kappa, dtype=torch.float64), dim))


def entropy(kappa: float, dim: int) -> float:
    """Entropy of vMF(κ) on the unit sphere of R^dim, in nats."""
    return float(vmf_entropy(torch.tensor(kappa, dtype=torch.float64), dim))


def log_density(cosine: Tensor, kappa: float, dim: int) -> Tensor:
    """log of the vMF density at directions whose cosine with μ is `cosine` [...]."""
    return kappa * (cosine - 1) + vmf_log_norm(torch.tensor(kappa, dtype=torch.float64), dim, scaled=True)


def concentration(kappa: float | None, dim: int, name: str, cosine: float) -> float:
    """κ, by default the one with A_d(κ) = cosine; raises UserError in one dimension, where there are no directions."""
    if dim < 2:
        raise UserError(f"{name} draws directions and needs --dim 2 or more, but got {dim}.")
    if kappa is not None:
        return kappa
    return float(optimize.brentq(lambda at: resultant(at, dim) - cosine, 1e-3, 10.0 * dim + 10))


def draw_cosines(shape: tuple[int, ...], kappa: float, dim: int, generator: torch.Generator) -> Tensor:
    """u·μ for u ~ vMF(μ, κ), by Wood's rejection (1994), [shape]."""
    count = math.prod(shape)
    n = dim - 1
    b = n / (2 * kappa + math.sqrt(4 * kappa**2 + n**2))
    x0 = (1 - b) / (1 + b)
    bound = kappa * x0 + n * math.log1p(-(x0**2))
    found: list[Tensor] = []
    missing = count
    while missing > 0:
        half = torch.full((2, 2 * missing + 16), n / 2, dtype=torch.float64)
        gamma = torch._standard_gamma(half, generator=generator)
        beta = gamma[0] / gamma.sum(0)
        w = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
        u = torch.rand(w.shape, generator=generator, dtype=torch.float64)
        found.append(w[kappa * w + n * torch.log1p(-x0 * w) - bound >= u.log()][:missing])
        missing -= len(found[-1])
    return torch.cat(found).view(shape)


def turn(mu: Tensor, cosine: Tensor, noise: Tensor) -> Tensor:
    """Directions [... d] at the given cosine [...] with unit vectors mu [... d], turned towards Gaussian noise [... d]."""
    side = noise - (noise * mu).sum(-1, keepdim=True) * mu
    side = torch.nn.functional.normalize(side, dim=-1)
    return cosine[..., None] * mu + (1 - cosine**2).clamp(min=0).sqrt()[..., None] * side


def step_entropy(direction_entropy: float, mu: float, sigma: float, dim: int) -> float:
    """Entropy in R^dim of m·u: that of u, that of m ~ LogNormal(mu, sigma), and the Jacobian (dim − 1)·E log m."""
    return direction_entropy + lognormal_entropy(mu, sigma) + (dim - 1) * mu


def lognormal_entropy(mu: float, sigma: float) -> float:
    """Entropy of LogNormal(mu, sigma) on the half line, in nats."""
    return mu + 0.5 * math.log(2 * math.pi * math.e * sigma**2)
