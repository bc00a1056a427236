"""The loss of one training step: objective + teacher weight × NLL at true windows + state weight × squared state error."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from arlat_core.distributed import Ranks
from torch import Tensor, nn

from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.noise import FORMS, draw_noise
from arlat_dynamics.objectives import OBJECTIVES, Critic, Task, reached
from arlat_dynamics.rollout import Places, injections

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


def draw_step(config: RolloutTrainConfig, dim: int, true_share: float, generator: torch.Generator) -> Draws:
    """The draws of one step: noise, and injections with the probability `true_share`."""
    b, k = config.batch, config.steps
    noise, level = draw_noise(config.noise, (b, config.context + k, dim), generator)
    return Draws(noise, level, torch.rand(b, k, generator=generator) < true_share)


def no_draws(frames: Tensor, steps: int) -> Draws:
    """Neither noise nor injections for frames [b w+k d]: what validation sees."""
    inject = torch.tensor(injections("D", steps)).expand(len(frames), -1)
    return Draws(torch.zeros_like(frames), torch.zeros_like(frames[:, :1, :1]), inject)


class RolloutLoss(nn.Module):
    """The loss as a module whose forward it is, since data-parallel training wraps modules."""

    def __init__(self, model: HeadedModel, config: RolloutTrainConfig, length: float) -> None:
        super().__init__()
        self.model, self.config, self.length = model, config, length

    def task(self, frames: Tensor, draws: Draws, steps: int, generator: torch.Generator) -> tuple[Task, Tensor]:
        """The rollout of `steps` steps from the noised context of frames [b w+K d], and all noised frames."""
        w, config = self.config.context, self.config
        frames = frames[:, : w + steps]
        plain = self.model.standardise(frames)
        noised = FORMS[config.noise.form](plain, draws.noise[:, : w + steps].to(frames), draws.level.to(frames))
        noised = torch.where(draws.level.to(frames) > 0, self.model.unstandardise(noised), frames)
        longest = None if config.longest is None else config.longest * self.length
        inject = draws.inject[:, :steps].to(frames.device)
        places = draws.places
        if places is not None:
            places = places._replace(rows=places.rows.to(frames.device))
        rest = (longest, self.length, config.draws, generator, places)
        return Task(noised[:, :w], frames[:, :w], frames[:, w:], inject, *rest), noised

    def forward(
        self,
        frames: Tensor,
        draws: Draws,
        steps: int,
        generator: torch.Generator,
        objective: str | None = None,
        critic: Critic | None = None,
    ) -> Losses:
        """The losses of true frames [b w+K d] rolled out `steps` steps, by the configured objective unless another is named."""
        w, config = self.config.context, self.config
        task, noised = self.task(frames, draws, steps, generator)
        outcome = OBJECTIVES[objective or config.objective](self.model, task, critic)
        zero = outcome.loss.new_zeros(())
        teacher = self.teacher(noised, frames[:, : w + steps]) if config.teacher_weight > 0 else zero
        states = reached(outcome.rolled)
        state = zero
        if config.state_weight > 0:
            truth = task.truth.repeat_interleave(len(states) // len(task.truth), 0)
            state = (states - truth).square().sum(-1).mean() / self.length**2
        total = outcome.loss + config.teacher_weight * teacher + config.state_weight * state
        return Losses(total, outcome.loss, teacher, state, outcome.rolled.clipped.float().mean(), states)

    def teacher(self, noised: Tensor, clean: Tensor) -> Tensor:
        """NLL per dimension of the step from every noised frame z̃_t (t ≥ w) to the clean frame after it."""
        w = self.config.context
        laws = self.model.unroll_noised(noised[:, :-1], clean[:, :-1])[1].slice((slice(None), slice(w - 1, None)))
        return -laws.log_prob(clean[:, w:] - noised[:, w - 1 : -1]).mean() / self.model.dim
