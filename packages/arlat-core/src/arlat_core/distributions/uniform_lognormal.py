"""A direction that knows nothing, with a LogNormal length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from arlat_core.distributions.base import Index, StepDistribution, normal, require

LOG_2PI = math.log(2 * math.pi)
SMALLEST_SQUARE = 1e-30  # ‖Δ‖² below this is taken as this: the density at Δ = 0 is 0, and its logarithm stays finite


def log_sphere_area(dim: int) -> float:
    """log of the area of the unit sphere in R^dim: log 2 + (D/2) log π − log Γ(D/2)."""
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


@dataclass(frozen=True)
class UniformLogNormal(StepDistribution):
    """Uniform direction × LogNormal(mu, exp(log_sigma)) length, mu and log_sigma [...].

    log p(Δ) = log N(log m; mu, σ) − D log m − log area, of which −log m belongs to the LogNormal and −(D−1) log m is
    the Jacobian of polar coordinates. `mean` and `point` are 0: no direction is likelier than another.
    """

    mu: Tensor
    log_sigma: Tensor
    size: int

    def __post_init__(self) -> None:
        require(
            self.mu.shape == self.log_sigma.shape and self.size > 0,
            f"mu {tuple(self.mu.shape)} and log_sigma {tuple(self.log_sigma.shape)} must both be [...], dim positive.",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.mu.shape

    @property
    def dim(self) -> int:
        return self.size

    def log_prob(self, dx: Tensor) -> Tensor:
        log_m = 0.5 * dx.square().sum(-1).clamp_min(SMALLEST_SQUARE).log()
        residual = (log_m - self.mu) * torch.exp(-self.log_sigma)
        log_normal = -0.5 * residual.square() - self.log_sigma - 0.5 * LOG_2PI
        return log_normal - self.dim * log_m - log_sphere_area(self.dim)

    def sample(self, generator: torch.Generator) -> Tensor:
        direction = torch.nn.functional.normalize(normal((*self.mu.shape, self.dim), self.mu, generator), dim=-1)
        length = torch.exp(self.mu + self.log_sigma.exp() * normal(self.mu.shape, self.mu, generator))
        return length[..., None] * direction

    def mean(self) -> Tensor:
        return self.mu.new_zeros(*self.mu.shape, self.dim)

    def point(self) -> Tensor:
        return self.mean()

    def slice(self, index: Index) -> UniformLogNormal:
        return UniformLogNormal(self.mu[index], self.log_sigma[index], self.dim)

    def expand(self, count: int) -> UniformLogNormal:
        return UniformLogNormal(
            self.mu.expand(count, *self.mu.shape), self.log_sigma.expand(count, *self.log_sigma.shape), self.dim
        )
