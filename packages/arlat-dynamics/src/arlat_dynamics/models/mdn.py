"""The mixture density network: what a residual MLP on the window knows beyond the linear VAR.

The law of Δ is the VAR's Gaussian with its whitened residual replaced by a mixture whose parameters depend on the
window. Before training it is the VAR with the best unconditional law of that residual; training can stop there.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import Affine, GaussianMixture
from arlat_core.heads import LOG_SCALE_RANGE, SATURATED, near_bound, soft_bound
from pydantic import Field
from torch import Tensor, nn

from arlat_dynamics.base import Stage, WindowModel, WindowSource, row_blocks, spread_out
from arlat_dynamics.block import Block
from arlat_dynamics.headed import measure
from arlat_dynamics.mixture import fit_white
from arlat_dynamics.models import linear
from arlat_dynamics.models.linear import LinearModel

BREAK_LOC, BREAK_LOG_SCALE = 0.01, 0.01  # what tells components apart at the start where one Gaussian is all there is
RATE_OF_ALL = 0.3  # learning rate of the whole network, as a part of the gate's


class Config(BaseConfig):
    """Shape of a mixture density network."""

    linear: linear.Config
    """The VAR inside."""
    components: int = Field(8, gt=0)
    """Mixture components m."""
    width: int = Field(256, gt=0)
    """Width of the residual stream."""
    depth: int = Field(2, ge=0)
    """Residual blocks."""
    gate_width: int = Field(default=64, gt=0)
    """Width of the gate."""


class Gate(nn.Module):
    """From lengths and angles of the window's steps to numbers per component: its logit, scale, and two step lengths.

    It knows no direction, so it is small whatever D is, and learns from few frames what all dimensions share: how long
    and how sure the next step will be.
    """

    def __init__(self, context: int, components: int, width: int) -> None:
        super().__init__()
        self.components = components
        self.layers = nn.Sequential(
            nn.Linear(2 * context + 2, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 4 * components),
        )

    def forward(self, steps: Tensor, level: Tensor, forecast: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """White steps [... w−1 d], newest frame [... d] and VAR forecast [... d] -> four times [... m]."""
        last = steps[..., -1, :] if steps.shape[-2] else torch.zeros_like(forecast)
        ahead = torch.cat([steps, forecast[..., None, :]], -2)
        length = log_length(torch.cat([ahead, level[..., None, :]], -2))
        angle = nn.functional.cosine_similarity(ahead[..., 1:, :], ahead[..., :-1, :], dim=-1, eps=1e-6)
        to_level = nn.functional.cosine_similarity(level, forecast, dim=-1, eps=1e-6)[..., None]
        turn = nn.functional.cosine_similarity(level, last, dim=-1, eps=1e-6)[..., None]
        out: Tensor = self.layers(torch.cat([length, angle, to_level, turn], -1))
        odds, scale, along, onward = out.view(*out.shape[:-1], 4, self.components).unbind(-2)
        return odds, scale, along, onward


def log_length(x: Tensor) -> Tensor:
    """log of the root mean square over the last dimension, floored at 1e-3."""
    return 0.5 * (x.square().mean(-1) + 1e-6).log()


class ResidualMixture(WindowModel):
    """Δ = VAR(window) + L·e with e ~ Σ_m w_m N(μ_m, diag σ_m²), all of them functions of the window."""

    plugin: ClassVar[str] = "mdn"
    center: Tensor
    scale: Tensor
    step_scale: Tensor
    whiten: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.dim, self.context = config, config.linear.dim, config.linear.context
        self.components = config.components
        self.linear = LinearModel(config.linear)
        self.register_buffer("center", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))
        self.register_buffer("step_scale", torch.ones(self.dim))
        self.register_buffer("whiten", torch.eye(self.dim))  # the inverse of the VAR's factor
        self.gate = Gate(self.context, self.components, config.gate_width)
        self.enter = nn.Linear(self.context * self.dim, config.width)
        self.blocks = nn.ModuleList(Block(config.width, 2 * config.width) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=1e-6, elementwise_affine=False)
        # Columns: m·d means, m logits, d scales that all components share.
        self.head = nn.Linear(config.width, self.components * (self.dim + 1) + self.dim)
        self.raw_log_scale = nn.Parameter(torch.zeros(self.components, self.dim))

    @classmethod
    def start(
        cls,
        linear: LinearModel,
        windows: WindowSource,
        rows: Tensor,
        validation_rows: Tensor,
        components: int,
        generator: torch.Generator,
        width: int | None = None,
        depth: int = 2,
    ) -> ResidualMixture:
        """A network that is the VAR with the best unconditional law of its residual, for the windows at `rows`.

        That law is stopped on `validation_rows`, which should be other speakers. The width follows the number of rows
        unless it is given.
        """
        size = width or default_width(len(rows), linear.dim)
        model = cls(Config(linear=linear.settings(), components=components, width=size, depth=depth))
        model.linear.load_state_dict(linear.state_dict())
        some, others = spread_out(rows), spread_out(validation_rows)
        model.whiten.copy_(torch.linalg.inv(linear.factor.double()))
        scales = measure(windows, some)
        model.center.copy_(scales.center)
        model.scale.copy_(scales.scale)
        model.step_scale.copy_(scales.step_scale)
        model._initialise(generator)
        model._start_components(windows, some, others, generator)
        return model

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Draws every weight from `generator`; the head starts at zero, so that the law does not depend on the window."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
                layer.bias.zero_()
        for last in (self.head, self.gate.layers[-1]):
            last.weight.zero_()  # type: ignore[operator]
            last.bias.zero_()  # type: ignore[operator]

    @torch.no_grad()
    def _start_components(
        self, windows: WindowSource, rows: Tensor, validation_rows: Tensor, generator: torch.Generator
    ) -> None:
        """Sets the biases to a mixture of the whitened residual, or to one Gaussian in slightly different copies."""
        white, held_out = self.residual(windows, rows), self.residual(windows, validation_rows)
        law = fit_white(white, held_out, self.components, generator)
        m, d = self.components, self.dim
        if law is None:
            loc = BREAK_LOC * torch.randn(m, d, generator=generator)
            log_scale = BREAK_LOG_SCALE * torch.linspace(-1, 1, m)[:, None].expand(m, d) if m > 1 else torch.zeros(m, d)
            law = GaussianMixture(torch.zeros(m), loc - loc.mean(0), log_scale)
        self.head.bias[: m * d] = law.loc.flatten()
        self.head.bias[m * d : m * (d + 1)] = law.logits.log_softmax(-1)
        bounded = law.log_scale.clamp(-SATURATED * LOG_SCALE_RANGE, SATURATED * LOG_SCALE_RANGE)
        self.raw_log_scale.copy_(bounded / (1 - bounded.abs() / LOG_SCALE_RANGE))

    def residual(self, windows: WindowSource, rows: Tensor) -> Tensor:
        """Whitened residuals [n d] of the VAR at `rows`."""
        parts = []
        for part in row_blocks(rows, 4096):
            batch = windows.gather(part)
            error = batch.target - self.linear.predict(batch.context)
            parts.append(torch.linalg.solve_triangular(self.linear.factor, error.mT, upper=False).mT)
        return torch.cat(parts)

    def settings(self) -> Config:
        """The shape."""
        return self.config

    def features(self, context: Tensor) -> Tensor:
        """Standardised newest frame and differences [... w*d] of context [... w d]: slow latents differ in the latter."""
        newest = (context[..., -1:, :] - self.center) / self.scale
        return torch.cat([newest, context.diff(dim=-2) / self.step_scale], -2).flatten(-2)

    def mixture(self, context: Tensor) -> GaussianMixture:
        """The law [...] of the whitened residual after context [... w d]."""
        hidden = self.enter(self.features(context))
        for block in self.blocks:
            hidden = block(hidden)
        m, d = self.components, self.dim
        loc, logits, shared = self.head(self.norm(hidden)).split([m * d, m, d], -1)
        steps = context.diff(dim=-2) @ self.whiten.mT
        forecast = self.linear.predict(context) @ self.whiten.mT
        level = (context[..., -1, :] - self.center) / self.scale
        odds, whole, along, onward = self.gate(steps, level, forecast)
        last = steps[..., -1, :] if self.context > 1 else torch.zeros_like(forecast)
        straight = along[..., None] * forecast[..., None, :] + onward[..., None] * last[..., None, :]
        raw = self.raw_log_scale + whole[..., None] + shared[..., None, :]
        return GaussianMixture(logits + odds, loc.unflatten(-1, (m, d)) + straight, soft_bound(raw))

    def stages(self) -> list[Stage]:
        """First the unconditional law and the gate, which few frames can teach; then everything, at a lower rate."""
        simple = [*self.gate.parameters(), self.raw_log_scale, self.head.bias]
        return [Stage(simple, steps=0.5), Stage(list(self.parameters()), rate=RATE_OF_ALL)]

    def distribution(self, context: Tensor) -> Affine:
        """The law [...] of Δ after context [... w d], oldest frame first."""
        return Affine(self.mixture(context), self.linear.predict(context), self.linear.factor)

    @torch.no_grad()
    def saturated_fraction(self, context: Tensor) -> float:
        """Part of the scales [n m d] that lie near the end of their range, for context [n w d]."""
        near = near_bound(self.mixture(context).log_scale)
        return float(near.float().mean())


def default_width(rows: int, dim: int) -> int:
    """Width of the residual stream: wide enough for the latents, not so wide that few rows are learnt by heart."""
    enough = 128 if dim <= 16 else 256
    return enough if rows >= 5000 else enough // 2


def build(settings: dict[str, object]) -> ResidualMixture:
    """A network of the shape `settings`, untrained."""
    return ResidualMixture(Config.model_validate(settings))
