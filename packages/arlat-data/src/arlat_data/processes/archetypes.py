"""Steps from a planted codebook of directions: z_{t+1} = z_t + m_t u_t, u_t ~ vMF(μ_k, κ), m_t ~ LogNormal(mu, sigma).

Word k is chosen with probability softmax(−choice·c_k·z_t/ℓ), ℓ = exp(mu) being the median length, and its direction is
tilted to the origin by a little, μ_k = normalise(c_k − pull·z_t/ℓ), so that every path returns, also along directions that
the codebook does not span: the law is stationary. At the default pull the tilt is about 10 degrees. Paths start
500 steps before their first frame. The perfect predictor needs z_t alone: a mixture of vMFs with known parts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from torch import Tensor

from arlat_data.processes import _process as process
from arlat_data.processes import _sphere as sphere
from arlat_data.processes._process import Process, Truth, average, exact, shifted
from arlat_data.processes.cycle import ratio

BURN = 500
CHAINS, FRAMES, THIN = 512, 257, 8


class Config(BaseConfig):
    """Parameters of `archetypes`."""

    codewords: int = Field(16, gt=1)
    """Size of the codebook."""
    kappa: float | None = Field(None, gt=0)
    """Concentration of a direction around its word; by default that with a mean cosine of 0.9."""
    mu: float = 0.0
    """Mean of the log length."""
    sigma: float = Field(0.3, gt=0)
    """Standard deviation of the log length."""
    choice: float = Field(0.5, ge=0)
    """How strongly words that lead back are preferred."""
    pull: float = Field(0.05, gt=0)
    """Tilt of a word's direction to the origin, per median length of distance."""


class Archetypes(Process[Config]):
    """Steps from `codebook` [k d], unit rows."""

    def __init__(self, config: Config, codebook: Tensor) -> None:
        self.dim, self.codebook = codebook.shape[1], codebook
        self.kappa = sphere.concentration(config.kappa, self.dim, "archetypes", 0.9)
        self.config = config.model_copy(update={"kappa": self.kappa})

    def planted(self) -> dict[str, list[Any]]:
        return {"codebook": self.codebook.tolist()}

    def words(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log probability [n k] and direction [n k d] of every word at z [n d]."""
        at = z * math.exp(-self.config.mu)
        log_p = (-self.config.choice * at @ self.codebook.T).log_softmax(-1)
        return log_p, torch.nn.functional.normalize(self.codebook - self.config.pull * at[:, None], dim=-1)

    def simulate(self, utterances: int, frames: int, generator: torch.Generator) -> Tensor:
        total = BURN + frames - 1
        cosine = sphere.draw_cosines((total, utterances), self.kappa, self.dim, generator)
        length = torch.randn(total, utterances, generator=generator, dtype=torch.float64)
        length = (self.config.mu + self.config.sigma * length).exp()
        z = torch.zeros(utterances, self.dim, dtype=torch.float64)
        path = torch.empty(utterances, frames, self.dim, dtype=torch.float64)
        for t in range(total):
            log_p = (-self.config.choice * math.exp(-self.config.mu) * z @ self.codebook.T).log_softmax(-1)
            word = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
            tilt = self.config.pull * math.exp(-self.config.mu) * z
            towards = torch.nn.functional.normalize(self.codebook[word] - tilt, dim=-1)
            noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
            z = z + length[t, :, None] * sphere.turn(towards, cosine[t], noise)
            if t + 1 >= BURN:
                path[:, t + 1 - BURN] = z
        return path

    def truth(self, frame_rate: float, generator: torch.Generator) -> Truth:
        c, dim = self.config, self.dim
        z = self.simulate(CHAINS, FRAMES, generator)
        step = z[:, 1:] - z[:, :-1]
        log_direction, forecast = self.score(z[:, :-1:THIN], step[:, ::THIN])
        direction = average(log_direction, scale=-1.0)
        nll = shifted(direction, 1.0, sphere.step_entropy(0.0, c.mu, c.sigma, dim))
        second = torch.einsum("btd,bte->de", step, step) / step[..., 0].numel()
        base = dim / 2 * math.log(2 * math.pi * math.e)
        sampled = step[:, ::THIN]
        cosine = average(torch.cosine_similarity(forecast, sampled, dim=-1))
        values = {
            "p1.h1.nll": nll,
            "p1.h1.dnll_b0": shifted(nll, 1.0, -base - 0.5 * float(second.diagonal().log().sum())),
            "p1.h1.dnll_b1": shifted(nll, 1.0, -base - 0.5 * float(torch.linalg.slogdet(second)[1])),
            "p1.h1.dnll_b0f": shifted(direction, 1.0, -sphere.log_area(dim)),
            "p1.h1.cosine": cosine,
            "p1.h1.magnitude_ratio": ratio(forecast.norm(dim=-1).mean(1), sampled.norm(dim=-1).mean(1)),
            "p1.h1.logmag_r2": exact(0.0),
        }
        for s in range(1, process.STEPS + 1):
            values[f"r1.A.cosine[{s}]"] = cosine
            values[f"r1.A.state_error[{s}]"] = exact(0.0)
        z = z - z.mean((0, 1))  # zero only where the codebook is symmetric
        variance = (z**2).mean((0, 1))
        for k in range(1, process.STEPS + 1):
            values[f"p4.rho[{k}]"] = average((z[:, :-k] * z[:, k:] / variance).mean(-1))
        return values

    def score(self, z: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """log density of the direction of each step [chains t], and its conditional mean [chains t d], at z [chains t d]."""
        mean_length = math.exp(self.config.mu + self.config.sigma**2 / 2)
        log_density, forecast = [], []
        for row, dx in zip(z, step, strict=True):
            log_p, towards = self.words(row)
            u = torch.nn.functional.normalize(dx, dim=-1)
            each = sphere.log_density((towards * u[:, None]).sum(-1), self.kappa, self.dim)
            log_density.append((log_p + each).logsumexp(-1))
            mean = (log_p.exp()[..., None] * towards).sum(1)
            forecast.append(mean_length * sphere.resultant(self.kappa, self.dim) * mean)
        return torch.stack(log_density), torch.stack(forecast)


def build(config: Config, dim: int, generator: torch.Generator) -> Archetypes:
    """Draws the codebook, balanced so that its words cancel nearly: an unbalanced one drifts far from the origin."""
    words = torch.randn(config.codewords, dim, generator=generator, dtype=torch.float64)
    for _ in range(50):
        words = torch.nn.functional.normalize(words - words.mean(0), dim=-1)
    return Archetypes(config, words)
