"""A noisy limit cycle in each plane: the phase turns, the radius is drawn back to 1.

In plane p the phase moves by 2π/period_p plus N(0, phase_noise²), and the log radius is AR(1) with coefficient `memory` and
innovations N(0, radius_noise²); both start from their stationary laws. The transition density is a wrapped normal times
a log-normal over r², so that entropies are sums of one-dimensional ones. Periods are spread evenly over the planes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from pydantic import Field
from torch import Tensor

from arlat_data.processes import _process as process
from arlat_data.processes._process import Process, Truth, average, exact, monte_carlo, quadrature

DRAWS = 50_000


class Config(BaseConfig):
    """Parameters of `cycle`."""

    period_min: float = Field(8.0, gt=2)
    """Frames per turn in the fastest plane."""
    period_max: float = Field(32.0, gt=2)
    """Frames per turn in the slowest plane."""
    phase_noise: float = Field(0.2, gt=0)
    """Standard deviation of the phase's noise, in radians per frame."""
    memory: float = Field(0.8, ge=0, lt=1)
    """Coefficient of the log radius: 0 returns to the cycle at once."""
    radius_noise: float = Field(0.1, gt=0)
    """Standard deviation of the log radius's noise per frame."""


class Cycle(Process[Config]):
    """A limit cycle in each of dim/2 planes, plane p in dimensions 2p and 2p + 1."""

    def __init__(self, config: Config, dim: int) -> None:
        self.dim = dim
        self.config = config
        self.turn = 2 * math.pi / torch.linspace(config.period_min, config.period_max, dim // 2, dtype=torch.float64)
        self.variance = config.radius_noise**2 / (1 - config.memory**2)  # of the log radius

    def planted(self) -> dict[str, list[Any]]:
        return {"radians_per_frame": self.turn.tolist()}

    def simulate(self, utterances: int, frames: int, generator: torch.Generator) -> Tensor:
        c, planes = self.config, self.dim // 2
        noise = torch.randn(2, utterances, frames, planes, generator=generator, dtype=torch.float64)
        start = torch.rand(utterances, 1, planes, generator=generator, dtype=torch.float64) * (2 * math.pi)
        steps = self.turn + c.phase_noise * noise[0]
        phase = start + steps.cumsum(1) - steps[:, :1]
        log_r = noise[1]
        log_r[:, 0] *= math.sqrt(self.variance)
        for t in range(1, frames):
            log_r[:, t] = c.memory * log_r[:, t - 1] + c.radius_noise * log_r[:, t]
        return plane(log_r.exp(), phase)

    def truth(self, frame_rate: float, generator: torch.Generator) -> Truth:
        planes = self.dim // 2
        values: Truth = {}
        radial = 0.5 * math.log(2 * math.pi * math.e * self.variance)
        marginal = planes * (radial + math.log(2 * math.pi))
        power = math.exp(2 * self.variance)  # E r²
        gaussian = self.dim / 2 * math.log(2 * math.pi * math.e * power / 2)
        for h in process.HORIZONS:
            kept = 1 - self.config.memory ** (2 * h)
            nll = planes * (
                radial + 0.5 * math.log(kept) + wrapped_normal_entropy(math.sqrt(h) * self.config.phase_noise)
            )
            change = power - self.product(h) * torch.cos(h * self.turn)  # E(Δ²) of one coordinate, per plane
            values[f"p1.h{h}.nll"] = quadrature(nll)
            values[f"p1.h{h}.dnll_b5"] = quadrature(nll - marginal)
            values[f"p1.h{h}.dnll_b5_gaussian"] = quadrature(nll - gaussian)
            values[f"p1.h{h}.dnll_b0"] = quadrature(nll - float((2 * math.pi * math.e * change).log().sum()))
            values[f"p1.h{h}.information_rate"] = process.bits_per_second(values[f"p1.h{h}.dnll_b5"], frame_rate)
            values |= self.directions(h, generator)
        for k in range(1, process.STEPS + 1):
            values[f"p4.rho[{k}]"] = exact(float((self.product(k) / power * torch.cos(k * self.turn)).mean()))
        values["p4.effective_dim"] = exact(self.dim)
        for step in range(1, process.STEPS + 1):
            values[f"r1.A.state_error[{step}]"] = exact(0.0)
            for key in ("cosine", "magnitude_ratio"):
                values[f"r1.A.{key}[{step}]"] = values[f"p1.h1.{key}"]
        return values

    def product(self, h: int) -> float:
        """E r_t r_{t+h} times E cos of the phase's noise over h frames."""
        a, noise = self.config.memory, self.config.phase_noise
        return math.exp(self.variance * (1 + a**h) - h * noise**2 / 2)

    def directions(self, h: int, generator: torch.Generator) -> Truth:
        """Cosine and magnitude ratio of the conditional mean at horizon h."""
        c, planes = self.config, self.dim // 2
        cosine, above, below = [], [], []
        for _ in range(DRAWS // 5000):
            noise = torch.randn(3, 5000, planes, generator=generator, dtype=torch.float64)
            u = math.sqrt(self.variance) * noise[0]
            now = plane(u.exp(), torch.zeros_like(u))  # by symmetry, any phase will do
            later = c.memory**h * u
            spread = self.variance * (1 - c.memory ** (2 * h))
            future = plane(
                (later + math.sqrt(spread) * noise[1]).exp(), h * self.turn + math.sqrt(h) * c.phase_noise * noise[2]
            )
            shrink = math.exp(-h * c.phase_noise**2 / 2 + spread / 2)
            forecast = plane(later.exp() * shrink, (h * self.turn).expand_as(u)) - now
            cosine.append(torch.cosine_similarity(forecast, future - now, dim=-1))
            above.append(forecast.norm(dim=-1))
            below.append((future - now).norm(dim=-1))
        return {
            f"p1.h{h}.cosine": average(torch.cat(cosine)),
            f"p1.h{h}.magnitude_ratio": ratio(torch.cat(above), torch.cat(below)),
        }


def plane(radius: Tensor, phase: Tensor) -> Tensor:
    """Polar [... p] to Cartesian [... 2p]."""
    return torch.stack([radius * phase.cos(), radius * phase.sin()], -1).flatten(-2)


def ratio(above: Tensor, below: Tensor) -> process.Entry:
    """Ratio of two means [n], with the standard error of the linearised ratio."""
    value = above.mean() / below.mean()
    error = ((above - value * below) / below.mean()).std() / math.sqrt(len(above))
    return monte_carlo(float(value), float(error), len(above))


def wrapped_normal_entropy(sigma: float) -> float:
    """Entropy of a normal angle with standard deviation `sigma`, in nats, by the trapezoid rule over the circle."""
    angle = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1]
    turns = 2 * math.pi * torch.arange(-8, 9, dtype=torch.float64)[:, None]
    if sigma > 4:  # the density is 1 + O(exp(−σ²/2)) times uniform
        return math.log(2 * math.pi)
    log_p = (-0.5 * ((angle + turns) / sigma) ** 2).logsumexp(0) - math.log(sigma * math.sqrt(2 * math.pi))
    return -float((log_p.exp() * log_p).sum() * (angle[1] - angle[0]))


def build(config: Config, dim: int, generator: torch.Generator) -> Cycle:
    """Makes the process; nothing is drawn."""
    if dim % 2:
        raise UserError(f"cycle turns in planes and needs an even --dim, but got {dim}.")
    return Cycle(config, dim)
