"""A light predictor of latents z [b t d]: what L_pred, L_noise and L_rollout ask, and what a fresh one is asked to judge them.

Latents are standardised by the moments of what is predicted, so that nothing here changes under z → a·z + c: there y has variance 1
in every dimension, δ_t = (y_t − y_{t−1})/s has mean square 1, and the predictor gives the law of δ_t after y_{t−W} … y_{t−1}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import StepDistribution
from arlat_core.heads import build_head
from arlat_core.seed import seeded
from pydantic import Field
from torch import Tensor, nn

FLOOR = 1e-4  # of the mean variance: a dimension with a hundredth of the typical spread is not blown up to the size of others
TINY = 1e-12  # so that latents that never move have finite gradients


class PredictorConfig(BaseConfig):
    """A small MLP on a window of frames."""

    window_frames: int = Field(default=4, gt=0)
    """W, the frames that it sees."""
    hidden: int = Field(default=128, gt=0)
    """Units of its two hidden layers."""
    head: str = "gaussian"
    """The law of a step: a head of arlat_core.heads."""
    lr: float = Field(default=2e-3, gt=0)
    """Learning rate of its AdamW."""


@dataclass(frozen=True)
class Standardised:
    """Latents y [b t d] and the root mean square [d] of their steps, where y from the frame `first` on is of variance 1."""

    y: Tensor
    unit: Tensor
    first: int


def standardise(z: Tensor, window_frames: int) -> Standardised:
    """Standardises z [b t d] by its moments over batch and time, through which gradients flow.

    They are those of the frames that follow a whole window, and so are predicted. Were the others counted, an encoder could win
    by large latents at the beginning of every crop, beside which all steps that are asked for look small.
    """
    z = z.float()
    told = z[:, window_frames:]
    variance = told.var((0, 1), correction=0)
    y = (z - told.mean((0, 1))) * (variance + FLOOR * variance.mean() + TINY).rsqrt()
    step = (y[:, window_frames:] - y[:, window_frames - 1 : -1]).square().mean((0, 1))
    return Standardised(y, (step + FLOOR * step.mean() + TINY).sqrt(), window_frames)


def contexts(y: Tensor, width: int) -> Tensor:
    """The windows [b t−w w d] of y [b t d] that have a frame after them."""
    return y[:, :-1].unfold(1, width, 1).transpose(-1, -2)


class Predictor(nn.Module):
    """Windows of standardised latents [... w d] to the laws [...] of the standardised step."""

    def __init__(self, dim: int, config: PredictorConfig) -> None:
        super().__init__()
        self.window_frames = config.window_frames
        self.body = nn.Sequential(
            nn.Linear(config.window_frames * dim, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
        )
        self.head = build_head(config.head, dim, config.hidden)
        self.head.calibrate(math.sqrt(dim), 1 / math.sqrt(2 * dim))  # of δ: mean square 1 in each dimension

    def forward(self, context: Tensor) -> StepDistribution:
        """The laws of δ."""
        law: StepDistribution = self.head(self.body(context.flatten(-2)))
        return law


def build_predictor(dim: int, config: PredictorConfig, generator: torch.Generator) -> Predictor:
    """An untrained predictor whose weights are a function of the generator."""
    with seeded(generator):
        return Predictor(dim, config)


def surprise(predictor: Predictor, seen: Tensor, latents: Standardised) -> Tensor:
    """−log p(δ_t | seen windows) [b t−w] in nats, where frames y_t follow from the last frames of `seen` [b t d] (y, or y with noise).

    The density is that of y_t in units of s: with noise on the window the law must bring y_t back from where the noise put it.
    """
    windows = contexts(seen, predictor.window_frames)
    step = (latents.y[:, predictor.window_frames :] - windows[..., -1, :]) / latents.unit
    law: StepDistribution = predictor(windows)
    return -law.log_prob(step)


def mean_reversion(latents: Standardised) -> Tensor:
    """The floor of L_pred, nats per dimension: the best Gaussian of δ_t whose mean is linear in y_{t−1}, each dimension by itself.

    ½(1 + ln 2π) + ½ mean_d ln(1 − r_d²); white noise has r² = ½ without any dynamics, since Δ_t contains −z_{t−1}.
    """
    y = latents.y[:, latents.first - 1 :]
    before, step = y[:, :-1], (y[:, 1:] - y[:, :-1]) / latents.unit
    before, step = before - before.mean((0, 1)), step - step.mean((0, 1))
    shared = (before * step).mean((0, 1)).square()
    whole = before.square().mean((0, 1)) * step.square().mean((0, 1))
    left = (1 - shared / whole.clamp(min=TINY)).clamp(min=TINY)
    return 0.5 * (1 + math.log(2 * math.pi)) + 0.5 * left.log().mean()
