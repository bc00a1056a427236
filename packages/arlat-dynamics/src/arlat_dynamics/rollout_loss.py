"""The loss of one training step: objective + teacher weight × NLL at true windows + state weight × squared state error."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from arlat_core.distributed import Ranks
from torch import Generator, Tensor, nn

from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.noise import FORMS, draw_noise
from arlat_dynamics.objectives import OBJECTIVES, Critic, Task, reached
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
        taught: Tensor | None = None,
    ) -> Losses:
        """The losses of a task; `taught` is log p of the steps at true windows, where it is there already."""
        config = self.config
        outcome = OBJECTIVES[objective or config.objective](self.model, task, critic)
        teacher = state = outcome.loss.new_zeros(())
        if config.teacher_weight > 0:
            taught = self.taught(noised, clean) if taught is None else taught
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
