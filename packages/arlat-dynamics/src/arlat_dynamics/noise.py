"""Noise on what a model sees in training, so that it learns to go on from states that are slightly wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from torch import Tensor

Form = Literal["variance_preserving", "linear"]


def variance_preserving(x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """√(1 − k)·x + √k·ε. Source: Rouard et al., 2025, "Continuous audio language models"."""
    return (1 - level).sqrt() * x + level.sqrt() * noise


def linear(x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x + k·ε."""
    return x + level * noise


FORMS: dict[Form, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "variance_preserving": variance_preserving,
    "linear": linear,
}


class NoiseConfig(BaseConfig):
    """Noise injection; none at level 0."""

    form: Form = "variance_preserving"
    """variance_preserving or linear."""
    level: float = Field(default=0.0, ge=0, le=1)
    """Highest level k; every sequence draws its own from 0 to this."""


def draw_noise(config: NoiseConfig, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal ε [b w d] and levels k [b 1 1]."""
    return torch.randn(shape, generator=generator), config.level * torch.rand(shape[0], 1, 1, generator=generator)
