"""R4's figures for any dynamics model: where the error of its rollouts comes from, and whether they look like the data.

`fit_reference` measures once, for given starts, what does not depend on a model; `anatomise` then takes any number of
models apart, each under its own key prefix. Step s = 1 … K is the state s frames after the last true one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.intervals import make_curve
from arlat_core.types import Value
from arlat_data.windows import windows
from pydantic import Field
from torch import Tensor

from arlat_diag.direct_forecast import fit_direct
from arlat_diag.ensemble import energy_score, power, scatter, spread_and_skill
from arlat_diag.error_split import PARTS, ErrorSplit, split_error
from arlat_diag.frechet import principal_axes, thin
from arlat_diag.geometry import frames_of, scale_of
from arlat_diag.horizons import Manifold, fit_manifold
from arlat_diag.injection import Starts, draw, pieces
from arlat_diag.likeness import likeness
from arlat_diag.lyapunov import error_growth, step_map_values

if TYPE_CHECKING:
    from arlat_data.store import Split
    from arlat_dynamics.base import Dynamics

CLIMATE = 64  # random training frames that stand for a forecast that knows nothing


class Config(BaseConfig):
    """Sizes of an anatomy."""

    steps: int = Field(16, ge=4)
    """K, steps of a rollout."""
    starts_per_utterance: int = Field(4, gt=0)
    """Random starts in each held-out utterance, where its length allows."""
    at_most_starts: int = Field(512, gt=0)
    """Starts in all, and 65 536 ÷ D at most (but 64); more are thinned out."""
    draws: int = Field(16, ge=2)
    """Sample rollouts of each start."""
    map_starts: int = Field(32, gt=0)
    """Starts at which the singular values of the K-step map are found, and 4096 ÷ D at most (but 8)."""
    singular: int = Field(3, gt=0)
    """Singular values of the K-step map."""
    sweeps: int = Field(8, gt=0)
    """Rounds of subspace iteration behind them."""
    axes: int = Field(16, gt=0)
    """Principal axes in which Fréchet distances are taken; fewer where halves of the starts are small."""
    seed: int = 0
    """Seed of starts, draws and halves."""


@dataclass(frozen=True)
class Reference:
    """What the anatomies of all models share, for the same starts.

    Attributes:
        starts: Where rollouts begin.
        direct: Direct forecasts of their frames, [n k d] float64.
        mean: Training mean [d], and `std` [d].
        climate: Random training frames [r d].
        axes: Principal directions of training frames, [d p]; `share` of the variance that they hold.
        manifold: Where training frames lie.
    """

    starts: Starts
    direct: Tensor
    mean: Tensor
    std: Tensor
    climate: Tensor
    axes: Tensor
    share: float
    manifold: Manifold

    def curve(self, key: str, numbers: Tensor, below: Tensor | None = None, **known: Any) -> dict[str, Value]:
        """`key`[1 … K] of numbers [n k] with intervals; a ratio of sums with `below`."""
        values = make_curve(
            numbers.double().numpy(),
            self.starts.speaker.numpy(),
            self.starts.utterance.numpy(),
            denominator=None if below is None else below.double().numpy(),
            **known,
        )
        return {f"{key}[{s}]": value for s, value in enumerate(values, 1)}

    def value(self, key: str, numbers: Tensor, below: Tensor | None = None, **known: Any) -> dict[str, Value]:
        """`key` of numbers [n], alike."""
        found = self.curve(key, numbers[:, None], None if below is None else below[:, None], **known)
        return {key: found[f"{key}[1]"]}


def fit_reference(
    train: Split, held_out: Split, mean: Tensor, covariance: Tensor, starts: Starts, config: Config, device: str
) -> Reference:
    """Fits the direct forecasts, the axes and the manifold on training frames; mean [d] and covariance [d d] are theirs.

    Raises:
        ValueError: When the training split has too few windows of context + K frames.
    """
    generator = torch.Generator().manual_seed(config.seed + 5)
    frames = frames_of(train)
    std = covariance.double().diagonal().clamp_min(0).sqrt()
    direct = fit_direct(windows(train, starts.width, config.steps), config.steps, mean, std, config.seed)
    some = train.z[frames.choose(20_000, generator).row]
    dims = max(1, min(config.axes, train.z.shape[1], len(starts) // 16))
    axes, share = principal_axes(some, dims)
    scale = scale_of(mean, covariance)
    known = fit_manifold(train.z, frames, held_out.z, frames_of(held_out), scale, generator, device, at_most=10_000)
    climate = train.z[frames.choose(CLIMATE, generator).row].double()
    return Reference(starts, direct.predict(starts.prefix), mean.double(), std, climate, axes, share, known)


def anatomise(prefix: str, model: Dynamics, reference: Reference, config: Config, device: str) -> dict[str, Value]:
    """All figures of one model's rollouts, as `prefix`.error.total[s] and so on (docs/metrics.md)."""
    found = split_error(model, reference.starts, reference.direct, device)
    values = error_figures(prefix, found, reference)
    values |= stretching(prefix, model, reference, config, device)
    return values | sample_figures(prefix, model, reference, config, device)


def error_figures(prefix: str, found: ErrorSplit, reference: Reference) -> dict[str, Value]:
    """The split per step, its shares over all steps, and the two measures of movement."""
    unknowing = (reference.starts.truth.double() - reference.mean).square().sum(-1)
    climate = [value.value for value in reference.curve("climate", unknowing).values()]
    out = reference.curve(f"{prefix}.error.intrinsic", found.intrinsic, floor=climate)
    best = [value.value for value in out.values()]
    total = reference.curve(f"{prefix}.error.total", found.total, floor=climate, ceiling=best)
    out |= total
    out |= {key.replace(".total[", ".root["): mapped(value, root) for key, value in total.items()}
    for part in PARTS[1:]:
        out |= reference.curve(f"{prefix}.error.{part}", getattr(found, part), ceiling=0.0)
    whole, excess = found.total.sum(1), found.excess.sum(1)
    for part in PARTS:
        out |= reference.value(f"{prefix}.share.{part}", getattr(found, part).sum(1), whole)
    for part in PARTS[1:]:
        out |= reference.value(f"{prefix}.excess.{part}", getattr(found, part).sum(1), excess)
    out |= reference.curve(f"{prefix}.movement", found.along, found.ideal, ceiling=1.0)
    return out | reference.curve(f"{prefix}.travel", found.travelled, found.due, ceiling=1.0)


def thinned(starts: Starts, at_most: int) -> Starts:
    """At most so many starts, evenly spaced."""
    return starts.take(thin(torch.arange(len(starts)), min(len(starts), at_most)))


def root(number: float) -> float:
    """√number."""
    return math.sqrt(max(number, 0.0))


def mapped(value: Value, function: Callable[[float], float]) -> Value:
    """A value under a rising function of one number; what stands beside it goes with it or is left out."""
    names = ("value", "low", "high", "floor", "ceiling", "median")
    numbers = {name: getattr(value, name) for name in names}
    new = {name: None if number is None else function(number) for name, number in numbers.items()}
    return value.model_copy(update=new | {"trimmed_mean": None})


def stretching(prefix: str, model: Dynamics, reference: Reference, config: Config, device: str) -> dict[str, Value]:
    """Finite-time Lyapunov exponent, singular values, and growth along the rollout's own error."""
    generator = torch.Generator().manual_seed(config.seed + 6)
    count = min(config.map_starts, max(8, 4096 // model.dim))
    some = thinned(reference.starts, count)
    sigma = step_map_values(model, some, config.steps, config.singular, config.sweeps, generator, device)
    exponent = sigma[:, 0].log() / config.steps
    local = Reference(**{**vars(reference), "starts": some})
    out = local.value(f"{prefix}.lyapunov", exponent, unit="nats/step")
    out |= local.curve(f"{prefix}.singular", sigma, statistic="median")
    parts = [error_growth(model, part, device) for part in pieces(reference.starts, 128)]
    growth = torch.cat(parts)
    out |= reference.value(f"{prefix}.lyapunov_error", growth.mean(1), unit="nats/step")
    return out | reference.curve(f"{prefix}.lyapunov_error", growth, unit="nats/step")


def sample_figures(prefix: str, model: Dynamics, reference: Reference, config: Config, device: str) -> dict[str, Value]:
    """Energy score, spread–skill ratio, distances to true frames, and spectrum of sample rollouts."""
    generator = torch.Generator(device).manual_seed(config.seed + 7)
    starts = reference.starts
    energy, spread, miss, line, kept = [], [], [], [], []
    for part in pieces(starts, max(1, 2048 // config.draws)):
        state, step, _ = draw(model, part, config.draws, generator, device)
        after = (state + step).double()  # [n draws k d]
        ensemble, truth = after.transpose(1, 2), part.truth.double()
        energy.append(energy_score(ensemble, truth))
        both = spread_and_skill(ensemble, truth)
        spread.append(both[0])
        miss.append(both[1])
        line.append(power((after - reference.mean) / reference.std.clamp_min(1e-12)).mean(1))
        kept.append(after[:, :2])
    random = torch.cdist(starts.truth.double(), reference.climate).mean(-1) - scatter(reference.climate)
    floor = [value.value for value in reference.curve("climate", random).values()]
    out = reference.curve(f"{prefix}.S.energy_score", torch.cat(energy), floor=floor)
    ratio = reference.curve(f"{prefix}.spread_skill", torch.cat(spread), torch.cat(miss), ceiling=1.0)
    out |= {key: mapped(value, root) for key, value in ratio.items()}
    some = torch.cat(kept)
    return out | likeness(prefix, some, torch.cat(line), reference, config)
