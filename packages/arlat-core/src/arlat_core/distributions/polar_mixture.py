"""A mixture of von Mises–Fisher directions with LogNormal lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from arlat_core.distributions.base import Index, StepDistribution, require, uniform
from arlat_core.distributions.vmf_lognormal import VonMisesLogNormal


@dataclass(frozen=True)
class PolarMixture(StepDistribution):
    """Σ_m softmax(logits)_m · VonMisesLogNormal_m: logits, kappa, mu, log_sigma [... m] and direction [... m d].

    `point` is the point of the likeliest component; `mean` the weighted mean of the components' means.
    """

    logits: Tensor
    direction: Tensor
    kappa: Tensor
    mu: Tensor
    log_sigma: Tensor

    def __post_init__(self) -> None:
        each = self.direction.shape[:-1]
        require(
            self.direction.dim() > 1
            and self.logits.shape == self.kappa.shape == self.mu.shape == self.log_sigma.shape == each,
            f"direction {tuple(self.direction.shape)} must be [... m d], and logits {tuple(self.logits.shape)}, kappa "
            f"{tuple(self.kappa.shape)}, mu {tuple(self.mu.shape)} and log_sigma {tuple(self.log_sigma.shape)} [... m].",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.logits.shape[:-1]

    @property
    def dim(self) -> int:
        return self.direction.shape[-1]

    @property
    def components(self) -> int:
        """m."""
        return self.logits.shape[-1]

    def _each(self) -> VonMisesLogNormal:
        """All components, a batch of [... m]."""
        return VonMisesLogNormal(self.direction, self.kappa, self.mu, self.log_sigma)

    def _take(self, component: Tensor) -> VonMisesLogNormal:
        """The components [...] at index component [...]."""
        rows = (part.gather(-1, component[..., None]).squeeze(-1) for part in (self.kappa, self.mu, self.log_sigma))
        at = component[..., None, None].expand(*component.shape, 1, self.dim)
        return VonMisesLogNormal(self.direction.gather(-2, at).squeeze(-2), *rows)

    def log_prob(self, dx: Tensor) -> Tensor:
        return torch.logsumexp(self._each().log_prob(dx[..., None, :]) + self.logits.log_softmax(-1), -1)

    def sample(self, generator: torch.Generator) -> Tensor:
        cumulative = self.logits.softmax(-1).cumsum(-1)
        draw = uniform((*self.batch_shape, 1), self.logits, generator) * cumulative[..., -1:]
        component = (draw >= cumulative).sum(-1).clamp_max(self.components - 1)
        return self._take(component).sample(generator)

    def mean(self) -> Tensor:
        return (self.logits.softmax(-1)[..., None] * self._each().mean()).sum(-2)

    def point(self) -> Tensor:
        return self._take(self.logits.argmax(-1)).point()

    def slice(self, index: Index) -> PolarMixture:
        parts = (self.logits, self.direction, self.kappa, self.mu, self.log_sigma)
        return PolarMixture(*(part[index] for part in parts))

    def expand(self, count: int) -> PolarMixture:
        parts = (self.logits, self.direction, self.kappa, self.mu, self.log_sigma)
        return PolarMixture(*(part.expand(count, *part.shape) for part in parts))
