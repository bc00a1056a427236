"""K-step rollout training: a model learns from what its own rollouts do (SPEC Y3).

`train_rollout` trains any `HeadedModel` on a store. A killed training goes on where its last state was saved, and ends in
the same bytes on a CPU. One process, or several by torchrun.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from arlat_core import registry
from arlat_core.distributed import Ranks, ranks
from arlat_core.files import write_json
from arlat_core.signals import stopping
from arlat_data.windows import windows

from arlat_dynamics import checkpoint
from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.rollout_config import ModelConfig, RolloutTrainConfig
from arlat_dynamics.rollout_run import Run, run_route
from arlat_dynamics.rollout_together import train_together
from arlat_dynamics.route import Route
from arlat_dynamics.sequences import cut
from arlat_dynamics.train import split_speakers

if TYPE_CHECKING:
    from arlat_data.store import LatentStore, Split

__all__ = ["ModelConfig", "RolloutTrainConfig", "planned_route", "train_rollout", "train_several"]
Progress = Callable[[str], None]


def train_rollout(
    store: LatentStore,
    config: RolloutTrainConfig,
    out: Path,
    device: str = "cpu",
    progress: Progress = lambda _: None,
    announce: Progress = lambda _: None,
) -> HeadedModel:
    """Trains a model on the training split of `store` and leaves it in `out`/model; a finished one is read, a killed one goes on.

    `out`/metrics.jsonl has a line every few updates, `out`/fit.json what came of it. The model kept is the one with the
    smallest validation loss (the whole loss at all K steps, without noise or injections; of the adversarial objective: the energy score),
    that before the first update included. `progress` hears where the training is, `announce` once which way rollouts are computed.
    """
    folder = out / "model"
    if checkpoint.exists(folder):
        return checkpoint.load(folder, store.spec, HeadedModel).to(device)  # type: ignore[type-abstract]
    with ranks(device) as here:
        run = prepared(store, config, out, here, progress)
        announce(str(run.route))
        with stopping() as stopped:
            run.train(stopped)
        finish(run, store)
    return run.model


def train_several(
    store: LatentStore,
    configs: dict[Path, RolloutTrainConfig],
    device: str = "cpu",
    progress: Progress = lambda _: None,
) -> None:
    """Trains what is left of several points, by the folder of each, in the same launches; one that diverges is left unfinished.

    They take the fused route and differ in nothing but `rollout_together.OWN`. Each ends in what `train_rollout` makes of it, up to
    rounding, and either goes on with what the other began.

    Raises:
        SystemExit: After a signal, with 128 + its number; every training is saved.
    """
    left = {out: config for out, config in configs.items() if not checkpoint.exists(out / "model")}
    if not left:
        return
    split, here = store.load("train"), Ranks(0, 1, device)
    runs = [prepared(store, config, out, here, progress, split) for out, config in left.items()]
    with stopping() as stopped:
        finished, signalled = train_together(runs, stopped)
    if signalled:
        raise SystemExit(128 + signalled)
    for run in finished:
        finish(run, store)


def prepared(
    store: LatentStore,
    config: RolloutTrainConfig,
    out: Path,
    here: Ranks,
    progress: Progress,
    split: Split | None = None,
) -> Run:
    """The training under `out`, at its newest state."""
    split = store.load("train") if split is None else split
    sequences = cut(store, config, split)
    settings = config.model.settings(store.spec.dim, config.context)
    generator = torch.Generator().manual_seed(config.seed)
    module = registry.load("dynamics", config.model.name)
    near = windows(split, config.context, 1)
    model: HeadedModel = module.start(settings, near, *split_speakers(near, config.seed), generator)
    run = Run(model.to(here.device), sequences, config, out, here, progress)
    run.resume()
    return run


def finish(run: Run, store: LatentStore) -> None:
    """Leaves the model and what came of its training."""
    if run.here.first:
        checkpoint.save(run.model, run.out / "model", store.spec)
        write_json(run.out / "fit.json", run.report())


def planned_route(config: RolloutTrainConfig, dim: int, device: str) -> Route:
    """The way of a training that has not begun, of a model of `dim` dimensions in one process."""
    model = registry.load("dynamics", config.model.name).build(config.model.settings(dim, config.context)).to(device)
    return run_route(model, config, Ranks(0, 1, device))
