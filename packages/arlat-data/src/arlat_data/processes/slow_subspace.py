"""A planted slow subspace: a few AR(1) directions among white ones, in a randomly rotated basis.

PCA cannot find it where the white directions carry as much variance; a slowness or predictive readout can.
"""

from __future__ import annotations

from typing import Any

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from pydantic import Field
from torch import Tensor

from arlat_data.processes._linear import LinearProcess


class Config(BaseConfig):
    """Parameters of `slow_subspace`."""

    slow: int = Field(4, gt=0)
    """Dimension of the slow subspace."""
    rho: float = Field(0.95, gt=-1, lt=1)
    """Correlation of successive frames in it."""
    fast_scale: float = Field(1.0, gt=0)
    """Standard deviation of the white directions; that of the slow ones is 1."""


class SlowSubspace(LinearProcess[Config]):
    """AR(1) in the first `slow` columns of `basis` [d d], white noise in the others."""

    def __init__(self, config: Config, basis: Tensor) -> None:
        self.config, self.dim, self.basis = config, len(basis), basis
        slow = (torch.arange(self.dim) < config.slow).double()
        self.a = basis * (config.rho * slow) @ basis.T
        self.s = basis * torch.where(slow > 0, 1.0, config.fast_scale**2).double() @ basis.T

    def planted(self) -> dict[str, list[Any]]:
        return {"slow_basis": self.basis[:, : self.config.slow].T.tolist()}


def rotation(dim: int, generator: torch.Generator) -> Tensor:
    """A uniformly random orthogonal matrix [dim dim]."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return torch.mul(q, r.diagonal().sign())


def build(config: Config, dim: int, generator: torch.Generator) -> SlowSubspace:
    """Draws the basis."""
    if config.slow > dim:
        raise UserError(f"slow_subspace cannot plant {config.slow} slow directions in {dim} dimensions: lower --slow.")
    return SlowSubspace(config, rotation(dim, generator))
