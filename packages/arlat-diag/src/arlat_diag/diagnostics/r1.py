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
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from arlat_core.intervals import make_curve, make_value
from arlat_core.types import Result, Value

from arlat_diag.injection import MODES, Curves, follow_samples
from arlat_diag.perturbed import noise_like, perturbed, sensitivity
from arlat_diag.rollout_curves import (
    RolloutConfig,
    Subject,
    figures,
    horizons,
    manifold,
    mode_figures,
    nothing,
    sample_figures,
    survey,
    with_truth,
    worst_starts,
)

if TYPE_CHECKING:
    from arlat_data.store import LatentStore
    from arlat_dynamics.base import Dynamics

RECOVERY_STEP = 5  # right after B's first injection


class Config(RolloutConfig):
    """Settings of R1."""


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs R1 on a store with the predictor under `run_dir`/models/h1, which is trained first where it is not there."""
    progress("R1 predictor")
    ground, note = survey(store, config, run_dir, device)
    settings = config.model_dump(mode="json") | {"context": config.predictor.context}
    notes = [f"R1: {note}"]
    if ground is None:
        return Result(values=nothing("r1.horizon.info", note), notes=notes, settings=settings)
    subject, found = ground.subject, ground.found
    progress("R1 injection")
    values, curves = diagnose(subject, found.model, found.model.linear, found.reversion, config, device)
    progress("R1 manifold")
    values |= manifold("r1", store, ground.train, ground.held_out, subject, found.model, config, device)
    worst = worst_starts("r1", curves["D"], ground.held_out, subject)
    return Result(values=with_truth(values, store), worst=worst, notes=notes + remarks(subject), settings=settings)


def diagnose(
    subject: Subject, model: Dynamics, var: Dynamics, reversion: Dynamics | None, config: Config, device: str
) -> tuple[dict[str, Value], dict[str, Curves]]:
    """All curves, horizons but the manifold's, and the recovery gain; the curves per start of A … D come beside them."""
    values: dict[str, Value] = {}
    curves: dict[str, Curves] = {}
    starts = subject.starts
    for mode in MODES:
        found, curves[mode] = mode_figures("r1", mode, subject, model, var, reversion, device)
        values |= found
    generator = torch.Generator(device).manual_seed(config.seed + 1)
    samples = follow_samples(model, starts, config.draws, generator, device)
    values |= sample_figures("r1", samples, subject)
    values |= noisy(curves["D"], subject, model, config, device)
    values |= horizons("r1", curves["D"], values, subject)
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
