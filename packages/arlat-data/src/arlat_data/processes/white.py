"""White noise: z_t ~ N(0, I), independent. Every figure that it scores is a floor."""

from __future__ import annotations

import torch
from arlat_core.config import Config as BaseConfig

from arlat_data.processes._linear import LinearProcess


class Config(BaseConfig):
    """White noise has no parameters."""


class White(LinearProcess[Config]):
    """White noise in `dim` dimensions."""

    def __init__(self, config: Config, dim: int) -> None:
        self.config, self.dim = config, dim
        self.a = torch.zeros(dim, dim, dtype=torch.float64)
        self.s = torch.eye(dim, dtype=torch.float64)


def build(config: Config, dim: int, generator: torch.Generator) -> White:
    """Makes the process; nothing is drawn."""
    return White(config, dim)
