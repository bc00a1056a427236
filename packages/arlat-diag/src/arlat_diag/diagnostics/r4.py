"""R4: why do rollouts fall apart? The error of P1's horizon-1 predictor taken apart, step by step (SPEC §5).

From random starts in held-out utterances, s = 1 … K frames ahead; the derivation stands at `arlat_diag.error_split` and
in docs/metrics.md.

| key | definition |
| --- | --- |
| r4.error.total[s], .root[s] | mean squared error of the mean rollout's state after s steps, and its root; floor: the training mean's; ceiling: the ideal forecast's |
| r4.error.{intrinsic,one_step,amplification,collapse}[s] | its parts, which add up to it |
| r4.share.PART, r4.excess.PART | their shares of the error, and of the error above the intrinsic, over all steps |
| r4.movement[s], r4.travel[s] | slope of the rollout's movement on the ideal one; ratio of the lengths of their paths |
| r4.kK.* | the same of R2's model that was trained on K steps, where R2 has been run before |
| r4.var.error.*, r4.var.share.* … | the same of the linear VAR rolled out alike |
| r4.lyapunov, r4.singular[i] | log σ_1 / K and the i-th singular value of the K-step map |
| r4.lyapunov_error, .[s] | log growth of the rollout's own error under one step of the tangent map |
| r4.S.energy_score[s], r4.spread_skill[s] | of the ensemble of draws |
| r4.knn[s], r4.knn_ratio[s], r4.frechet[s], r4.frechet_ratio[s], r4.frechet_halves | distance of samples to true frames |
| r4.spectrum[i], r4.spectral_distance, r4.spectral_halves | power of samples against that of the truth, in dB |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from arlat_core.types import Count, Result, Value
from arlat_data.windows import windows
from arlat_dynamics import checkpoint

from arlat_diag import anatomy
from arlat_diag.anatomy import Reference, anatomise, error_figures, fit_reference, thinned
from arlat_diag.diagnostics import p1
from arlat_diag.error_split import split_error
from arlat_diag.injection import Starts, choose_starts
from arlat_diag.verdict import decide

if TYPE_CHECKING:
    from arlat_data.store import LatentStore
    from arlat_dynamics.base import Dynamics


FEWEST_WINDOWS = 4  # of the training split, with K frames after them


class Config(anatomy.Config):
    """Settings of R4."""

    predictor: p1.Config = p1.Config()
    """The predictor that is rolled out; the battery puts P1's own settings here."""


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs R4 on a store with the predictor under `run_dir`/models/h1, which is trained first where it is not there."""
    progress("R4 predictor")
    train, held_out = store.load("train"), store.load("eval")
    data = p1.prepare(store, train, held_out, "horizon", 1, config.predictor)
    model = p1.one_step_predictor(data, store, config.predictor, run_dir, device).model
    generator = torch.Generator().manual_seed(config.seed)
    starts = choose_starts(held_out, model.context, config.steps, config.starts_per_utterance, generator)
    settings = config.model_dump(mode="json") | {"context": model.context}
    need = f"{model.context} + {config.steps} frames"
    if not len(starts) or len(windows(train, model.context, config.steps)) < FEWEST_WINDOWS:
        none = Value(
            value=None, n=Count(speakers=0, utterances=0, frames=0), status=f"not run: no utterance has {need}"
        )
        return Result(values={"r4.error.total[1]": none}, settings=settings)
    some = thinned(starts, min(config.at_most_starts, max(64, 2**16 // model.dim)))
    progress("R4 references")
    moments = (torch.as_tensor(store.mean), torch.as_tensor(store.covariance))
    reference = fit_reference(train, held_out, *moments, some, config, device)
    progress("R4 anatomy")
    values = anatomise("r4", model, reference, config, device)
    var = split_error(model.linear, some, reference.direct, device)
    values |= error_figures("r4.var", var, reference)
    notes = remarks(values, some, reference, need)
    for folder in sorted((run_dir / "models").glob("r2-k*/model")):
        name = folder.parent.name.removeprefix("r2-")
        trained: Dynamics = checkpoint.load(folder, store.spec).to(device)
        progress(f"R4 anatomy, {name}")
        values |= anatomise(f"r4.{name}", trained, reference, config, device)
        notes += verdict_of(values, f"r4.{name}", f"the rollout of R2's model, {name.replace('k', 'K = ')},")
    truth = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    values = {key: value.model_copy(update={"truth": truth.get(key)}) for key, value in values.items()}
    settings |= {"spectrum_hz": [i * store.spec.frame_rate / config.steps for i in range(1, config.steps // 2 + 1)]}
    return Result(values=values, notes=notes, settings=settings)


def remarks(values: dict[str, Value], starts: Starts, reference: Reference, need: str) -> list[str]:
    """The verdict, and what a reader must know of how the figures were made."""
    return [
        *verdict_of(values, "r4", "the rollout"),
        f"R4: {len(starts)} starts; {starts.too_short} held-out utterances are shorter than {need}. Fréchet distances are "
        f"on {reference.axes.shape[1]} principal axes with {100 * reference.share:.0f} % of the variance.",
    ]


def verdict_of(values: dict[str, Value], prefix: str, what: str) -> list[str]:
    """The verdict on the rollouts under `prefix` as a sentence; none where figures are missing."""
    found = decide(values, prefix)
    return [] if found is None else [f"R4: {what} {spoken(found.word)}. {found.why}"]


def spoken(word: str) -> str:
    """A verdict as the end of "the rollout …"."""
    return {"merely uncertain": "is merely uncertain", "undecided": "is undecided"}.get(word, word)
