"""The residual MLP on a window: the shape that the fused K-step rollout kernel runs.

x₀ = A·(standardised window), x ← x + W2·act(W1·norm(x)) for every block, and a linear head on norm(x).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import StepDistribution
from pydantic import Field
from torch import Tensor, nn

from arlat_dynamics.base import Rows, WindowModel, WindowSource, spread_out
from arlat_dynamics.block import Activation, Block
from arlat_dynamics.headed import HeadConfig, HeadedModel, begin
from arlat_dynamics.models.linear import LinearModel, fit_linear

JUDGED = 4096  # validation windows that say how right the VAR's direction is


class Config(BaseConfig):
    """Shape of a residual MLP."""

    dim: int = Field(gt=0)
    """D."""
    context: int = Field(default=8, gt=0)
    """Frames in the window w."""
    width: int | None = Field(default=None, gt=0)
    """Width of the residual stream (default: 2 D, D + 64 where D is larger than 64; the fused kernel runs 32, 64 and 128).

    A stream that is wider than D keeps the size of what enters, which norms alone would take away.
    """
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
        width = config.width or config.dim + min(config.dim, 64)
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

    @torch.no_grad()
    def follow(self, var: LinearModel, judge: Rows) -> None:
        """Makes x₀ the VAR's prediction in units of its size, which blocks leave alone at first, and the head follow it as far
        as it is right on `judge`."""
        d = self.dim
        lags = torch.zeros(self.context, d, d)  # [lag, input, output], newest first
        known = var.weight.view(-1, d, d)[: self.context]
        lags[: len(known)] = known
        newest = self.scale[:, None] * lags.sum(0)
        # z_{t−i} is z_t less the steps since, so that a step has the weights of all frames before it; oldest first.
        older = lags.flip(0).cumsum(0)[:-1]
        weight = torch.cat([newest[None], -self.step_scale[:, None] * older]).flatten(0, 1)  # [w*d d]
        bias = var.bias + (self.center - var.center) @ lags.sum(0)
        predicted, true = var.predict(judge.context), judge.target
        size = predicted.square().mean().sqrt().clamp_min(1e-30)
        self.enter.weight[:d] = weight.mT / size
        self.enter.bias[:d] = bias / size
        self.enter.weight[d:].zero_()
        self.enter.bias[d:] = 1.0  # what the rest of the stream is measured against
        for block in self.blocks:
            block.down.weight.zero_()  # type: ignore[union-attr,operator]
            block.down.bias.zero_()  # type: ignore[union-attr,operator]
        cosine = float(nn.functional.cosine_similarity(predicted, true, dim=-1).mean())
        self.head.follow(cosine, float(size) * d**0.5 / float(self.head.scale))

    def distribution(self, context: Tensor) -> StepDistribution:
        """The laws [...] of Δ after context [... w d], oldest frame first."""
        return self.law(self.window_features(context))


def build(settings: dict[str, object]) -> ResidualMLP:
    """A model of the shape `settings`, untrained."""
    return ResidualMLP(Config.model_validate(settings))


def start(
    settings: dict[str, object],
    windows: WindowSource,
    rows: Tensor,
    validation_rows: Tensor,
    generator: torch.Generator,
    var: LinearModel | None = None,
) -> ResidualMLP:
    """A model at the scales of the windows at `rows` that points where their linear VAR points, before any training.

    Its weights are a function of the generator. The VAR's order and ridge are chosen on `validation_rows`, other speakers,
    unless it is given. Where the stream is narrower than D it starts without the VAR.
    """
    model = begin(build, settings, windows, rows, generator)
    if model.enter.out_features >= model.dim:
        known = fit_linear(windows, rows, validation_rows) if var is None else var
        model.follow(known, windows.gather(spread_out(validation_rows, JUDGED)))
    return model
