"""A mixture of diagonal Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from arlat_kernels import mixture_nll
from torch import Tensor

from arlat_core.distributions.base import Index, StepDistribution, normal, require, uniform

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianMixture(StepDistribution):
    """Σ_m softmax(logits)_m N(mean_m, diag(exp(2·log_scale_m))): logits [... m], mean and log_scale [... m d].

    `point` is the mean of the likeliest component.
    """

    logits: Tensor
    loc: Tensor
    log_scale: Tensor

    def __post_init__(self) -> None:
        require(
            self.loc.shape == self.log_scale.shape and self.loc.dim() > 1 and self.logits.shape == self.loc.shape[:-1],
            f"logits {tuple(self.logits.shape)}, mean {tuple(self.loc.shape)} and log_scale "
            f"{tuple(self.log_scale.shape)} must be [... m], [... m d] and [... m d].",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.logits.shape[:-1]

    @property
    def dim(self) -> int:
        return self.loc.shape[-1]

    @property
    def components(self) -> int:
        """m."""
        return self.logits.shape[-1]

    def log_prob(self, dx: Tensor) -> Tensor:
        if self.batch_shape:
            shape = torch.broadcast_shapes(self.batch_shape, dx.shape[:-1])  # type: ignore[no-untyped-call]
            parts = (self.logits, self.loc, self.log_scale)
            spread = (part.expand(*shape, *part.shape[len(self.batch_shape) :]) for part in parts)
            return -mixture_nll(*spread, dx.expand(*shape, self.dim))
        # One component at a time where one law scores many points: [n m d] never exists.
        each = torch.stack([self._component(index, dx) for index in range(self.components)], -1)
        return torch.logsumexp(each + self.logits.log_softmax(-1), -1) - 0.5 * self.dim * LOG_2PI

    def _component(self, index: int, dx: Tensor) -> Tensor:
        """Exponent of component `index` of one law at dx [... d], without the constant, [...]."""
        residual = (dx - self.loc[index]) * torch.exp(-self.log_scale[index])
        return -0.5 * residual.square().sum(-1) - self.log_scale[index].sum()

    def _take(self, parameter: Tensor, component: Tensor) -> Tensor:
        """Rows [... d] of parameter [... m d] at component [...]."""
        at = component[..., None, None].expand(*component.shape, 1, self.dim)
        return parameter.gather(-2, at).squeeze(-2)

    def sample(self, generator: torch.Generator) -> Tensor:
        cumulative = self.logits.softmax(-1).cumsum(-1)
        draw = uniform((*self.batch_shape, 1), self.logits, generator) * cumulative[..., -1:]
        component = (draw >= cumulative).sum(-1).clamp_max(self.components - 1)
        loc, log_scale = self._take(self.loc, component), self._take(self.log_scale, component)
        return loc + log_scale.exp() * normal(loc.shape, loc, generator)

    def mean(self) -> Tensor:
        return (self.logits.softmax(-1)[..., None] * self.loc).sum(-2)

    def point(self) -> Tensor:
        return self._take(self.loc, self.logits.argmax(-1))

    def slice(self, index: Index) -> GaussianMixture:
        return GaussianMixture(self.logits[index], self.loc[index], self.log_scale[index])

    def expand(self, count: int) -> GaussianMixture:
        return GaussianMixture(*(part.expand(count, *part.shape) for part in (self.logits, self.loc, self.log_scale)))
