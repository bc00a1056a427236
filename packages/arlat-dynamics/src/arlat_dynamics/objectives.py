"""What a rollout is trained for: functions by name, from one batch of true sequences to one loss.

Likelihoods are in nats per dimension, distances in units of the typical step ‖Δ‖, so that weights mean the same for every D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.rollout import Places, Rollout, Route, rollout


@dataclass(frozen=True)
class Task:
    """One batch to be rolled out.

    Attributes:
        prefix: Context [b w d], as the model sees it (with noise on it where that is trained).
        clean: The same without noise.
        truth: The true frames after it, [b k d].
        inject: Where the truth replaces the state after a step, [b k].
        longest: Steps are shortened to this length.
        length: Typical length of a step.
        draws: Sampled rollouts of each sequence.
        generator: Of every draw.
        places: Where the sequences stand in the batch of all processes.
        route: How a mean rollout is computed, as `rollout` takes it.
        rolled: The mean rollout, where it is there already.
    """

    prefix: Tensor
    clean: Tensor
    truth: Tensor
    inject: Tensor
    longest: float | None
    length: float
    draws: int
    generator: torch.Generator
    places: Places | None = None
    route: Route = "auto"
    rolled: Rollout | None = None

    def copies(self, count: int) -> Task:
        """Every sequence `count` times, neighbours being copies."""
        names = ("prefix", "clean", "truth", "inject")
        places = None if self.places is None else self.places.repeat(count)
        return replace(self, **{name: getattr(self, name).repeat_interleave(count, 0) for name in names}, places=places)


@dataclass(frozen=True)
class Outcome:
    """The loss of an objective, and the rollouts behind it (of every draw, where there are several)."""

    loss: Tensor
    rolled: Rollout


Objective = Callable[[HeadedModel, Task, "Critic | None"], Outcome]


def roll(model: HeadedModel, task: Task, sample: bool, scored: bool = True) -> Rollout:
    """One rollout of every sequence."""
    if task.rolled is not None and not sample:
        return task.rolled
    state, newest = model.start_noised(task.prefix, task.clean)
    return rollout(
        model,
        torch.cat([task.prefix[:, :-1], newest[:, None]], 1),
        task.truth,
        task.inject,
        sample=sample,
        generator=task.generator,
        longest=task.longest,
        scored=scored,
        state=state,
        places=task.places,
        route="eager" if sample else task.route,
    )


def reached(rolled: Rollout) -> Tensor:
    """The states [b k d] after every step, before any injection."""
    return rolled.state_in + rolled.step


def mean_nll(model: HeadedModel, task: Task, critic: Critic | None) -> Outcome:
    """−log p of the true steps along the mean rollout: the state advances by the law's `point()`."""
    rolled = roll(model, task, sample=False)
    return Outcome(-rolled.log_prob.mean() / model.dim, rolled)


def sampled_nll(model: HeadedModel, task: Task, critic: Critic | None) -> Outcome:
    """−log p of the true steps along a sampled rollout; gradients flow through the draws (not through a mixture's choice)."""
    rolled = roll(model, task, sample=True)
    return Outcome(-rolled.log_prob.mean() / model.dim, rolled)


def energy(model: HeadedModel, task: Task, critic: Critic | None) -> Outcome:
    """The energy score of sampled states at every step: E‖X − z‖ − ½ E‖X − X′‖, smallest in the mean where X has z's law.

    Unbiased for m draws: mean_i ‖x_i − z‖ − Σ_{i≠j} ‖x_i − x_j‖ / (2m(m−1)). Gradients flow through the draws, but not through
    a mixture's choice of its component, so its weights learn from the teacher alone.
    Source: Székely and Rizzo, 2013, "Energy statistics"; Gneiting and Raftery, 2007, "Strictly proper scoring rules".
    """
    m = task.draws
    rolled = roll(model, task.copies(m), sample=True, scored=False)
    state = reached(rolled)
    state = state.view(-1, m, *state.shape[1:])  # [b m k d]
    error = distance(state - task.truth[:, None]).mean()
    first, second = torch.triu_indices(m, m, 1, device=state.device)
    apart = distance(state[:, first] - state[:, second]).mean()
    return Outcome((error - 0.5 * apart) / task.length, rolled)


def distance(x: Tensor) -> Tensor:
    """‖x‖ [...] of x [... d], with a gradient of 0 at 0."""
    square = x.square().sum(-1)
    return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)


class Critic(nn.Module):
    """Tells true continuations from sampled ones: a real number for each sequence of w + k frames.

    It sees the context and the continuation relative to the newest true frame, in units of the typical step.
    """

    def __init__(self, dim: int, frames: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * dim * frames, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )
        self.frames = frames

    def judge(self, task: Task, states: Tensor) -> Tensor:
        """Scores [b] of states [b k d] after the task's context; what lies beyond k is taken to stand still."""
        path = torch.cat([task.prefix, states], 1)
        still = path[:, -1:].expand(-1, self.frames - path.shape[1], -1)
        path = (torch.cat([path, still], 1) - task.prefix[:, -1:]) / task.length
        steps = torch.cat([path[:, :1] * 0, path.diff(dim=1)], 1)
        score: Tensor = self.layers(torch.cat([path, steps], -1).flatten(1))
        return score[:, 0]

    def forward(self, task: Task, states: Tensor) -> Tensor:
        """Hinge loss of sampled states [b k d] against the truth."""
        true, false = self.judge(task, task.truth), self.judge(task, states.detach())
        return (torch.relu(1 - true) + torch.relu(1 + false)).mean()


def adversarial(model: HeadedModel, task: Task, critic: Critic | None) -> Outcome:
    """What a critic, trained beside the model, gives sampled continuations, with the opposite sign (hinge GAN).

    Source: Lim and Ye, 2017, "Geometric GAN".
    """
    if critic is None:
        raise ValueError("The adversarial objective needs a critic.")
    rolled = roll(model, task, sample=True, scored=False)
    return Outcome(-critic.judge(task, reached(rolled)).mean(), rolled)


OBJECTIVES: dict[str, Objective] = {
    "mean_nll": mean_nll,
    "sampled_nll": sampled_nll,
    "energy": energy,
    "adversarial": adversarial,
}
JUDGED_BY: dict[str, str] = {"adversarial": "energy"}  # what validation looks at where the loss itself means nothing
