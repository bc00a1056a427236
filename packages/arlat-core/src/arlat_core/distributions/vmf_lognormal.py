"""A von Mises–Fisher direction with a LogNormal length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from arlat_kernels import vmf_mean_resultant, vmf_nll, vmf_sample
from torch import Tensor

from arlat_core.distributions.base import Index, StepDistribution, normal, require

LOG_2PI = math.log(2 * math.pi)
SMALLEST_SQUARE = 1e-30  # ‖Δ‖² below this is taken as this: the density at Δ = 0 is 0, and its logarithm stays finite


@dataclass(frozen=True)
class VonMisesLogNormal(StepDistribution):
    """Direction vMF(direction/‖direction‖, κ) × LogNormal(mu, exp(log_sigma)) length, independent of each other.

    direction [... d] of any length but 0, kappa [...] ≥ 0, mu and log_sigma [...]. log p(Δ) = log vMF(Δ/m) +
    log N(log m; mu, σ) − D log m, of which −log m belongs to the LogNormal and −(D−1) log m is the Jacobian of polar
    coordinates. `point` has the median length exp(mu); `mean` is A(κ)·exp(mu + σ²/2) along the direction.
    """

    direction: Tensor
    kappa: Tensor
    mu: Tensor
    log_sigma: Tensor

    def __post_init__(self) -> None:
        batch = self.direction.shape[:-1]
        require(
            self.direction.dim() > 0 and self.kappa.shape == self.mu.shape == self.log_sigma.shape == batch,
            f"direction {tuple(self.direction.shape)} must be [... d], and kappa {tuple(self.kappa.shape)}, mu "
            f"{tuple(self.mu.shape)} and log_sigma {tuple(self.log_sigma.shape)} all [...].",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.mu.shape

    @property
    def dim(self) -> int:
        return self.direction.shape[-1]

    def log_prob(self, dx: Tensor) -> Tensor:
        log_m = 0.5 * dx.square().sum(-1).clamp_min(SMALLEST_SQUARE).log()
        toward = dx * torch.exp(-log_m)[..., None]
        residual = (log_m - self.mu) * torch.exp(-self.log_sigma)
        log_normal = -0.5 * residual.square() - self.log_sigma - 0.5 * LOG_2PI
        return log_normal - self.dim * log_m - vmf_nll(self.direction, self.kappa, toward)

    def sample(self, generator: torch.Generator) -> Tensor:
        toward = vmf_sample(self.direction, self.kappa, generator=generator)
        length = torch.exp(self.mu + self.log_sigma.exp() * normal(self.mu.shape, self.mu, generator))
        return length[..., None] * toward

    def _along(self, length: Tensor) -> Tensor:
        """`length` [...] along the direction, [... d]."""
        return length[..., None] * torch.nn.functional.normalize(self.direction, dim=-1)

    def mean(self) -> Tensor:
        half_variance = 0.5 * torch.exp(2 * self.log_sigma)
        return self._along(vmf_mean_resultant(self.kappa, self.dim) * torch.exp(self.mu + half_variance))

    def point(self) -> Tensor:
        return self._along(self.mu.exp())

    def slice(self, index: Index) -> VonMisesLogNormal:
        return VonMisesLogNormal(self.direction[index], self.kappa[index], self.mu[index], self.log_sigma[index])

    def expand(self, count: int) -> VonMisesLogNormal:
        parts = (self.direction, self.kappa, self.mu, self.log_sigma)
        return VonMisesLogNormal(*(part.expand(count, *part.shape) for part in parts))
