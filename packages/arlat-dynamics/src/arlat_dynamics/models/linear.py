"""The linear VAR: the displacement is a linear function of the newest frames, plus Gaussian noise.

Its order, and how far its coefficients are shrunk towards the mean of z or towards independent dimensions, are chosen on
held-out speakers, so that it knows nothing where there is nothing to know: on white noise it is the mean of the training set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import FullGaussian
from pydantic import Field
from torch import Tensor

from arlat_dynamics.base import WindowModel, WindowSource, row_blocks
from arlat_dynamics.covariance import gaussian_intensity, ledoit_wolf, ledoit_wolf_intensity, shrink, spread

ORDERS = (0, 1, 2, 4, 8)
RIDGES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)  # per row, in units of the standardised inputs
BLOCK = 4096  # rows in memory at a time
CERTAINTY = 1.64  # a richer model must be better on the validation part by so many standard errors

__all__ = ["Config", "LinearModel", "build", "fit_linear", "ledoit_wolf"]


class Config(BaseConfig):
    """Shape of a fitted VAR."""

    dim: int = Field(gt=0)
    """D."""
    context: int = Field(gt=0)
    """Frames in the window w."""
    order: int = Field(ge=0)
    """Frames whose coefficients were fitted."""
    frames: int = Field(gt=0)
    """Frames that the weights cover: the order, or 1 where order 0 means "the next frame is the mean"."""
    ridge: float | None = None
    """Ridge per row; none where only each dimension's own past is used."""


class LinearModel(WindowModel):
    """Δ ~ N(bias + Σ_i (z_{t−i} − center)·weight_i, factor·factorᵀ)."""

    plugin: ClassVar[str] = "linear"
    center: Tensor
    weight: Tensor
    bias: Tensor
    factor: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.dim, self.context = config, config.dim, config.context
        self.register_buffer("center", torch.zeros(config.dim))
        self.register_buffer("weight", torch.zeros(config.frames * config.dim, config.dim))  # newest frame first
        self.register_buffer("bias", torch.zeros(config.dim))
        self.register_buffer("factor", torch.eye(config.dim))

    @property
    def order(self) -> int:
        """Fitted order."""
        return self.config.order

    @property
    def ridge(self) -> float:
        """Ridge per row; infinite where only each dimension's own past is used."""
        return math.inf if self.config.ridge is None else self.config.ridge

    def settings(self) -> Config:
        """The shape."""
        return self.config

    def predict(self, context: Tensor) -> Tensor:
        """E[Δ] [... d] after context [... w d]."""
        return self.bias + newest_first(context - self.center, self.config.frames) @ self.weight

    def distribution(self, context: Tensor) -> FullGaussian:
        """The Gaussian law [...] of Δ after context [... w d]."""
        return FullGaussian(self.predict(context), self.factor)


def build(settings: dict[str, object]) -> LinearModel:
    """A VAR of the shape `settings`, with zero weights."""
    return LinearModel(Config.model_validate(settings))


def newest_first(context: Tensor, frames: int) -> Tensor:
    """[... w d] -> [... frames*d], newest frame first."""
    return context[..., context.shape[-2] - frames :, :].flip(-2).flatten(-2)


@dataclass(frozen=True)
class Scaling:
    """Standardisation of inputs and targets, fixed before the sums are taken."""

    center: Tensor
    scale: Tensor
    target_center: Tensor
    target_scale: Tensor


@dataclass(frozen=True)
class Moments:
    """Centred sums over rows of standardised inputs x [n q] and targets y [n d], float64."""

    count: int
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def leading(self, size: int) -> Moments:
        """The same for the first `size` inputs."""
        return Moments(self.count, self.mean_x[:size], self.mean_y, self.xx[:size, :size], self.xy[:size], self.yy)

    def residual(self, weight: Tensor) -> Tensor:
        """Σ (y − x·weight)(y − x·weight)ᵀ [d d] for a weight [q' d] on the first q' inputs."""
        part = self.leading(len(weight))
        cross = weight.mT @ part.xy
        return part.yy - cross - cross.mT + weight.mT @ part.xx @ weight


@dataclass(frozen=True)
class Candidate:
    """One linear predictor in standardised coordinates: weight [q d], and the parameters it spends per output."""

    order: int
    ridge: float | None
    weight: Tensor
    freedom: float


def fit_linear(
    windows: WindowSource, fit_rows: Tensor, validation_rows: Tensor, orders: Sequence[int] = ORDERS
) -> LinearModel:
    """Fits the VAR on `fit_rows`, choosing order and shrinkage by the likelihood of `validation_rows`.

    The simplest candidate wins unless a richer one is better by more than chance. Every sum is float64 and streamed.
    Raises ValueError when there are fewer than 2 rows on either side.
    """
    return fit_several(windows, fit_rows, validation_rows, [orders])[0]


def fit_several(
    windows: WindowSource, fit_rows: Tensor, validation_rows: Tensor, orders: Sequence[Sequence[int]]
) -> list[LinearModel]:
    """`fit_linear` for several sets of orders, from the same sums."""
    if min(len(fit_rows), len(validation_rows)) < 2:
        raise ValueError(
            f"A VAR needs at least 2 windows to fit and 2 to choose by, not {len(fit_rows)} and {len(validation_rows)}."
        )
    first = windows.gather(fit_rows[:1])
    context, dim = int(first.context.shape[-2]), int(first.context.shape[-1])
    usable = [sorted({order for order in some if order <= context}) for some in orders]
    frames = max(1, *(order for some in usable for order in some))
    scaling = scaling_of(windows, fit_rows)
    train = moments(windows, fit_rows, frames, scaling)
    held_out = moments(windows, validation_rows, frames, scaling, train)
    models = []
    for some in usable:
        chosen = choose(candidates(train, scaling, some), train, held_out)
        covariance = residual_covariance(windows, fit_rows, train, scaling, chosen)
        models.append(assemble(chosen, train, scaling, covariance, context, dim))
    return models


def scaling_of(windows: WindowSource, rows: Tensor, at_most: int = 20_000) -> Scaling:
    """Means and spreads of the newest frame and of the target, over at most `at_most` evenly spaced rows."""
    some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), at_most), dtype=torch.float64).long()]
    batch = windows.gather(some)
    z, y = batch.context[:, -1].double(), batch.target.double()
    return Scaling(z.mean(0), spread(z.var(0, correction=0)), y.mean(0), spread(y.var(0, correction=0)))


def blocks(windows: WindowSource, rows: Tensor, frames: int, scaling: Scaling) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardised inputs [n frames*d] and targets [n d], float64, block by block."""
    for part in row_blocks(rows, BLOCK):
        batch = windows.gather(part)
        x = (batch.context[:, batch.context.shape[1] - frames :].double() - scaling.center) / scaling.scale
        yield newest_first(x, frames), (batch.target.double() - scaling.target_center) / scaling.target_scale


def moments(
    windows: WindowSource, rows: Tensor, frames: int, scaling: Scaling, around: Moments | None = None
) -> Moments:
    """Sums over rows, centred on their own means or on those of `around`."""
    dim = len(scaling.center)
    size = frames * dim
    sx, sy = torch.zeros(size, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    xx = torch.zeros(size, size, dtype=torch.float64)
    xy, yy = torch.zeros(size, dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    for x, y in blocks(windows, rows, frames, scaling):
        sx, sy = sx + x.sum(0), sy + y.sum(0)
        xx.addmm_(x.mT, x)
        xy.addmm_(x.mT, y)
        yy.addmm_(y.mT, y)
    count = len(rows)
    mx, my = (sx / count, sy / count) if around is None else (around.mean_x, around.mean_y)

    def centred(total: Tensor, sum_a: Tensor, a: Tensor, sum_b: Tensor, b: Tensor) -> Tensor:
        return total - torch.outer(sum_a, b) - torch.outer(a, sum_b) + count * torch.outer(a, b)

    return Moments(count, mx, my, centred(xx, sx, mx, sx, mx), centred(xy, sx, mx, sy, my), centred(yy, sy, my, sy, my))


def candidates(train: Moments, scaling: Scaling, orders: Sequence[int]) -> Iterator[Candidate]:
    """Predictors from simple to rich: a constant, the mean of z, each dimension by itself, all dimensions by ridge.

    The ridge shrinks towards the mean of z and towards each dimension by itself: dimensions that move together (frames
    stacked, mel bands) are better served by the former, independent ones by the latter.
    """
    dim = len(scaling.center)
    reversion = -torch.diag(scaling.scale / scaling.target_scale)  # Δ̂ = mean − z_t
    if 0 in orders:
        yield Candidate(0, None, torch.zeros(dim, dim, dtype=torch.float64), 1.0)
        yield Candidate(0, None, reversion, 1.0)
    lone = {order: own_past(train, order, dim) for order in orders if order > 0}
    for order, weight in lone.items():
        yield Candidate(order, None, weight, 1.0 + order)
    for order, weight in lone.items():
        part = train.leading(order * dim)
        values, basis = torch.linalg.eigh(part.xx)
        values = values.clamp_min(0)
        towards_mean = torch.zeros_like(weight)
        towards_mean[:dim] = reversion
        for base, spent in ((towards_mean, 1.0), (weight, 1.0 + order)):
            rest = basis.mT @ (part.xy - part.xx @ base)
            for ridge in RIDGES:
                kept = values + ridge * train.count
                freedom = spent + float((values / kept).sum())
                if freedom < 0.5 * train.count:
                    yield Candidate(order, ridge, base + basis @ (rest / kept[:, None]), freedom)


def own_past(train: Moments, order: int, dim: int) -> Tensor:
    """Weights [order*d, d] of the regression of every dimension on its own newest `order` frames."""
    part = train.leading(order * dim)
    xx = part.xx.view(order, dim, order, dim).diagonal(dim1=1, dim2=3).permute(2, 0, 1)  # [d order order]
    xy = part.xy.view(order, dim, dim).diagonal(dim1=1, dim2=2).mT[..., None]  # [d order 1]
    small = 1e-8 * train.count * torch.eye(order, dtype=torch.float64)
    each = torch.linalg.solve(xx + small, xy).squeeze(-1)  # [d order]
    return torch.diag_embed(each.mT).reshape(order * dim, dim)


def choose(found: Iterator[Candidate], train: Moments, held_out: Moments) -> Candidate:
    """The simplest candidate that no richer one beats by more than `CERTAINTY` standard errors on `held_out`."""
    best: Candidate | None = None
    best_nll, best_covariance = math.inf, torch.empty(0)
    for candidate in found:
        covariance = shrunk_residual(train, candidate)
        factor = torch.linalg.cholesky(covariance)
        mean_square = held_out.residual(candidate.weight) / held_out.count
        nll = float(factor.diagonal().log().sum() + 0.5 * torch.cholesky_solve(mean_square, factor).trace())
        if best is None or nll + margin(best, candidate, best_covariance, held_out) < best_nll:
            best, best_nll, best_covariance = candidate, nll, covariance
    if best is None:
        raise ValueError("No order is left to choose from. Give orders from 0 to the context.")
    return best


def margin(old: Candidate, new: Candidate, covariance: Tensor, held_out: Moments) -> float:
    """How much better `new` must be: CERTAINTY × the standard error of the difference in NLL of two linear Gaussians.

    The log-ratio of two Gaussians whose means differ by δ has the variance E δᵀΣ⁻¹δ to first order.
    """
    size = max(len(old.weight), len(new.weight))
    change = torch.zeros(size, len(covariance), dtype=torch.float64)
    change[: len(new.weight)] += new.weight
    change[: len(old.weight)] -= old.weight
    square = change.mT @ held_out.leading(size).xx @ change / held_out.count
    return CERTAINTY * math.sqrt(max(float(torch.linalg.solve(covariance, square).trace()), 0.0) / held_out.count)


def shrunk_residual(train: Moments, candidate: Candidate) -> Tensor:
    """Residual covariance [d d] without the bias of fitted parameters, shrunk as if the residuals were Gaussian."""
    covariance = train.residual(candidate.weight) / max(1.0, train.count - candidate.freedom)
    std = spread(covariance.diagonal())
    correlation = covariance / std / std[:, None]
    intensity = max(gaussian_intensity(correlation, train.count - candidate.freedom), 1e-6)
    return shrink(correlation, intensity) * std * std[:, None]


def residual_covariance(
    windows: WindowSource, rows: Tensor, train: Moments, scaling: Scaling, chosen: Candidate
) -> Tensor:
    """Ledoit–Wolf covariance [d d] of the residuals, in standardised target units, unbiased for fitted parameters."""
    free = max(1.0, train.count - chosen.freedom)
    covariance = train.residual(chosen.weight) / free
    std = spread(covariance.diagonal())
    dim = len(std)
    size = len(chosen.weight)
    fourth = 0.0
    for x, y in blocks(windows, rows, size // dim, scaling):
        residual = y - train.mean_y - (x - train.mean_x[:size]) @ chosen.weight
        fourth += float((residual / std).square().sum(-1).square().sum())
    correlation = covariance / std / std[:, None]
    intensity = ledoit_wolf_intensity(correlation, fourth / train.count * (train.count / free) ** 2, train.count)
    return shrink(correlation, max(intensity, 1e-6)) * std * std[:, None]


def assemble(
    chosen: Candidate, train: Moments, scaling: Scaling, covariance: Tensor, context: int, dim: int
) -> LinearModel:
    """The model in raw units."""
    frames = len(chosen.weight) // dim
    model = LinearModel(Config(dim=dim, context=context, order=chosen.order, frames=frames, ridge=chosen.ridge))
    bias = train.mean_y - train.mean_x[: len(chosen.weight)] @ chosen.weight
    weight = chosen.weight / scaling.scale.repeat(frames)[:, None] * scaling.target_scale
    factor = torch.linalg.cholesky(covariance) * scaling.target_scale[:, None]
    values = {
        "center": scaling.center,
        "weight": weight,
        "bias": scaling.target_center + bias * scaling.target_scale,
        "factor": factor,
    }
    model.load_state_dict({name: value.float() for name, value in values.items()})
    return model
