"""The residual MLP on a window: the shape that the fused K-step rollout kernel runs.

x₀ = A·(standardised window), x ← x + W2·act(W1·norm(x)) for every block, and a linear head on norm(x).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import StepDistribution
from arlat_core.seed import seeded
from pydantic import Field
from torch import Tensor, nn

from arlat_dynamics.base import WindowModel, WindowSource
from arlat_dynamics.block import Activation, Block
from arlat_dynamics.headed import HeadConfig, HeadedModel, measure


class Config(BaseConfig):
    """Shape of a residual MLP."""

    dim: int = Field(gt=0)
    """D."""
    context: int = Field(default=8, gt=0)
    """Frames in the window w."""
    width: int | None = Field(default=None, gt=0)
    """Width of the residual stream (default: D; the fused kernel runs 32, 64 and 128)."""
    hidden: int = Field(default=256, gt=0)
    """Units inside a block (the fused kernel runs multiples of 64)."""
    depth: int = Field(default=3, ge=0)
    """Residual blocks."""
    activation: Activation = "silu"
    """silu or relu2."""
    head: HeadConfig = HeadConfig()
    """The law of a step."""


class ResidualMLP(HeadedModel, WindowModel):
    """p(Δ | newest `context` frames) by a residual MLP and a head."""

    plugin: ClassVar[str] = "mlp"

    def __init__(self, config: Config) -> None:
        width = config.width or config.dim
        super().__init__(config.dim, width, config.head)
        self.config, self.context = config, config.context
        self.enter = nn.Linear(config.context * config.dim, width)
        self.blocks = nn.ModuleList(Block(width, config.hidden, config.activation) for _ in range(config.depth))

    def settings(self) -> Config:
        """The shape."""
        return self.config

    def window_features(self, context: Tensor) -> Tensor:
        """Normalised features [... width] of context [... w d]."""
        newest = self.standardise(context[..., -1:, :])
        steps = context.diff(dim=-2) / self.step_scale  # slow latents differ in their steps
        x = self.enter(torch.cat([newest, steps], -2).flatten(-2))  # [..., width]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def features(self, x: Tensor) -> Tensor:
        """Normalised features [b t width] after every frame of x [b t d]."""
        return self.window_features(self.windows_of(x))

    def distribution(self, context: Tensor) -> StepDistribution:
        """The laws [...] of Δ after context [... w d], oldest frame first."""
        return self.law(self.window_features(context))


def build(settings: dict[str, object]) -> ResidualMLP:
    """A model of the shape `settings`, untrained."""
    return ResidualMLP(Config.model_validate(settings))


def start(settings: dict[str, object], windows: WindowSource, rows: Tensor, generator: torch.Generator) -> ResidualMLP:
    """An untrained model at the scales of the windows at `rows`, its weights a function of the generator."""
    with seeded(generator):
        model = build(settings)
    model.calibrate(measure(windows, rows))
    return model
