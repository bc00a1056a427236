"""Models that read a sequence frame by frame or many at once: what the GRU and the transformer share."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from arlat_core.distributions import StepDistribution
from torch import Tensor

from arlat_dynamics.base import State
from arlat_dynamics.headed import HeadedModel


class Last(NamedTuple):
    """The frame [b d] before those that come next, and whether [b] there was one."""

    frame: Tensor
    known: Tensor


class StreamingModel(HeadedModel):
    """A model for which one frame and many are the same: `read` goes on from any state by any number of frames.

    Every frame enters with the step that led to it, since slow latents differ in their steps; the step to the first frame is
    0 (a still past). A sequence must have at least one frame.
    """

    @abstractmethod
    def read(self, state: State, x: Tensor) -> tuple[State, Tensor]:
        """Reads x [b t d]; the state after it and normalised features [b t features] after every frame."""

    def step(self, state: State, x: Tensor) -> tuple[State, StepDistribution]:
        """Reads one frame x [b d]."""
        state, features = self.read(state, x[:, None])
        return state, self.law(features[:, 0])

    def unroll(self, x: Tensor) -> tuple[State, StepDistribution]:
        """Reads x [b t d] from the initial state."""
        state, features = self.read(self.initial(len(x)), x)
        return state, self.law(features)

    def features(self, x: Tensor) -> Tensor:
        """Normalised features [b t features] after every frame of x [b t d]."""
        return self.read(self.initial(len(x)), x)[1]

    def nothing(self, *shape: int) -> Tensor:
        """Zeros where the model is, for a state before its first frame."""
        return torch.zeros(shape, device=self.center.device, dtype=self.center.dtype)

    def unseen(self, batch: int) -> Last:
        """What stands before the first frame of a sequence."""
        return Last(self.nothing(batch, self.dim), self.nothing(batch) > 0)

    def entering(self, last: Last, x: Tensor) -> tuple[Last, Tensor]:
        """Standardised frames and steps [b t 2d] of x [b t d], which follow `last`; and the newest of x."""
        before = torch.where(last.known[:, None], last.frame, x[:, 0])
        steps = (x - torch.cat([before[:, None], x[:, :-1]], 1)) / self.step_scale
        return Last(x[:, -1].contiguous(), torch.ones_like(last.known)), torch.cat([self.standardise(x), steps], -1)
