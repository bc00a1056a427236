"""Gaussian laws of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from arlat_core.distributions.base import Index, StepDistribution, normal, require, solve_lower

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class DiagonalGaussian(StepDistribution):
    """N(mean, diag(exp(2·log_scale))) with mean and log_scale [... d]."""

    loc: Tensor
    log_scale: Tensor

    def __post_init__(self) -> None:
        require(
            self.loc.shape == self.log_scale.shape and self.loc.dim() > 0,
            f"mean {tuple(self.loc.shape)} and log_scale {tuple(self.log_scale.shape)} must both be [... d].",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.loc.shape[:-1]

    @property
    def dim(self) -> int:
        return self.loc.shape[-1]

    def log_prob(self, dx: Tensor) -> Tensor:
        residual = (dx - self.loc) * torch.exp(-self.log_scale)
        return -(0.5 * residual.square() + self.log_scale).sum(-1) - 0.5 * self.dim * LOG_2PI

    def sample(self, generator: torch.Generator) -> Tensor:
        return self.loc + self.log_scale.exp() * normal(self.loc.shape, self.loc, generator)

    def mean(self) -> Tensor:
        return self.loc

    def point(self) -> Tensor:
        return self.loc

    def slice(self, index: Index) -> DiagonalGaussian:
        return DiagonalGaussian(self.loc[index], self.log_scale[index])

    def expand(self, count: int) -> DiagonalGaussian:
        return DiagonalGaussian(
            self.loc.expand(count, *self.loc.shape), self.log_scale.expand(count, *self.log_scale.shape)
        )


@dataclass(frozen=True)
class FullGaussian(StepDistribution):
    """N(mean, factor·factorᵀ) with mean [... d] and one lower triangular factor [d d] for the whole batch."""

    loc: Tensor
    factor: Tensor

    def __post_init__(self) -> None:
        d = self.loc.shape[-1] if self.loc.dim() else -1
        require(
            self.factor.shape == (d, d),
            f"mean {tuple(self.loc.shape)} must be [... d] and factor {tuple(self.factor.shape)} [d d].",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.loc.shape[:-1]

    @property
    def dim(self) -> int:
        return self.loc.shape[-1]

    def log_prob(self, dx: Tensor) -> Tensor:
        white = solve_lower(self.factor, dx - self.loc)
        return -0.5 * white.square().sum(-1) - self.factor.diagonal().log().sum() - 0.5 * self.dim * LOG_2PI

    def sample(self, generator: torch.Generator) -> Tensor:
        return self.loc + normal(self.loc.shape, self.loc, generator) @ self.factor.mT

    def mean(self) -> Tensor:
        return self.loc

    def point(self) -> Tensor:
        return self.loc

    def slice(self, index: Index) -> FullGaussian:
        return FullGaussian(self.loc[index], self.factor)

    def expand(self, count: int) -> FullGaussian:
        return FullGaussian(self.loc.expand(count, *self.loc.shape), self.factor)
