"""The loss of one training step: objective + teacher weight × NLL at true windows + state weight × squared state error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from arlat_core.distributed import Ranks
from torch import Generator, Tensor, nn

from arlat_dynamics import compiled
from arlat_dynamics.base import WindowModel
from arlat_dynamics.fused import obstacle, operands_here, rollouts, typical_bound
from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.models.mlp import ResidualMLP
from arlat_dynamics.noise import FORMS, draw_noise
from arlat_dynamics.objectives import OBJECTIVES, Critic, Task, reached
from arlat_dynamics.rolled import Rollout
from arlat_dynamics.rollout import Places, Route, injections

if TYPE_CHECKING:
    from arlat_dynamics.rollout_config import RolloutTrainConfig


class Losses(NamedTuple):
    """A loss and its parts (scalars; a part with weight 0 is not computed and is 0), and the states [n k d] reached."""

    total: Tensor
    objective: Tensor
    teacher: Tensor
    state: Tensor
    clipped: Tensor
    states: Tensor


class Draws(NamedTuple):
    """What chance gives a training step, for the whole batch, so that any number of processes sees the same.

    noise [b w+k d] and its level [b 1 1], the steps [b k] after which the truth is put back, and where these rows stand among
    those of all processes.
    """

    noise: Tensor
    level: Tensor
    inject: Tensor
    places: Places | None = None

    def share(self, here: Ranks) -> Draws:
        """What falls to one of several processes."""
        if here.world == 1:
            return self
        places = Places(here.share(torch.arange(len(self.noise))), len(self.noise))
        return Draws(here.share(self.noise), here.share(self.level), here.share(self.inject), places)


def draw_step(config: RolloutTrainConfig, dim: int, true_share: float, generator: Generator) -> Draws:
    """The draws of one step: noise, and injections with the probability `true_share`."""
    b, k = config.batch, config.steps
    noise, level = draw_noise(config.noise, (b, config.context + k, dim), generator)
    return Draws(noise, level, torch.rand(b, k, generator=generator) < true_share)


def no_draws(frames: Tensor, steps: int) -> Draws:
    """Neither noise nor injections for frames [b w+k d]: what validation sees."""
    inject = torch.tensor(injections("D", steps)).expand(len(frames), -1)
    return Draws(torch.zeros_like(frames), torch.zeros_like(frames[:, :1, :1]), inject)


class RolloutLoss(nn.Module):
    """The loss as a module whose forward it is, since data-parallel training wraps modules; `route` is that of mean rollouts."""

    def __init__(self, model: HeadedModel, config: RolloutTrainConfig, length: float, route: Route = "auto") -> None:
        super().__init__()
        self.model, self.config, self.length, self.route = model, config, length, route
        self.fused = route in ("auto", "fused") and obstacle(model) is None
        self.teacher = self.taught
        if route == "compiled" and isinstance(model, WindowModel):  # whose laws after all windows are one call
            self.teacher = torch.compile(self.taught, backend=compiled.BACKEND, dynamic=False)

    def noised(self, frames: Tensor, draws: Draws) -> Tensor:
        """What the model sees of frames [b t d]."""
        form, level = FORMS[self.config.noise.form], draws.level.to(frames)
        seen = form(self.model.standardise(frames), draws.noise[:, : frames.shape[1]].to(frames), level)
        return torch.where(level > 0, self.model.unstandardise(seen), frames)

    def task(self, noised: Tensor, frames: Tensor, inject: Tensor, generator: Generator, places: Places | None) -> Task:
        """The rollout from the noised context of frames [b w+k d]."""
        w, config = self.config.context, self.config
        longest = None if config.longest is None else config.longest * self.length
        rest = (longest, self.length, config.draws, generator, places, self.route)
        return Task(noised[:, :w], frames[:, :w], frames[:, w:], inject, *rest)

    def begin(self, frames: Tensor, draws: Draws, steps: int, generator: Generator) -> tuple[Task, Tensor, Tensor]:
        """The task of `steps` steps of frames [b w+K d], and all of these frames [b w+steps d] noised and clean."""
        frames = frames[:, : self.config.context + steps]
        noised = self.noised(frames, draws)
        places = draws.places
        if places is not None:
            places = places._replace(rows=places.rows.to(frames.device))
        task = self.task(noised, frames, draws.inject[:, :steps].to(frames.device), generator, places)
        return task, noised, frames

    def forward(
        self,
        frames: Tensor,
        draws: Draws,
        steps: int,
        generator: Generator,
        objective: str | None = None,
        critic: Critic | None = None,
    ) -> Losses:
        """The losses of true frames [b w+K d] rolled out `steps` steps, by the configured objective unless another is named."""
        task, noised, clean = self.begin(frames, draws, steps, generator)
        return self.judged(task, noised, clean, objective, critic)

    def judged(
        self,
        task: Task,
        noised: Tensor,
        clean: Tensor,
        objective: str | None = None,
        critic: Critic | None = None,
        rolled: FusedParts | None = None,
    ) -> Losses:
        """The losses of a task; `rolled` is what the fused op gives of it, where it is there already."""
        config, name = self.config, objective or self.config.objective
        if self.fused and name == "mean_nll" and rolled is None:
            rolled = fused_parts([self], [(task, noised, clean)], operands_here(clean.device))[0]
        if rolled is not None:
            task = replace(task, rolled=rolled.free)
        outcome = OBJECTIVES[name](self.model, task, critic)
        teacher = state = outcome.loss.new_zeros(())
        if config.teacher_weight > 0:
            taught = self.teacher(noised, clean) if rolled is None else rolled.taught
            teacher = -taught.mean() / self.model.dim
        states = reached(outcome.rolled)
        if config.state_weight > 0:
            truth = task.truth.repeat_interleave(len(states) // len(task.truth), 0)
            state = (states - truth).square().sum(-1).mean() / self.length**2
        total = outcome.loss + config.teacher_weight * teacher + config.state_weight * state
        return Losses(total, outcome.loss, teacher, state, outcome.rolled.clipped.float().mean(), states)

    def taught(self, noised: Tensor, clean: Tensor) -> Tensor:
        """log p [b k] of the step from every noised frame z̃_t (t ≥ w) to the clean frame after it."""
        w = self.config.context
        laws = self.model.unroll_noised(noised[:, :-1], clean[:, :-1])[1].slice((slice(None), slice(w - 1, None)))
        return laws.log_prob(clean[:, w:] - noised[:, w - 1 : -1])


class FusedParts(NamedTuple):
    """What the fused op gives of a task: the mean rollout, and log p [b k] of the steps at true windows."""

    free: Rollout
    taught: Tensor


def fused_parts(
    losses: Sequence[RolloutLoss], begun: Sequence[tuple[Task, Tensor, Tensor]], operands: str
) -> list[FusedParts]:
    """The parts of every task, begun with the loss of its own model: rollouts in one launch, steps at true windows in another.

    The bound on steps is in typical ones, so that no number waits for the device. Without any teacher's weight `taught` is NaN.
    """
    config, models = losses[0].config, [cast(ResidualMLP, loss.model) for loss in losses]
    tasks, noised, clean = zip(*begun, strict=True)
    bound = typical_bound(config.longest)
    prefix, truth, inject = (
        torch.stack([getattr(task, name) for task in tasks]) for name in ("prefix", "truth", "inject")
    )
    free = rollouts(models, prefix, truth, inject, bound, operands)
    taught = torch.full_like(free.log_prob, torch.nan)
    if any(loss.config.teacher_weight > 0 for loss in losses):
        rows = [windows_before(*pair, config.context) for pair in zip(noised, clean, strict=True)]
        seen, after = (torch.stack(parts) for parts in zip(*rows, strict=True))
        never = torch.zeros(after.shape[:-1], dtype=torch.bool, device=after.device)
        taught = rollouts(models, seen, after, never, bound, operands).log_prob.view_as(taught)
    return [FusedParts(Rollout(*(part[i] for part in free)), taught[i]) for i in range(len(losses))]


def windows_before(noised: Tensor, clean: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The noised windows [b*k w d] before the newest k of clean frames [b w+k d], and these frames [b*k 1 d]."""
    seen = noised[:, :-1].unfold(1, context, 1).movedim(-1, -2)
    return seen.flatten(0, 1), clean[:, context:].flatten(0, 1)[:, None]
