"""R2: does training on its own rollouts keep a model on course? (SPEC §5, §12.3–12.5)

For every K of `trained` a model is trained on K-step rollouts and rolled out K steps from R1's kind of starts, by its
deterministic step (D) and sampled (S), beside the same model under true windows (A). Keys are those of R1 under `r2.kK`:

| key | definition |
| --- | --- |
| r2.kK.M.cosine[s], .magnitude_ratio[s], .state_error[s], .nll[s], .dnll_b0[s], .dnll_b5[s] | as r1.M.*, M in A, D, S; floor: mean reversion or random frames; ceiling: the perfect model's where a synthetic store knows it, else the linear VAR's rolled out alike (on a linear process the best mean rollout there is) |
| r2.kK.S.spread[s], .S.energy_score[s], .S.off_manifold[s] | of the ensemble of draws |
| r2.kK.var.M.* | the linear VAR |
| r2.kK.horizon.* | as r1.horizon.* |
| r2.kK.saturated_fraction | part of the law's bounded parameters near the end of their range on true windows |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from arlat_core.intervals import make_value
from arlat_core.types import Result, Value, WorstFrame
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_train import train_rollout
from pydantic import Field

from arlat_diag.injection import Curves, follow_samples
from arlat_diag.rollout_curves import (
    Ground,
    RolloutConfig,
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
    from arlat_dynamics.headed import HeadedModel

MODES = ("A", "D")


class Config(RolloutConfig):
    """Settings of R2; `steps` is not used: a model is rolled out as many steps as it was trained on."""

    trained: tuple[int, ...] = Field((16,), min_length=1)
    """K of each model that is trained; 64 as well shows what four times the rollout brings, at four times the cost."""
    training: RolloutTrainConfig = RolloutTrainConfig()
    """How; its number of steps is set to each K."""


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs R2 on a store; the models are kept under `run_dir`/models/r2-kK, where a killed training goes on."""
    values: dict[str, Value] = {}
    worst: list[WorstFrame] = []
    notes = []
    for steps in config.trained:
        prefix = f"r2.k{steps}"
        own = config.model_copy(update={"steps": steps})
        ground, note = survey(store, own, run_dir, device)
        notes.append(f"R2, K = {steps}: {note}")
        if ground is None:
            values |= nothing(f"{prefix}.D.cosine[1]", note)
            continue
        progress(f"R2 training, K = {steps}")
        training = config.training.with_steps(steps, config.seed)
        model = train_rollout(store, training, run_dir / "models" / f"r2-k{steps}", device, progress)
        progress(f"R2 rollouts, K = {steps}")
        found, lost = measure(prefix, store, ground, model, own, device)
        values |= perfect(prefix, found, store)
        worst += lost
    settings = config.model_dump(mode="json") | {"head": config.training.model.head.name}
    return Result(values=with_truth(values, store), worst=worst, notes=notes, settings=settings)


def perfect(prefix: str, values: dict[str, Value], store: LatentStore) -> dict[str, Value]:
    """The figures with the perfect model's mean rollout as ceiling where a synthetic store knows it in closed form."""
    known = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    out = dict(values)
    for key, value in values.items():
        best = known.get(key.replace(f"{prefix}.", "r1.", 1))
        if key.startswith((f"{prefix}.A.", f"{prefix}.D.")) and "nll" not in key and best is not None:
            out[key] = value.model_copy(update={"ceiling": best})
    return out


def measure(
    prefix: str, store: LatentStore, ground: Ground, model: HeadedModel, config: Config, device: str
) -> tuple[dict[str, Value], list[WorstFrame]]:
    """All figures of one model, and the starts from which it ends farthest off."""
    subject, starts = ground.subject, ground.subject.starts
    values: dict[str, Value] = {}
    curves: dict[str, Curves] = {}
    for mode in MODES:
        found, curves[mode] = mode_figures(
            prefix, mode, subject, model, ground.found.model.linear, ground.found.reversion, device
        )
        values |= found
    generator = torch.Generator(device).manual_seed(config.seed + 1)
    values |= sample_figures(prefix, follow_samples(model, starts, config.draws, generator, device), subject)
    values |= horizons(prefix, curves["D"], values, subject)
    values |= manifold(prefix, store, ground.train, ground.held_out, subject, model, config, device)
    near = [model.saturated_fraction(context[None].to(device)) for context in starts.prefix]
    where = (starts.speaker.numpy(), starts.utterance.numpy())
    values[f"{prefix}.saturated_fraction"] = make_value(
        torch.tensor(near).double().numpy(), *where, floor=0.0, seed=config.seed
    )
    return values, worst_starts(prefix, curves["D"], ground.held_out, subject)
