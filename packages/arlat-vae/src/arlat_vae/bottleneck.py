"""What lies between encoder and decoder: a law q(z | audio) for every frame, and what its KL means.

The KL of this package is the mean over batch, time and dimension of KL(q ‖ N(0, 1)) in nats; a loss is β times it. With D
dimensions, T frames a clip and f frames a second, and reconstruction losses that are means over samples:

| somewhere else | its KL | its weight w is our β |
| --- | --- | --- |
| stable-audio-tools; diffusers' Oobleck | Σ_d (μ² + σ² − ln σ² − 1), without ½, mean over batch and time | β = 2·D·w |
| latent-diffusion; diffusers' AutoencoderKL | ½ Σ_{d,t} (…), mean over the batch alone | β = D·T·w; where the reconstruction is a sum over N samples too, β = D·T·w/N |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from arlat_core.config import Config
from pydantic import Field
from torch import Tensor, nn

SMALLEST = 1e-4  # added to every σ, so that ln σ and its gradient stay finite
ACTIVE = 0.01  # variance of μ_d over data above which a unit counts as active (arXiv:1509.00519)

Kind = Literal["gaussian", "sigma", "plain"]


class BottleneckConfig(Config):
    """Which law, and of what size."""

    kind: Kind = "gaussian"
    """gaussian: σ of every frame and dimension from the encoder; sigma: one σ for all (σ-VAE); plain: none, an autoencoder."""
    dim: int = Field(default=32, gt=0)
    """D."""
    sigma: float = Field(default=0.5, gt=SMALLEST)
    """The one σ of `sigma`, and the σ that `gaussian` starts near."""
    learn_sigma: bool = False
    """Whether the one σ of `sigma` is trained."""


@dataclass(frozen=True)
class Posterior(ABC):
    """q(z | audio) of frames [b t]; `mean` is [b t d]."""

    mean: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw [b t d] with gradients."""
        drawn_on = self.mean.device if generator is None else generator.device
        return self.draw(torch.randn(self.mean.shape, generator=generator, device=drawn_on))

    @abstractmethod
    def draw(self, noise: Tensor) -> Tensor:
        """The draw [b t d] that standard normal noise [b t d] leads to, with gradients."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL(q ‖ N(0, 1)) [b t d] in nats; zeros where q is a point, whose KL is infinite and says nothing."""


@dataclass(frozen=True)
class GaussianPosterior(Posterior):
    """N(mean, diag sigma²)."""

    sigma: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """mean + σ ⊙ noise."""
        return self.mean + self.sigma * noise.to(self.mean)

    def kl(self) -> Tensor:
        """½ (μ² + σ² − 1) − ln σ."""
        mean, sigma = self.mean.float(), self.sigma.float()
        return 0.5 * (mean.square() + sigma.square() - 1) - sigma.log()


@dataclass(frozen=True)
class PointPosterior(Posterior):
    """All mass at the mean: a plain autoencoder."""

    def draw(self, noise: Tensor) -> Tensor:
        """The mean."""
        return self.mean

    def kl(self) -> Tensor:
        """Zeros, with a gradient that is zero."""
        return 0.0 * self.mean


class Bottleneck(nn.Module, ABC):
    """Hidden features [b t h] to a Posterior."""

    @abstractmethod
    def forward(self, hidden: Tensor) -> Posterior:
        """The law of every frame."""


def inverse_softplus(value: float) -> float:
    """x with softplus(x) = value.

    >>> round(inverse_softplus(0.6931472), 6)
    0.0
    """
    return value + math.log(-math.expm1(-value))


class Gaussian(Bottleneck):
    """σ = softplus(·) + 10⁻⁴ per frame and dimension: positive everywhere, with a gradient everywhere."""

    def __init__(self, width: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.mean = nn.Linear(width, config.dim)
        self.raw_sigma = nn.Linear(width, config.dim)
        nn.init.constant_(self.raw_sigma.bias, inverse_softplus(config.sigma - SMALLEST))

    def forward(self, hidden: Tensor) -> GaussianPosterior:
        """Two linear maps."""
        return GaussianPosterior(self.mean(hidden), F.softplus(self.raw_sigma(hidden)) + SMALLEST)


class SingleSigma(Bottleneck):
    """One σ for every frame and dimension, given or learned: the encoder cannot drown single dimensions in noise."""

    def __init__(self, width: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.mean = nn.Linear(width, config.dim)
        raw = torch.tensor(inverse_softplus(config.sigma - SMALLEST))
        self.raw_sigma = nn.Parameter(raw, requires_grad=config.learn_sigma)

    def forward(self, hidden: Tensor) -> GaussianPosterior:
        """One linear map, one number."""
        mean = self.mean(hidden)
        return GaussianPosterior(mean, (F.softplus(self.raw_sigma) + SMALLEST).expand_as(mean))


class Plain(Bottleneck):
    """No noise."""

    def __init__(self, width: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.mean = nn.Linear(width, config.dim)

    def forward(self, hidden: Tensor) -> PointPosterior:
        """One linear map."""
        return PointPosterior(self.mean(hidden))


KINDS: dict[Kind, Callable[[int, BottleneckConfig], Bottleneck]] = {
    "gaussian": Gaussian,
    "sigma": SingleSigma,
    "plain": Plain,
}


def build_bottleneck(width: int, config: BottleneckConfig) -> Bottleneck:
    """The bottleneck that `config` names, on features of `width`."""
    return KINDS[config.kind](width, config)


def active_units(mean: Tensor) -> int:
    """Dimensions whose posterior mean [... d] varies over the data by more than 0.01 (Burda et al. 2016)."""
    return int((mean.flatten(0, -2).float().var(0, correction=0) > ACTIVE).sum())


def kl_report(posterior: Posterior, frame_rate: float) -> dict[str, float]:
    """The KL of a batch in every unit (the module's docstring has the conventions)."""
    mean = float(posterior.kl().detach().mean())
    _, frames, dim = posterior.mean.shape
    return {
        "kl": mean,
        "kl_nats_per_frame": dim * mean,
        "kl_nats_per_second": dim * mean * frame_rate,
        "active_units": float(active_units(posterior.mean)),
        "kl_stable_audio": 2 * dim * mean,
        "kl_latent_diffusion": dim * frames * mean,
    }
