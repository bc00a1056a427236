"""A regime-switching VAR: a hidden Markov regime s_t picks z_{t+1} = ρ R_s z_t + √(1 − ρ²) e, with R_s a rotation.

Every regime keeps N(0, I), so z_t is N(0, I) whatever the regimes were, and the perfect predictor is an exact forward
filter over the frames of its context, started from the regimes' stationary law. Regimes stay with probability `stay`
and otherwise move to each other one alike, so that their stationary law is uniform.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from torch import Tensor

from arlat_data.processes import _process as process
from arlat_data.processes._process import Process, Truth, average, exact, shifted
from arlat_data.processes.cycle import ratio
from arlat_data.processes.slow_subspace import rotation

CONTEXT = 8  # frames that the predictor of the battery sees
DRAWS = 20_000


class Config(BaseConfig):
    """Parameters of `switching`."""

    regimes: int = Field(3, gt=0)
    """Number of regimes."""
    rho: float = Field(0.8, gt=-1, lt=1)
    """Correlation of a frame with the turned one before it."""
    stay: float = Field(0.95, gt=0, lt=1)
    """Probability that the next step has the same regime."""


class Switching(Process[Config]):
    """A regime-switching VAR with rotations [regimes d d]; the first is the identity."""

    def __init__(self, config: Config, rotations: Tensor) -> None:
        self.config, self.dim, self.rotations = config, rotations.shape[-1], rotations
        k = config.regimes
        away = (1 - config.stay) / max(k - 1, 1)
        self.move = torch.full((k, k), away, dtype=torch.float64)
        self.move.fill_diagonal_(config.stay if k > 1 else 1.0)

    def planted(self) -> dict[str, list[Any]]:
        return {"regime_transitions": self.move.tolist()}

    def simulate(self, utterances: int, frames: int, generator: torch.Generator) -> Tensor:
        noise = math.sqrt(1 - self.config.rho**2)
        z = torch.randn(utterances, frames, self.dim, generator=generator, dtype=torch.float64)
        regime = torch.randint(self.config.regimes, (utterances,), generator=generator)
        for t in range(1, frames):
            for k in range(self.config.regimes):
                here = regime == k
                z[here, t] = self.turned(z[here, t - 1], k) + noise * z[here, t]
            regime = torch.multinomial(self.move[regime], 1, generator=generator)[:, 0]
        return z

    def turned(self, z: Tensor, regime: int) -> Tensor:
        """ρ R z of one regime, [... d]."""
        return self.config.rho * z @ self.rotations[regime].T

    def predict(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """log probability [n k] of the regime of the next step, and the forecasts [n k d], from frames [n w d]."""
        k = self.config.regimes
        log_p = torch.full((len(context), k), -math.log(k), dtype=torch.float64)
        for t in range(1, context.shape[1]):
            log_p = (log_p + self.log_steps(context[:, t - 1], context[:, t])).log_softmax(-1)
            log_p = (log_p.exp() @ self.move).log()
        return log_p, torch.stack([self.turned(context[:, -1], s) for s in range(k)], 1)

    def log_steps(self, now: Tensor, future: Tensor) -> Tensor:
        """log density [n k] of the step under each regime."""
        variance = 1 - self.config.rho**2
        means = torch.stack([self.turned(now, s) for s in range(self.config.regimes)], 1)
        square = (future[:, None] - means).square().sum(-1)
        return -0.5 * (square / variance + self.dim * math.log(2 * math.pi * variance))

    def truth(self, frame_rate: float, generator: torch.Generator) -> Truth:
        z = self.simulate(DRAWS, CONTEXT + 1, generator)
        log_p, means = self.predict(z[:, :-1])
        nll = average(-(log_p + self.log_steps(z[:, -2], z[:, -1])).logsumexp(-1))
        step = z[:, -1] - z[:, -2]
        forecast = (log_p.exp()[..., None] * means).sum(1) - z[:, -2]
        moments = self.moments()
        delta = 2 * torch.eye(self.dim, dtype=torch.float64) - moments[0] - moments[0].T
        entropy = self.dim / 2 * math.log(2 * math.pi * math.e)
        b5 = shifted(nll, 1.0, -entropy)
        values = {
            "p1.h1.nll": nll,
            "p1.h1.dnll_b0": shifted(nll, 1.0, -entropy - float(delta.diagonal().log().sum()) / 2),
            "p1.h1.dnll_b1": shifted(nll, 1.0, -entropy - float(torch.linalg.slogdet(delta)[1]) / 2),
            "p1.h1.dnll_b5": b5,
            "p1.h1.dnll_b5_gaussian": b5,
            "p1.h1.information_rate": process.bits_per_second(b5, frame_rate),
            "p1.h1.cosine": average(torch.cosine_similarity(forecast, step, dim=-1)),
            "p1.h1.magnitude_ratio": ratio(forecast.norm(dim=-1), step.norm(dim=-1)),
            "p4.effective_dim": exact(self.dim),
        }
        for k, matrix in enumerate(moments, 1):
            values[f"p4.rho[{k}]"] = exact(float(matrix.diagonal().mean()))
        return values

    def moments(self) -> list[Tensor]:
        """E z_{t+k} z_tᵀ for k = 1…16, by the regimes' transition matrix: exact."""
        k = self.config.regimes
        part = torch.eye(self.dim, dtype=torch.float64).expand(k, -1, -1) / k  # E[z_{t+j} z_tᵀ; s_{t+j} = s]
        found = []
        for _ in range(process.STEPS):
            stepped = self.config.rho * self.rotations @ part
            found.append(stepped.sum(0))
            part = torch.einsum("sr,sij->rij", self.move, stepped)
        return found


def build(config: Config, dim: int, generator: torch.Generator) -> Switching:
    """Draws the rotations of all regimes but the first."""
    turns = [torch.eye(dim, dtype=torch.float64)] + [rotation(dim, generator) for _ in range(config.regimes - 1)]
    return Switching(config, torch.stack(turns))
