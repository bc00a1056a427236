"""Several trainings at once: models of one shape share every launch of the fused rollout, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_loss import Losses, fused_parts
from arlat_dynamics.rollout_run import DivergedError, Run, Update

# What points trained at once may differ in: what each model sees, and what is made of the rollouts and gradients of its own.
OWN = frozenset(
    {"seed", "lr", "weight_decay", "clip", "teacher_weight", "state_weight", "true_frames", "noise", "validation_rows"}
)


def shared(config: RolloutTrainConfig) -> str:
    """What trainings at once must have in common."""
    names = RolloutTrainConfig.model_fields.keys() - OWN
    return config.model_dump_json(include=names)


def train_together(runs: Sequence[Run], stopped: list[int]) -> tuple[list[Run], int]:
    """Makes the updates that are left of runs that take the fused route, and leaves each model at its best.

    Returns the runs that came to their end, which those that diverged have not, and the number of a signal that stopped all, or
    0. Runs that are behind the others, as after a kill, catch up first. Each run is what it would be alone, up to rounding.
    """
    going = list(runs)
    while behind := updates_next(going):
        asked = len(stopped)
        updates = [run.begin() for run in behind]
        losses = losses_together(behind, updates)
        torch.stack([each.total for each in losses]).sum().backward()  # type: ignore[no-untyped-call]
        for run, update, each in zip(behind, updates, losses, strict=True):
            try:
                run.end(update, each, asked)
            except DivergedError:  # the run says so again when it is gone on with alone
                going.remove(run)
        if asked:
            return [], stopped[0]
    for run in going:
        run.model.load_state_dict(run.best_weights)
    return going, 0


def updates_next(runs: Sequence[Run]) -> list[Run]:
    """The runs that have made the fewest updates, of those that have some left."""
    left = [run for run in runs if run.update < run.config.updates]
    least = min((run.update for run in left), default=0)
    return [run for run in left if run.update == least]


def losses_together(runs: Sequence[Run], updates: Sequence[Update]) -> list[Losses]:
    """The losses of each run's update, with the rollouts of all in one launch, and their steps at true windows in another."""
    losses = [run.loss for run in runs]
    begun = [run.loss.begin(*update[:4]) for run, update in zip(runs, updates, strict=True)]
    operands = "bfloat16" if runs[0].config.bf16 else "float32"
    parts = fused_parts(losses, begun, operands)
    return [loss.judged(*each, rolled=part) for loss, each, part in zip(losses, begun, parts, strict=True)]
