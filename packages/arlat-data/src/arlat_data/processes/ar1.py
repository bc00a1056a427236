"""AR(1): z_{t+1} = ρ z_t + √(1 − ρ²) e, e ~ N(0, I), in every dimension alike; the stationary law is N(0, I)."""

from __future__ import annotations

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field

from arlat_data.processes._linear import LinearProcess


class Config(BaseConfig):
    """Parameters of `ar1`."""

    rho: float = Field(0.8, gt=-1, lt=1)
    """Correlation of successive frames."""


class AR1(LinearProcess[Config]):
    """AR(1) in `dim` dimensions."""

    def __init__(self, config: Config, dim: int) -> None:
        self.config, self.dim = config, dim
        self.s = torch.eye(dim, dtype=torch.float64)
        self.a = config.rho * self.s


def build(config: Config, dim: int, generator: torch.Generator) -> AR1:
    """Makes the process; nothing is drawn."""
    return AR1(config, dim)
