"""A law seen through an affine map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from arlat_core.distributions.base import Index, StepDistribution, require, solve_lower


@dataclass(frozen=True)
class Affine(StepDistribution):
    """The law of shift + factor·e with e ~ base: shift [... d], factor [d d] lower triangular with positive diagonal.

    log p(Δ) = log p_base(factor⁻¹(Δ − shift)) − log|det factor|.
    """

    base: StepDistribution
    shift: Tensor
    factor: Tensor

    def __post_init__(self) -> None:
        d = self.base.dim
        require(
            self.shift.shape == (*self.base.batch_shape, d) and self.factor.shape == (d, d),
            f"shift {tuple(self.shift.shape)} must be {(*self.base.batch_shape, d)} as the base, "
            f"and factor {tuple(self.factor.shape)} {(d, d)}.",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.shift.shape[:-1]

    @property
    def dim(self) -> int:
        return self.shift.shape[-1]

    def log_prob(self, dx: Tensor) -> Tensor:
        return self.base.log_prob(solve_lower(self.factor, dx - self.shift)) - self.factor.diagonal().log().sum()

    def _map(self, e: Tensor) -> Tensor:
        return self.shift + e @ self.factor.mT

    def sample(self, generator: torch.Generator) -> Tensor:
        return self._map(self.base.sample(generator))

    def mean(self) -> Tensor:
        return self._map(self.base.mean())

    def point(self) -> Tensor:
        return self._map(self.base.point())

    def slice(self, index: Index) -> Affine:
        return Affine(self.base.slice(index), self.shift[index], self.factor)

    def expand(self, count: int) -> Affine:
        return Affine(self.base.expand(count), self.shift.expand(count, *self.shift.shape), self.factor)
