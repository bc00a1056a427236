"""One step of a rollout, and what happened in all of them, whichever way they were computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from arlat_core.distributions import StepDistribution
from torch import Tensor

from arlat_dynamics.base import Dynamics, State


class Rollout(NamedTuple):
    """What happened at each of k steps.

    Attributes:
        state_in: State entering the step, [b k d]; the first is the last frame of the prefix.
        step: Displacement that the model took, [b k d], before any injection.
        log_prob: Log-density of the true displacement under the model's law at its own window, [b k], nats.
        clipped: Whether the step was longer than `longest` and was shortened to it, [b k].
    """

    state_in: Tensor
    step: Tensor
    log_prob: Tensor
    clipped: Tensor


class Step(NamedTuple):
    """The model's state after a step, its displacement [b d], whether it was shortened [b], and log p of the true one [b]."""

    state: State
    taken: Tensor
    clipped: Tensor
    log_prob: Tensor


def point(law: StepDistribution) -> Tensor:
    """Where a mean rollout goes."""
    return law.point()


def one_step(
    model: Dynamics,
    choose: Callable[[StepDistribution], Tensor],
    longest: float | None,
    scored: bool,
    state: State,
    x: Tensor,
    true_step: Tensor,
) -> Step:
    """The step from x [b d] that `choose` takes of the model's law, beside the true one [b d]."""
    state, law = model.step(state, x)
    taken, clipped = shorten(choose(law), longest)
    log_prob = law.log_prob(true_step) if scored else true_step.new_full(true_step.shape[:1], torch.nan)
    return Step(state, taken, clipped, log_prob)


def shorten(dx: Tensor, longest: float | None) -> tuple[Tensor, Tensor]:
    """Steps [b d] of at most the length `longest`, in their own direction, and which [b] were longer."""
    if longest is None:
        return dx, torch.zeros(dx.shape[:-1], dtype=torch.bool, device=dx.device)
    length = dx.norm(dim=-1)
    over = length > longest
    return torch.where(over[..., None], dx * (longest / length.clamp_min(longest))[..., None], dx), over
