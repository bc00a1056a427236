"""What every diagnostic of rollouts shares: its starts and yardsticks, and the figures of curves per start and step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.intervals import make_curve, make_value, worst
from arlat_core.types import Count, Value, WorstFrame
from arlat_data.windows import Batch
from arlat_dynamics.rollout import injections
from pydantic import Field
from torch import Tensor

from arlat_diag.baselines import Baselines, fit_diagonal
from arlat_diag.diagnostics import p1
from arlat_diag.geometry import frames_of, scale_of, step_lengths, strangers
from arlat_diag.horizons import curve_horizon, fit_manifold, horizon_values
from arlat_diag.injection import Curves, SampleCurves, Starts, choose_starts, draw, follow

if TYPE_CHECKING:
    from arlat_data.store import LatentStore, Split
    from arlat_dynamics.base import Dynamics


class RolloutConfig(BaseConfig):
    """Settings of every diagnostic that rolls a model out from random starts."""

    steps: int = Field(16, ge=5)
    """K, steps of a rollout."""
    starts_per_utterance: int = Field(4, gt=0)
    """Random starts in each held-out utterance, where its length allows."""
    draws: int = Field(16, ge=2)
    """Draws per start in mode S."""
    manifold_starts: int = Field(256, gt=0)
    """At most so many starts enter H_manifold."""
    manifold_draws: int = Field(4, gt=0)
    """Draws per start in H_manifold."""
    pairs: int = Field(20_000, gt=0)
    """Pairs of random frames behind the distance of H_decor."""
    seed: int = 0
    """Seed of starts and draws; diagnostics with the same seed and settings have the same starts."""
    predictor: p1.Config = p1.Config()
    """P1's predictor, which gives the baselines and the linear ceiling; the battery puts P1's own settings here."""


class NullModel(Protocol):
    """What gives the baselines' NLL of true displacements: `arlat_diag.baselines.Baselines`."""

    def nll(self, name: str, batch: Batch) -> Tensor:
        """NLL [n] in nats of a batch's true displacements."""
        ...


@dataclass(frozen=True)
class Subject:
    """What is rolled out, from where, and what it is compared with.

    Attributes:
        starts: True stretches of held-out utterances.
        length: ‖Δ_s‖, [n k] float64.
        moving: Where ‖Δ_s‖ is above 5 % of its median, [n k].
        baseline: NLL of the true Δ_s under b0, b5 and b5_gaussian, each [n k].
        step: Median ‖Δ‖ of training frames.
        apart: Median distance of random frames of different utterances.
    """

    starts: Starts
    length: Tensor
    moving: Tensor
    baseline: Mapping[str, Tensor]
    step: float
    apart: float
    seed: int

    def curve(
        self,
        key: str,
        numbers: Tensor,
        denominator: Tensor | None = None,
        unit: str = "",
        **known: Any,
    ) -> dict[str, Value]:
        """`key`[1 … K] of numbers [n k] with intervals."""
        below = None if denominator is None else denominator.double().numpy()
        values = make_curve(
            numbers.double().numpy(),
            self.starts.speaker.numpy(),
            self.starts.utterance.numpy(),
            denominator=below,
            unit=unit,
            seed=self.seed,
            **known,
        )
        return {f"{key}[{s}]": value for s, value in enumerate(values, 1)}


@dataclass(frozen=True)
class Ground:
    """What rollouts on a store stand on: its splits, P1's predictor of horizon 1, and the subject to be measured."""

    train: Split
    held_out: Split
    found: p1.Predictor
    subject: Subject


def survey(store: LatentStore, config: RolloutConfig, run_dir: Path, device: str) -> tuple[Ground | None, str]:
    """Draws the starts and fits what figures are compared with; nothing where no utterance is long enough. And a note.

    The predictor is that under `run_dir`/models/h1, which is trained first where it is not there.
    """
    predictor = config.predictor
    train, held_out = store.load("train"), store.load("eval")
    data = p1.prepare(store, train, held_out, "horizon", 1, predictor)
    found = p1.one_step_predictor(data, store, predictor, run_dir, device)
    generator = torch.Generator().manual_seed(config.seed)
    width = found.model.context
    starts = choose_starts(held_out, width, config.steps, config.starts_per_utterance, generator)
    note = (
        f"{len(starts)} starts; {starts.too_short} of {len(held_out.ids)} held-out utterances are shorter than "
        f"{width} + {config.steps} frames."
    )
    if not len(starts):
        return None, note
    displacement = {"b0": fit_diagonal(data.train.target[data.fit_rows])}
    marginal = p1.marginal_of(data, predictor)
    baselines = Baselines(displacement, found.reversion, found.model.linear, marginal)
    return Ground(train, held_out, found, make_subject(train, held_out, starts, baselines, config, generator)), note


def nothing(key: str, note: str) -> dict[str, Value]:
    """`key` without a number, for a store that has no start."""
    none = Count(speakers=0, utterances=0, frames=0)
    return {key: Value(value=None, n=none, status=f"not run: {note}")}


def with_truth(values: Mapping[str, Value], store: LatentStore) -> dict[str, Value]:
    """The figures with the closed-form answers of a synthetic store."""
    truth = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    return {key: value.model_copy(update={"truth": truth.get(key)}) for key, value in values.items()}


def make_subject(
    train: Split,
    held_out: Split,
    starts: Starts,
    baselines: NullModel,
    config: RolloutConfig,
    generator: torch.Generator,
) -> Subject:
    """Scores the baselines on the true displacements and measures the yardsticks of the horizons."""
    length = starts.displacement.double().norm(dim=-1)
    nll = {
        name: torch.stack([baselines.nll(name, starts.batch(s)) for s in range(1, config.steps + 1)], 1).double()
        for name in ("b0", "b5", "b5_gaussian")
    }
    apart, _ = strangers(held_out.z, frames_of(held_out), config.pairs, generator)
    return Subject(
        starts,
        length,
        length > 0.05 * length.median(),
        nll,
        float(step_lengths(train.z, frames_of(train))[0].median()),
        float(apart.median()) if len(apart) else float("inf"),
        config.seed,
    )


def worst_starts(prefix: str, free: Curves, held_out: Split, subject: Subject) -> list[WorstFrame]:
    """The starts whose mean rollout D ends farthest from the truth, at the frame that enters the last step; those that are not finite come first."""
    error = free.error[:, -1].nan_to_num(torch.finfo(torch.float64).max, torch.finfo(torch.float64).max)
    steps = free.error.shape[1]
    ids = [held_out.ids[item] for item in subject.starts.utterance.tolist()]
    return worst(error.numpy(), f"{prefix}.D.state_error[{steps}]", ids, (subject.starts.frame + steps - 1).numpy(), 20)


def cosines(prefix: str, cosine: Tensor, subject: Subject) -> dict[str, Value]:
    """`prefix`.cosine[1 … K] over moving frames."""
    return subject.curve(f"{prefix}.cosine", torch.where(subject.moving, cosine, 0.0), subject.moving)


def figures(prefix: str, curves: Curves, subject: Subject, marginal: str, inject: tuple[bool, ...]) -> dict[str, Value]:
    """The curves of one mode; ΔNLL_B0's white-noise floor −(D/2) ln 2 holds at steps that start from the truth."""
    dim = subject.starts.sequence.shape[-1]
    white = -(dim / 2) * float(torch.tensor(2.0).log())
    floors: list[float | None] = [white if fresh else None for fresh in (True, *inject[:-1])]
    ratio = torch.where(subject.moving, curves.predicted_length / subject.length.clamp_min(1e-300), 0.0)
    out = cosines(prefix, curves.cosine, subject)
    out |= subject.curve(f"{prefix}.magnitude_ratio", curves.predicted_length, subject.length, unit="true steps")
    out |= medians(f"{prefix}.magnitude_ratio_median", ratio, subject)
    out |= subject.curve(
        f"{prefix}.state_error", curves.error, floor=subject.apart if subject.apart < float("inf") else None
    )
    out |= subject.curve(f"{prefix}.nll", curves.nll, unit="nats/frame")
    out |= subject.curve(f"{prefix}.dnll_b0", curves.nll - subject.baseline["b0"], unit="nats/frame", floor=floors)
    out |= subject.curve(f"{prefix}.dnll_b5", curves.nll - subject.baseline[marginal], unit="nats/frame", floor=0.0)
    return out


def mode_figures(
    prefix: str,
    mode: str,
    subject: Subject,
    model: Dynamics,
    var: Dynamics,
    reversion: Dynamics | None,
    device: str,
) -> tuple[dict[str, Value], Curves]:
    """The curves of one mode of the deterministic step, with the linear VAR's as ceiling and mean reversion's cosine as floor.

    Both are rolled out alike; the VAR's curves stand under `prefix`.var. The curves per start come beside the figures.
    """
    inject = injections(mode, subject.length.shape[1])
    curves = follow(model, subject.starts, inject, device)
    own = figures(f"{prefix}.{mode}", curves, subject, "b5", inject)
    linear_curves = follow(var.to(device), subject.starts, inject, device)
    linear = figures(f"{prefix}.var.{mode}", linear_curves, subject, "b5_gaussian", inject)
    for key, value in own.items():
        if "nll" not in key:
            above = linear[f"{prefix}.var{key.removeprefix(prefix)}"]
            own[key] = value.model_copy(update={"ceiling": above.value})
    if reversion is not None:
        floor = follow(reversion.to(device), subject.starts, inject, device).cosine
        for key, value in cosines(f"{prefix}.{mode}", floor, subject).items():
            own[key] = own[key].model_copy(update={"floor": value.value})
    return linear | own, curves


def medians(key: str, ratio: Tensor, subject: Subject) -> dict[str, Value]:
    """`key`[1 … K]: medians over moving frames."""
    out = {}
    for s in range(ratio.shape[1]):
        kept = subject.moving[:, s] & torch.isfinite(ratio[:, s])
        at = (subject.starts.speaker[kept].numpy(), subject.starts.utterance[kept].numpy())
        out[f"{key}[{s + 1}]"] = make_value(ratio[kept, s].numpy(), *at, statistic="median", seed=subject.seed)
    return out


def sample_figures(prefix: str, samples: SampleCurves, subject: Subject) -> dict[str, Value]:
    """The curves of mode S: those of every mode, and of the ensemble."""
    never = (False,) * samples.nll.shape[1]
    out = figures(f"{prefix}.S", samples, subject, "b5", never)
    out |= subject.curve(f"{prefix}.S.spread", samples.spread)
    out |= subject.curve(f"{prefix}.S.energy_score", samples.energy_score)
    return out


def horizons(prefix: str, free: Curves, values: Mapping[str, Value], subject: Subject) -> dict[str, Value]:
    """`prefix`.horizon.* of the free mean rollout D: seed, decor and info per start, dir and info_curve per report."""
    speaker, utterance = subject.starts.speaker, subject.starts.utterance
    gain = free.nll - subject.baseline["b5"]
    lost = {
        "seed": ~(free.error <= 100 * subject.step),  # negated so that NaN counts as lost
        "decor": ~(free.error < subject.apart),
        "info": ~(gain < 0),
    }
    out: dict[str, Value] = {}
    for name, beyond in lost.items():
        out |= horizon_values(f"{prefix}.horizon.{name}", beyond, speaker, utterance, subject.seed)
    steps = range(1, gain.shape[1] + 1)
    null = subject.starts.sequence.shape[-1] ** -0.5
    out[f"{prefix}.horizon.dir"] = curve_horizon([values[f"{prefix}.D.cosine[{s}]"] for s in steps], null, falling=True)
    out[f"{prefix}.horizon.info_curve"] = curve_horizon(
        [values[f"{prefix}.D.dnll_b5[{s}]"] for s in steps], 0.0, falling=False
    )
    return out


def manifold(
    prefix: str,
    store: LatentStore,
    train: Split,
    held_out: Split,
    subject: Subject,
    model: Dynamics,
    config: RolloutConfig,
    device: str,
) -> dict[str, Value]:
    """`prefix`.horizon.manifold of sample rollouts, .horizon.manifold_truth of true continuations, and .S.off_manifold[s]."""
    generator = torch.Generator().manual_seed(config.seed + 2)
    scale = scale_of(torch.as_tensor(store.mean), torch.as_tensor(store.covariance))
    frames, train_frames = frames_of(held_out), frames_of(train)
    known = fit_manifold(train.z, train_frames, held_out.z, frames, scale, generator, device)
    rows = torch.randperm(len(subject.starts), generator=generator)[: config.manifold_starts].sort().values
    some = subject.starts.take(rows)
    state, _, _ = draw(model, some, config.manifold_draws, torch.Generator(device).manual_seed(config.seed + 3), device)
    beyond = known.beyond(state)  # [n draws k]
    every = some.take(torch.arange(len(some)).repeat_interleave(config.manifold_draws))
    flat = beyond.flatten(0, 1)
    out = horizon_values(f"{prefix}.horizon.manifold", flat, every.speaker, every.utterance, subject.seed)
    true = known.beyond(some.entering)
    out |= horizon_values(f"{prefix}.horizon.manifold_truth", true, some.speaker, some.utterance, subject.seed)
    share = make_curve(
        beyond.double().mean(1).numpy(), some.speaker.numpy(), some.utterance.numpy(), floor=0.01, seed=subject.seed
    )
    return out | {f"{prefix}.S.off_manifold[{s}]": value for s, value in enumerate(share, 1)}
