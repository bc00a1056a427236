"""`rollout`: the only loop that feeds a model its own output."""

from __future__ import annotations

from typing import NamedTuple

import torch
from arlat_core.types import Corrector
from torch import Tensor

from arlat_dynamics.base import Dynamics


class Rollout(NamedTuple):
    """What happened at each of k steps.

    Attributes:
        state_in: State entering the step, [b k d]; the first is the last frame of the prefix.
        step: Displacement that the model took, [b k d], before any injection.
        log_prob: Log-density of the true displacement under the model's law at its own window, [b k], nats.
    """

    state_in: Tensor
    step: Tensor
    log_prob: Tensor


def injections(mode: str, steps: int) -> tuple[bool, ...]:
    """The mask of an injection mode (SPEC §12.5): A every step, B after steps 4, 8, 12, …, C after step 1, D and S never.

    >>> injections("C", 4)
    (True, False, False, False)
    """
    after = {
        "A": range(1, steps + 1),
        "B": range(4, steps + 1, 4),
        "C": range(1, 2),
        "D": range(0),
        "S": range(0),
    }
    if mode not in after:
        raise ValueError(f"There is no injection mode {mode!r}. Modes: {', '.join(after)}.")
    return tuple(step in after[mode] for step in range(1, steps + 1))


def rollout(
    model: Dynamics,
    prefix: Tensor,
    truth: Tensor,
    inject: tuple[bool, ...],
    sample: bool = False,
    generator: torch.Generator | None = None,
    correct: Corrector | None = None,
) -> Rollout:
    """Rolls `model` out for k steps after prefix [b w d], beside the true frames truth [b k d] that follow it.

    The state advances by the law's `point()`, or by a draw where `sample`; `correct` then moves it. Where `inject[s]`,
    the state after step s (0-based), which is the newest frame of the next window, is replaced by the truth; the older
    frames of the window stay as the model saw them. The true displacement of a step leads from true frame to true frame.

    Raises:
        ValueError: When shapes or the number of steps do not fit, or `sample` has no generator.
    """
    b, k = truth.shape[:2]
    if prefix.shape[0] != b or prefix.shape[1] < 1 or {prefix.shape[2], truth.shape[2]} != {model.dim}:
        raise ValueError(
            f"prefix {tuple(prefix.shape)} and truth {tuple(truth.shape)} must be [b w {model.dim}] and [b k {model.dim}]."
        )
    if len(inject) != k:
        raise ValueError(f"inject has {len(inject)} entries for {k} steps. Give one per step.")
    if sample and generator is None:
        raise ValueError("A sample rollout needs a generator.")
    true_step = torch.cat([truth[:, :1] - prefix[:, -1:], truth.diff(dim=1)], 1)
    state = model.unroll(prefix[:, :-1])[0] if prefix.shape[1] > 1 else model.initial(b)
    seen = list(prefix.unbind(1))
    entering, taken, log_prob = [], [], []
    x = seen.pop()
    for s in range(k):
        seen = [*seen, x][-model.context :]
        state, law = model.step(state, x)
        dx = law.sample(generator) if sample and generator is not None else law.point()
        entering.append(x)
        log_prob.append(law.log_prob(true_step[:, s]))
        after = x + dx
        if correct is not None:
            after = correct(after, torch.stack(seen, 1), generator)
            dx = after - x
        taken.append(dx)
        x = truth[:, s] if inject[s] else after
    return Rollout(torch.stack(entering, 1), torch.stack(taken, 1), torch.stack(log_prob, 1))
