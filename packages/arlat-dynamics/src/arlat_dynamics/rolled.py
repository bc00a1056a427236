"""What happened in a rollout, whichever way it was computed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
