"""What every law of a step can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

Index = Any  # whatever indexes a tensor: int, slice, Tensor, tuple of these


class StepDistribution(ABC):
    """A batch of laws of the displacement Δ ∈ R^D. Parameters are tensors whose leading dimensions are the batch.

    Every `log_prob` is a density over R^D in the units of Δ, whatever coordinates the law is parametrised in, so that
    all laws can be compared.
    """

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """The leading dimensions [...]; empty for one law."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """D."""

    @abstractmethod
    def log_prob(self, dx: Tensor) -> Tensor:
        """Log-density of dx [... d] in nats, [...]; dx broadcasts against the batch."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw per law, [... d]."""

    @abstractmethod
    def mean(self) -> Tensor:
        """E[Δ], [... d]."""

    @abstractmethod
    def point(self) -> Tensor:
        """The deterministic step of a rollout, [... d]; never longer than 95 % of the samples."""

    @abstractmethod
    def slice(self, index: Index) -> StepDistribution:
        """The laws at `index` of the batch."""

    @abstractmethod
    def expand(self, count: int) -> StepDistribution:
        """`count` copies of the whole batch in a new first dimension (views, no copy)."""


def normal(shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws on the generator's device, moved to `like`'s."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def uniform(shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws of [0, 1) on the generator's device, moved to `like`'s."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def soft_bound(raw: Tensor, limit: float) -> Tensor:
    """Maps R to (−limit, limit); the slope is 1 at 0, falls like 1/raw² and is never 0."""
    return raw / (1 + raw.abs() / limit)


def solve_lower(factor: Tensor, x: Tensor) -> Tensor:
    """factor⁻¹ x for x [... d] and a lower triangular factor [d d]."""
    flat = x.reshape(-1, x.shape[-1])
    white: Tensor = torch.linalg.solve_triangular(factor, flat.mT, upper=False)
    return white.mT.reshape(x.shape)


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition`."""
    if not condition:
        raise ValueError(message)
