"""What every dynamics model is: a law of the next step, given the frames so far."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from arlat_core.config import Config
from arlat_core.distributions import StepDistribution
from torch import Tensor, nn

State = Any  # a value: tensors in (named) tuples, never changed in place
UNBOUNDED = sys.maxsize  # `context` of a model that depends on every frame so far


class Rows(Protocol):
    """A batch of windows: what `arlat_data.windows.Batch` holds and models need."""

    @property
    def context(self) -> Tensor:
        """Frames [n w d], oldest first."""

    @property
    def target(self) -> Tensor:
        """Displacement Δ [n d]."""


class WindowSource(Protocol):
    """A set of windows that gathers rows on demand: what `arlat_data.windows.Windows` is."""

    @property
    def speaker(self) -> Tensor:
        """Speaker of each window, [N] int64."""

    @property
    def utterance(self) -> Tensor:
        """Utterance of each window, [N] int64."""

    def __len__(self) -> int: ...

    def gather(self, rows: Tensor) -> Rows:
        """The windows at `rows` [n] int64."""


def spread_out(rows: Tensor, at_most: int = 40_000) -> Tensor:
    """At most `at_most` of rows [n], evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), at_most), dtype=torch.float64).long()]


def row_blocks(rows: Tensor, size: int) -> list[Tensor]:
    """Cuts rows [n] into pieces of at most `size`."""
    return [rows[at : at + size] for at in range(0, len(rows), size)]


class Dynamics(nn.Module, ABC):
    """p(Δ_{t+1} | z_1 … z_t), with its state as a value.

    `context` is the number of newest frames that the law may depend on, or UNBOUNDED, which is longer than any sequence;
    a sequence, and so the prefix of a rollout, may always be shorter. `dim` is D, `plugin` the name of the module
    (under an `arlat.dynamics` entry point) whose `build(settings)` makes the model anew from `settings()`.
    """

    plugin: ClassVar[str]
    context: int
    dim: int

    @abstractmethod
    def initial(self, batch: int) -> State:
        """The state of `batch` sequences before their first frame."""

    @abstractmethod
    def step(self, state: State, x: Tensor) -> tuple[State, StepDistribution]:
        """Takes the next frame x [b d]; returns the new state and the law [b] of the displacement after x."""

    @abstractmethod
    def unroll(self, x: Tensor) -> tuple[State, StepDistribution]:
        """`step` over x [b t d] from the initial state: the last state and the laws [b t] after every frame."""

    def start_noised(self, noised: Tensor, clean: Tensor) -> tuple[State, Tensor]:
        """Where a rollout starts in training with noise: the state before the newest frame, and that frame [b d].

        `noised` [b w d] is what the model sees, `clean` the same frames without noise, for models that see both.
        """
        before = self.unroll(noised[:, :-1])[0] if noised.shape[1] > 1 else self.initial(len(noised))
        return before, noised[:, -1]

    @abstractmethod
    def settings(self) -> Config:
        """All that `build` needs to make a model with the same parameters' shapes."""

    def saturated_fraction(self, x: Tensor) -> float:
        """Part of the bounded parameters near the end of their range, in the laws after the last frame of x [n t d]."""
        return 0.0


class Stage(NamedTuple):
    """Parameters that are trained together, with their parts of the steps and of the learning rate of a fit."""

    parameters: list[nn.Parameter]
    steps: float = 1.0
    rate: float = 1.0


class Window(NamedTuple):
    """State of a model that sees a window: its newest frames [b w d], and whether there were any."""

    frames: Tensor
    empty: bool


class WindowModel(Dynamics):
    """A model that sees the newest `context` frames and nothing else.

    Frames before the start of a sequence are taken to be equal to its first frame (a still past).
    """

    @abstractmethod
    def distribution(self, context: Tensor) -> StepDistribution:
        """Laws [...] of the displacement after context [... w d], oldest frame first."""

    def stages(self) -> list[Stage]:
        """What is trained together, stage after stage; one stage of everything where a model says nothing else."""
        return [Stage(list(self.parameters()))]

    def initial(self, batch: int) -> Window:
        """An empty window."""
        like = next(iter(self.buffers()))
        return Window(torch.zeros(batch, self.context, self.dim, device=like.device, dtype=like.dtype), True)

    def step(self, state: Window, x: Tensor) -> tuple[Window, StepDistribution]:
        """Pushes x [b d] into the window."""
        if state.empty:
            frames = x[:, None].expand(-1, self.context, -1)
        else:
            frames = torch.cat([state.frames[:, 1:], x[:, None]], 1)
        return Window(frames, False), self.distribution(frames)

    def windows_of(self, x: Tensor) -> Tensor:
        """The window [b t w d] after every frame of x [b t d]."""
        padded = torch.cat([x[:, :1].expand(-1, self.context - 1, -1), x], 1)
        return padded.unfold(1, self.context, 1).movedim(-1, -2)

    def unroll(self, x: Tensor) -> tuple[Window, StepDistribution]:
        """All windows of x [b t d] at once."""
        frames = self.windows_of(x)
        return Window(frames[:, -1], False), self.distribution(frames)
