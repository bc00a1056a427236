"""VAR(1) with a random transition matrix: z_{t+1} = A z_t + e, e ~ N(0, q I), scaled so that the mean variance is 1."""

from __future__ import annotations

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from torch import Tensor

from arlat_data.processes._linear import LinearProcess, stationary


class Config(BaseConfig):
    """Parameters of `var`."""

    radius: float = Field(0.9, ge=0, lt=1)
    """Spectral radius of the transition matrix."""


class VAR(LinearProcess[Config]):
    """VAR(1) with transition `a` [d d]."""

    def __init__(self, config: Config, a: Tensor) -> None:
        self.config, self.dim, self.a = config, len(a), a
        s = stationary(a, torch.eye(self.dim, dtype=torch.float64))
        self.s = s / s.diagonal().mean()


def build(config: Config, dim: int, generator: torch.Generator) -> VAR:
    """Draws a matrix with independent Gaussian entries and scales it to the spectral radius."""
    a = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return VAR(config, a * (config.radius / torch.linalg.eigvals(a).abs().max()))
