"""A walk of vMF directions and LogNormal lengths that stays where it is: z_{t+1} = z_t + m_t u_t, u_t ~ vMF(μ_t, κ).

μ_t = normalise(a·u_{t−1} − b·z_t/scale), with a the persistence of the direction, b the pull to the origin and `scale` in
units of the median length exp(mu). Beyond the radius scale·a/b the pull wins, so every path returns: the law is
stationary and isotropic. m_t ~ LogNormal(mu, sigma) is independent of everything. Paths start 500 steps before their
first frame (the memory lasts some tens), so that it has the stationary law.

The perfect predictor needs z_t and u_{t−1}, so a context of two frames. Its law is the same at every frame but for μ_t,
which makes NLL, cosine and all figures against B0 and B0f closed forms. B5 needs only the law of ‖z‖, by simulation.
"""

from __future__ import annotations

import math

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from scipy import stats
from torch import Tensor

from arlat_data.processes import _process as process
from arlat_data.processes import _sphere as sphere
from arlat_data.processes._process import Process, Truth, average, exact

BURN = 500
CHAINS, FRAMES, THIN = 512, 1024, 4  # of the simulation behind the marginal


class Config(BaseConfig):
    """Parameters of `vmf_walk`."""

    kappa: float | None = Field(None, gt=0)
    """Concentration of a direction; by default that with a mean cosine of 0.7."""
    mu: float = 0.0
    """Mean of the log length."""
    sigma: float = Field(0.3, gt=0)
    """Standard deviation of the log length."""
    persistence: float = Field(0.5, ge=0)
    """a: weight of the last direction."""
    pull: float = Field(1.0, gt=0)
    """b: weight of the way back to the origin."""
    scale: float = Field(1.0, gt=0)
    """Radius, in median lengths, at which the pull has the weight b."""


class VmfWalk(Process[Config]):
    """The walk in `dim` dimensions."""

    def __init__(self, config: Config, dim: int) -> None:
        self.dim = dim
        self.config = config.model_copy(update={"kappa": sphere.concentration(config.kappa, dim, "vmf_walk", 0.7)})

    @property
    def kappa(self) -> float:
        """κ, resolved."""
        assert self.config.kappa is not None
        return self.config.kappa

    def simulate(self, utterances: int, frames: int, generator: torch.Generator) -> Tensor:
        z = torch.zeros(utterances, self.dim, dtype=torch.float64)
        u = torch.nn.functional.normalize(torch.randn(z.shape, generator=generator, dtype=torch.float64), dim=-1)
        path = torch.empty(utterances, frames, self.dim, dtype=torch.float64)
        total = BURN + frames - 1
        cosine = sphere.draw_cosines((total, utterances), self.kappa, self.dim, generator)
        length = torch.randn(total, utterances, generator=generator, dtype=torch.float64)
        length = (self.config.mu + self.config.sigma * length).exp()
        path[:, 0] = z
        for t in range(total):
            noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
            u = sphere.turn(self.towards(z, u), cosine[t], noise)
            z = z + length[t, :, None] * u
            if t + 1 >= BURN:
                path[:, t + 1 - BURN] = z
        return path

    def towards(self, z: Tensor, last: Tensor) -> Tensor:
        """μ_t [... d] from z_t and the last direction."""
        radius = self.config.scale * math.exp(self.config.mu)
        return torch.nn.functional.normalize(self.config.persistence * last - self.config.pull / radius * z, dim=-1)

    def truth(self, frame_rate: float, generator: torch.Generator) -> Truth:
        c, dim = self.config, self.dim
        direction = sphere.entropy(self.kappa, dim)
        nll = sphere.step_entropy(direction, c.mu, c.sigma, dim)
        second = math.exp(2 * c.mu + 2 * c.sigma**2)  # E m²
        mean_cosine = exact(sphere.resultant(self.kappa, dim))
        isotropic = exact(nll - dim / 2 * math.log(2 * math.pi * math.e * second / dim))
        values = {
            "p1.h1.nll": exact(nll),
            "p1.h1.dnll_b0": isotropic,
            "p1.h1.dnll_b1": isotropic,
            "p1.h1.dnll_b0f": exact(direction - sphere.log_area(dim)),
            "p1.h1.cosine": mean_cosine,
            "p1.h1.magnitude_ratio": mean_cosine,
            "p1.h1.logmag_r2": exact(0.0),
            "p4.effective_dim": exact(dim),
        }
        values |= {f"r1.A.cosine[{step}]": mean_cosine for step in range(1, process.STEPS + 1)}
        values |= {f"r1.{mode}.cosine[1]": mean_cosine for mode in "BCD"}
        values |= {f"r1.A.state_error[{step}]": exact(0.0) for step in range(1, process.STEPS + 1)}
        values |= apart(self.kappa, c.mu, c.sigma, dim)
        z = self.simulate(CHAINS, FRAMES, generator)
        values |= against_marginal(nll, z, frame_rate)
        values["p2.dnll_b5"] = values["p1.h1.dnll_b5"]
        return values | autocorrelations(z)


def apart(kappa: float, mu: float, sigma: float, dim: int) -> Truth:
    """What direction and length score apart (P2): the law is the same at every frame, and its directions have no marginal."""
    direction, length = sphere.entropy(kappa, dim), sphere.lognormal_entropy(mu, sigma)
    known, cosine = direction - sphere.log_area(dim), sphere.resultant(kappa, dim)
    values = {
        "nll": direction + length + (dim - 1) * mu,
        "nll_dir": direction,
        "nll_mag": length,
        "jacobian": (dim - 1) * mu,
        "cosine": cosine,
        "cosine_expected": cosine,
        "logmag_r2": 0.0,
        "dnll_mag_marginal": 0.0,
        "still_fraction": 0.0,
    }
    values |= {f"dnll_{name}": known for name in ("dir_uniform", "dir_marginal", "dir_expected", "b0f")}
    values |= {f"kappa_{name}": kappa for name in ("q25", "median", "q75")}
    values |= {f"sigma_{name}": sigma for name in ("q25", "median", "q75")}
    return {f"p2.{name}": exact(value) for name, value in values.items()}


def against_marginal(nll: float, z: Tensor, frame_rate: float) -> Truth:
    """ΔNLL_B5 against the isotropic marginal of paths z [chains t d], and against a Gaussian, by average over chains.

    log p(z) = log p(log‖z‖) − D·log‖z‖ − log area; the one-dimensional density is a kernel estimate.
    """
    dim = z.shape[-1]
    log_r = z[:, ::THIN].norm(dim=-1).log()  # [chains t]
    some = log_r.flatten()[:: max(1, log_r.numel() // 20_000)]
    grid = torch.linspace(float(log_r.min()) - 0.01, float(log_r.max()) + 0.01, 600, dtype=torch.float64)
    height = torch.from_numpy(stats.gaussian_kde(some.numpy())(grid.numpy())).clamp(min=1e-300).log()
    at = ((log_r - grid[0]) / (grid[1] - grid[0])).clamp(0, len(grid) - 1 - 1e-9)
    below = at.floor().long()
    log_p = height[below] + (at - below) * (height[below + 1] - height[below])
    marginal = average(dim * log_r - log_p, scale=-1.0, offset=nll - sphere.log_area(dim))
    square = (2 * log_r).exp().mean(1)
    # h = (D/2) log(2πe·E‖z‖²/D), linearised around the mean for its standard error
    gaussian = average(
        dim / 2 * (square / square.mean() - 1)[:, None].expand(-1, log_r.shape[1]),
        scale=-1.0,
        offset=nll - dim / 2 * math.log(2 * math.pi * math.e * float(square.mean()) / dim),
    )
    return {
        "p1.h1.dnll_b5": marginal,
        "p1.h1.dnll_b5_gaussian": gaussian,
        "p1.h1.information_rate": process.bits_per_second(marginal, frame_rate),
    }


def autocorrelations(z: Tensor) -> Truth:
    """p4.rho[1…16] of paths z [chains t d] whose law is isotropic: E z_t·z_{t+k} / E‖z‖²."""
    square = float((z**2).sum(-1).mean())
    return {f"p4.rho[{k}]": average((z[:, :-k] * z[:, k:]).sum(-1) / square) for k in range(1, process.STEPS + 1)}


def build(config: Config, dim: int, generator: torch.Generator) -> VmfWalk:
    """Makes the process; nothing is drawn."""
    return VmfWalk(config, dim)
