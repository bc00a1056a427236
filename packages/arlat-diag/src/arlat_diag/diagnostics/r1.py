"""R1: what happens when a one-step model is fed its own output, and what does one true frame mend? (SPEC §12.3–12.5)

From random starts in held-out utterances the P1 predictor at horizon 1 is rolled out K = 16 steps with its deterministic
step, the truth being injected after every step (A), after steps 4, 8, 12 (B), after step 1 (C) or never (D); S draws the
steps instead; E and F see true frames with noise on them. s = 1 … K; M is one of A, B, C, D, S, E; frames with ‖Δ‖ ≤ 5 % of its median have no cosine.

| key | definition |
| --- | --- |
| r1.M.cosine[s] | mean cos(Δ̂_s, Δ_s); floor: the linear mean-reversion predictor rolled out alike; ceiling: the linear VAR |
| r1.M.magnitude_ratio[s] | Σ‖Δ̂_s‖ / Σ‖Δ_s‖; r1.M.magnitude_ratio_median[s] is the median of per-frame ratios |
| r1.M.state_error[s] | mean ‖ẑ − z‖ of the state entering step s; floor: median distance of random frames of different utterances |
| r1.M.nll[s], r1.M.dnll_b0[s], r1.M.dnll_b5[s] | NLL of the true Δ_s at the rollout's state, and its difference from the baselines' |
| r1.S.* | means over the draws of a start; r1.S.spread[s], r1.S.energy_score[s] of its ensemble; r1.S.off_manifold[s], the share of states beyond H_manifold's bar (true frames: 0.01) |
| r1.E.* | at every step the truth, with noise of random direction and of the size of D's error on the frames that were D's own |
| r1.F.N[ε] | N of the steps from a context with Gaussian noise of ε × median‖Δ‖ on every frame, over all steps; excess_nll is against no noise; ceiling: no noise |
| r1.var.M.* | the linear VAR rolled out alike, M in A … D: the perfect mean rollout of a linear process; its ΔNLL_B5 is against the Gaussian B5 |
| r1.cosine_null | 1/√D: spread of the cosine of unrelated directions |
| r1.horizon.{seed,decor,info} | per start (median; .q25, .q75): first step of D whose state error exceeds 100 × median‖Δ‖; reaches the distance of random frames; whose ΔNLL_B5 ≥ 0 |
| r1.horizon.manifold | per start and draw of S: first step whose entering state is farther from its fifth nearest training frame than 99 % of held-out frames; r1.horizon.manifold_truth: the same of true continuations |
| r1.horizon.{dir,info_curve} | per report: first step at which D's cosine interval reaches 1/√D, at which D's ΔNLL_B5 interval reaches 0 |
| r1.recovery_gain, .nll | Σ(x_B − x_D) / Σ(x_A − x_D) at step 5 of the cosine and of the NLL |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.types import Count, Result, Value, WorstFrame
from arlat_data.windows import Batch
from arlat_dynamics.rollout import injections
from pydantic import Field
from torch import Tensor

from arlat_diag.baselines import Baselines, fit_diagonal
from arlat_diag.diagnostics import p1
from arlat_diag.geometry import frames_of, scale_of, step_lengths, strangers
from arlat_diag.horizons import curve_horizon, fit_manifold, horizon_values
from arlat_diag.injection import MODES, Curves, SampleCurves, Starts, choose_starts, draw, follow, follow_samples
from arlat_diag.intervals import make_curve, make_value, worst
from arlat_diag.perturbed import noise_like, perturbed, sensitivity

if TYPE_CHECKING:
    from arlat_data.store import LatentStore, Split
    from arlat_dynamics.base import Dynamics

RECOVERY_STEP = 5  # right after B's first injection


class Config(BaseConfig):
    """Settings of R1."""

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
    """Seed of starts and draws."""
    predictor: p1.Config = p1.Config()
    """The predictor that is rolled out; the battery puts P1's own settings here."""


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


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs R1 on a store with the predictor under `run_dir`/models/h1, which is trained first where it is not there."""

    progress("R1 predictor")
    predictor = config.predictor
    train, held_out = store.load("train"), store.load("eval")
    data = p1.prepare(store, train, held_out, "horizon", 1, predictor)
    found = p1.one_step_predictor(data, store, predictor, run_dir, device)
    model = found.model
    generator = torch.Generator().manual_seed(config.seed)
    starts = choose_starts(held_out, model.context, config.steps, config.starts_per_utterance, generator)
    settings = config.model_dump(mode="json") | {"context": model.context}
    need = f"{model.context} + {config.steps} frames"
    notes = [
        f"R1: {len(starts)} starts; {starts.too_short} of {len(held_out.ids)} held-out utterances are shorter than {need}."
    ]
    if not len(starts):
        none = Value(
            value=None, n=Count(speakers=0, utterances=0, frames=0), status=f"not run: no utterance has {need}"
        )
        return Result(values={"r1.horizon.info": none}, notes=notes, settings=settings)
    displacement = {"b0": fit_diagonal(data.train.target[data.fit_rows])}
    marginal = p1.marginal_of(train, data, predictor)
    baselines = Baselines(displacement, found.reversion, model.linear, marginal)
    subject = make_subject(train, held_out, starts, baselines, config, generator)
    progress("R1 injection")
    values, curves = diagnose(subject, model, model.linear, found.reversion, config, device)
    progress("R1 manifold")
    values |= manifold(store, train, held_out, subject, model, config, device)
    truth = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    values = {key: value.model_copy(update={"truth": truth.get(key)}) for key, value in values.items()}
    notes += remarks(subject)
    return Result(values=values, worst=worst_starts(curves["D"], held_out, subject), notes=notes, settings=settings)


def make_subject(
    train: Split, held_out: Split, starts: Starts, baselines: NullModel, config: Config, generator: torch.Generator
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


def diagnose(
    subject: Subject, model: Dynamics, var: Dynamics, reversion: Dynamics | None, config: Config, device: str
) -> tuple[dict[str, Value], dict[str, Curves]]:
    """All curves, horizons but the manifold's, and the recovery gain; the curves per start of A … D come beside them."""
    values: dict[str, Value] = {}
    curves: dict[str, Curves] = {}
    starts = subject.starts
    for mode in MODES:
        inject = injections(mode, config.steps)
        linear = figures(
            f"r1.var.{mode}", follow(var.to(device), starts, inject, device), subject, "b5_gaussian", inject
        )
        curves[mode] = follow(model, starts, inject, device)
        own = figures(f"r1.{mode}", curves[mode], subject, "b5", inject)
        for key, value in own.items():
            above = linear[key.replace("r1.", "r1.var.", 1)]
            if ".dnll" not in key and ".nll" not in key:
                own[key] = value.model_copy(update={"ceiling": above.value})
        if reversion is not None:
            floor = follow(reversion.to(device), starts, inject, device).cosine
            for key, value in cosines(f"r1.{mode}", floor, subject).items():
                own[key] = own[key].model_copy(update={"floor": value.value})
        values |= linear | own
    generator = torch.Generator(device).manual_seed(config.seed + 1)
    samples = follow_samples(model, starts, config.draws, generator, device)
    values |= sample_figures(samples, subject)
    values |= noisy(curves["D"], subject, model, config, device)
    values |= horizons(curves["D"], values, subject)
    values |= recovery(curves, subject)
    values["r1.cosine_null"] = make_value(
        torch.full((len(starts),), starts.sequence.shape[-1] ** -0.5).double().numpy(), starts.speaker, starts.utterance
    )
    return values, curves


def noisy(free: Curves, subject: Subject, model: Dynamics, config: Config, device: str) -> dict[str, Value]:
    """Modes E and F."""
    generator = torch.Generator().manual_seed(config.seed + 4)
    starts = subject.starts
    like_free = perturbed(model, starts, noise_like(free.error, starts, generator), device)
    out = figures("r1.E", like_free, subject, "b5", (False,) * config.steps)
    b5 = subject.baseline["b5"]
    return out | sensitivity(model, starts, subject.moving, b5, subject.step, generator, device, subject.seed)


def remarks(subject: Subject) -> list[str]:
    """What a reader must know of how the figures were made."""
    still = int((~subject.moving).sum())
    return [
        f"R1: {still} of {subject.moving.numel()} frames with ‖Δ‖ ≤ 5 % of its median have no cosine.",
        "R1: r1.horizon.dir and r1.horizon.info_curve are read off the report's curves and their intervals, not per start; "
        "r1.horizon.info is per start and comes early where the ΔNLL of single frames is noisy.",
    ]


def worst_starts(free: Curves, held_out: Split, subject: Subject) -> list[WorstFrame]:
    """The starts whose mean rollout D ends farthest from the truth, at the frame that enters the last step; those that are not finite come first."""
    error = free.error[:, -1].nan_to_num(torch.finfo(torch.float64).max, torch.finfo(torch.float64).max)
    steps = free.error.shape[1]
    ids = [held_out.ids[item] for item in subject.starts.utterance.tolist()]
    return worst(error.numpy(), f"r1.D.state_error[{steps}]", ids, (subject.starts.frame + steps - 1).numpy(), 20)


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


def medians(key: str, ratio: Tensor, subject: Subject) -> dict[str, Value]:
    """`key`[1 … K]: medians over moving frames."""
    out = {}
    for s in range(ratio.shape[1]):
        kept = subject.moving[:, s] & torch.isfinite(ratio[:, s])
        at = (subject.starts.speaker[kept].numpy(), subject.starts.utterance[kept].numpy())
        out[f"{key}[{s + 1}]"] = make_value(ratio[kept, s].numpy(), *at, statistic="median", seed=subject.seed)
    return out


def sample_figures(samples: SampleCurves, subject: Subject) -> dict[str, Value]:
    """The curves of mode S: those of every mode, and of the ensemble."""
    never = (False,) * samples.nll.shape[1]
    out = figures("r1.S", samples, subject, "b5", never)
    out |= subject.curve("r1.S.spread", samples.spread)
    out |= subject.curve("r1.S.energy_score", samples.energy_score)
    return out


def horizons(free: Curves, values: Mapping[str, Value], subject: Subject) -> dict[str, Value]:
    """r1.horizon.* of the free mean rollout D: seed, decor and info per start, dir and info_curve per report."""
    speaker, utterance = subject.starts.speaker, subject.starts.utterance
    gain = free.nll - subject.baseline["b5"]
    lost = {
        "seed": ~(free.error <= 100 * subject.step),  # negated so that NaN counts as lost
        "decor": ~(free.error < subject.apart),
        "info": ~(gain < 0),
    }
    out: dict[str, Value] = {}
    for name, beyond in lost.items():
        out |= horizon_values(f"r1.horizon.{name}", beyond, speaker, utterance, subject.seed)
    steps = range(1, gain.shape[1] + 1)
    null = subject.starts.sequence.shape[-1] ** -0.5
    out["r1.horizon.dir"] = curve_horizon([values[f"r1.D.cosine[{s}]"] for s in steps], null, falling=True)
    out["r1.horizon.info_curve"] = curve_horizon([values[f"r1.D.dnll_b5[{s}]"] for s in steps], 0.0, falling=False)
    return out


def recovery(curves: Mapping[str, Curves], subject: Subject) -> dict[str, Value]:
    """r1.recovery_gain (of the cosine) and r1.recovery_gain.nll: 1 if one true frame mends all that D lost.

    A ratio of sums over starts; where the interval of A − D holds 0 there was nothing to mend and G is undefined.
    """
    at = RECOVERY_STEP - 1
    moving = subject.moving[:, at].double()
    pairs = {"": {m: curves[m].cosine[:, at] * moving for m in "ABD"}, ".nll": {m: curves[m].nll[:, at] for m in "ABD"}}
    where = (subject.starts.speaker.numpy(), subject.starts.utterance.numpy())
    out = {}
    for suffix, x in pairs.items():
        above, below = (x["B"] - x["D"])[:, None].numpy(), (x["A"] - x["D"])[:, None].numpy()
        gap = make_curve(below, *where, seed=subject.seed)[0]
        gain = make_curve(above, *where, denominator=below, seed=subject.seed, floor=0.0, ceiling=1.0)[0]
        if gap.low is None or gap.high is None or gap.value is None or gap.low <= 0 <= gap.high:
            span = "" if gap.low is None or gap.high is None else f" [{gap.low:.3g}, {gap.high:.3g}]"
            why = f"undefined: A − D at step {RECOVERY_STEP} is {gap.value if gap.value is None else format(gap.value, '.3g')}{span}"
            gain = gain.model_copy(update={"value": None, "low": None, "high": None, "status": why})
        out[f"r1.recovery_gain{suffix}"] = gain
    return out


def manifold(
    store: LatentStore, train: Split, held_out: Split, subject: Subject, model: Dynamics, config: Config, device: str
) -> dict[str, Value]:
    """r1.horizon.manifold of sample rollouts, r1.horizon.manifold_truth of true continuations, and r1.S.off_manifold[s]."""
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
    out = horizon_values("r1.horizon.manifold", flat, every.speaker, every.utterance, subject.seed)
    true = known.beyond(some.entering)
    out |= horizon_values("r1.horizon.manifold_truth", true, some.speaker, some.utterance, subject.seed)
    share = make_curve(
        beyond.double().mean(1).numpy(), some.speaker.numpy(), some.utterance.numpy(), floor=0.01, seed=subject.seed
    )
    return out | {f"r1.S.off_manifold[{s}]": value for s, value in enumerate(share, 1)}
