"""The losses of updates as CUDA graphs: what the fused op does not run is at least not launched call by call.

What is captured takes the compiled steps of `arlat_dynamics.compiled`: operations between matrix products are fused, and each weight's
gradient is one product over all steps and rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from arlat_dynamics.rollout_loss import Draws, Losses, RolloutLoss


class Core(nn.Module):
    """The losses as a function of tensors alone: noised and clean frames [b w+k d], and injections [b k]."""

    def __init__(self, loss: RolloutLoss) -> None:
        super().__init__()
        self.loss = RolloutLoss(loss.model, loss.config, loss.length, "compiled")

    def forward(self, noised: Tensor, clean: Tensor, inject: Tensor) -> tuple[Tensor, ...]:
        """The fields of `Losses`."""
        task = self.loss.task(noised, clean, inject, torch.Generator(), None)  # no draws are made here
        return tuple(self.loss.judged(task, noised, clean))


class CapturedLoss:
    """A `RolloutLoss` without draws or critic, forward and backward as CUDA graphs, one for each number of steps.

    A graph is captured when its number of steps is first asked for, with the frames of that call. All share one pool of memory:
    the losses of a call hold until the next one.
    """

    def __init__(self, loss: RolloutLoss) -> None:
        self.loss = loss
        self.graphs: dict[int, Any] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, frames: Tensor, draws: Draws, steps: int, generator: torch.Generator) -> Losses:
        """As the loss itself; autocast must not cache casts here."""
        task, noised, clean = self.loss.begin(frames, draws, steps, generator)
        inputs = (noised, clean, task.inject)
        if steps not in self.graphs:
            samples = tuple(part.detach().clone() for part in inputs)
            self.graphs[steps] = torch.cuda.make_graphed_callables(
                Core(self.loss), samples, allow_unused_input=True, pool=self.pool
            )
        return Losses(*self.graphs[steps](*inputs))
