"""A power-spherical direction with a LogNormal length: an independent check of the von Mises–Fisher law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from arlat_core.distributions.base import Index, StepDistribution, normal, require

LOG_2PI = math.log(2 * math.pi)
SMALLEST_SQUARE = 1e-30  # squares below this are taken as this: logarithms of a vanishing density stay finite


@dataclass(frozen=True)
class PowerSphericalLogNormal(StepDistribution):
    """Direction u of density ∝ (1 + μᵀu)^κ, μ = direction/‖direction‖, × LogNormal(mu, exp(log_sigma)) length.

    direction [... d] of any length but 0, d ≥ 2, kappa [...] ≥ 0, mu and log_sigma [...]. With b = (D−1)/2 and a = b + κ,
    log p(u) = κ log((1 + μᵀu)/2) − 2b log 2 − b log π − log Γ(a) + log Γ(a + b), and (1 + μᵀu)/2 ~ Beta(a, b). log p(Δ)
    adds log N(log m; mu, σ) − D log m. `point` has the median length exp(mu); `mean` is κ/(κ + D − 1)·exp(mu + σ²/2)
    along the direction. De Cao and Aziz, The Power Spherical distribution, 2020.
    """

    direction: Tensor
    kappa: Tensor
    mu: Tensor
    log_sigma: Tensor

    def __post_init__(self) -> None:
        batch = self.direction.shape[:-1]
        require(
            self.direction.dim() > 0
            and self.direction.shape[-1] > 1
            and self.kappa.shape == self.mu.shape == self.log_sigma.shape == batch,
            f"direction {tuple(self.direction.shape)} must be [... d] with d ≥ 2, and kappa {tuple(self.kappa.shape)}, "
            f"mu {tuple(self.mu.shape)} and log_sigma {tuple(self.log_sigma.shape)} all [...].",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.mu.shape

    @property
    def dim(self) -> int:
        return self.direction.shape[-1]

    def _log_half(self, toward: Tensor) -> Tensor:
        """log((1 + μᵀu)/2) [...] for unit vectors u [... d], by the chord to the nearer pole: nothing cancels."""
        pole = normalize(self.direction, dim=-1)
        near = torch.log1p(-0.25 * (toward - pole).square().sum(-1).clamp_max(2.0))
        far = torch.log((0.25 * (toward + pole).square().sum(-1)).clamp_min(SMALLEST_SQUARE))
        return torch.where((toward * pole).sum(-1) > 0, near, far)

    def _log_norm(self) -> Tensor:
        """log of the density's constant [...] in front of ((1 + μᵀu)/2)^κ, float64."""
        half = 0.5 * (self.dim - 1)
        a = self.kappa.double() + half
        return torch.lgamma(a + half) - torch.lgamma(a) - half * math.log(4 * math.pi)

    def log_prob(self, dx: Tensor) -> Tensor:
        log_m = 0.5 * dx.square().sum(-1).clamp_min(SMALLEST_SQUARE).log()
        toward = dx * torch.exp(-log_m)[..., None]
        residual = (log_m - self.mu) * torch.exp(-self.log_sigma)
        log_normal = -0.5 * residual.square() - self.log_sigma - 0.5 * LOG_2PI
        return log_normal - self.dim * log_m + self.kappa * self._log_half(toward) + self._log_norm().to(dx.dtype)

    def sample(self, generator: torch.Generator) -> Tensor:
        half = 0.5 * (self.dim - 1)
        a = (self.kappa.double() + half).to(generator.device)
        # Two gammas rather than a beta: both t = μᵀu and √(1 − t²) come out without cancellation, and with gradients.
        up = torch._standard_gamma(a, generator=generator)
        down = torch._standard_gamma(torch.full_like(a, half), generator=generator)
        total = up + down
        along = ((up - down) / total).to(self.mu)[..., None]
        across = (2 * (up * down).clamp_min(SMALLEST_SQUARE).sqrt() / total).to(self.mu)[..., None]
        pole = normalize(self.direction, dim=-1)
        draw = normal(self.direction.shape, self.direction, generator)
        tangent = normalize(draw - (draw * pole).sum(-1, keepdim=True) * pole, dim=-1)
        length = torch.exp(self.mu + self.log_sigma.exp() * normal(self.mu.shape, self.mu, generator))
        return length[..., None] * (along * pole + across * tangent)

    def mean(self) -> Tensor:
        resultant = self.kappa / (self.kappa + self.dim - 1)
        length = resultant * torch.exp(self.mu + 0.5 * torch.exp(2 * self.log_sigma))
        return length[..., None] * normalize(self.direction, dim=-1)

    def point(self) -> Tensor:
        return self.mu.exp()[..., None] * normalize(self.direction, dim=-1)

    def slice(self, index: Index) -> PowerSphericalLogNormal:
        return PowerSphericalLogNormal(self.direction[index], self.kappa[index], self.mu[index], self.log_sigma[index])

    def expand(self, count: int) -> PowerSphericalLogNormal:
        parts = (self.direction, self.kappa, self.mu, self.log_sigma)
        return PowerSphericalLogNormal(*(part.expand(count, *part.shape) for part in parts))
