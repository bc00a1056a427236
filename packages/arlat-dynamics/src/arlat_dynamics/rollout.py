"""`rollout`: the only loop that feeds a model its own output."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple, cast

import torch
from arlat_core.distributions import StepDistribution
from arlat_core.types import Corrector
from arlat_kernels.op import VARIABLE
from torch import Tensor

from arlat_dynamics.base import Dynamics, State
from arlat_dynamics.compiled import CompiledStep
from arlat_dynamics.fused import obstacle, one_rollout, operands_here, sample_obstacle, seen, twin
from arlat_dynamics.models.mlp import ResidualMLP
from arlat_dynamics.rolled import Rollout, Step, one_step, point

__all__ = ["Places", "Rollout", "Route", "draw", "injections", "rollout"]
Route = Literal["auto", "fused", "eager", "compiled"]
LOG = logging.getLogger(__name__)


class Places(NamedTuple):
    """Where the sequences of a rollout stand in a larger batch whose draws they take: rows [b] of `total`.

    A sequence then draws the same whether it is rolled out with the whole batch or in one of several parts.
    """

    rows: Tensor
    total: int

    def repeat(self, count: int) -> Places:
        """The places where every sequence stands `count` times, neighbours being copies."""
        rows = self.rows[:, None] * count + torch.arange(count, device=self.rows.device)
        return Places(rows.flatten(), self.total * count)


def draw(law: StepDistribution, generator: torch.Generator, places: Places | None) -> Tensor:
    """One draw [b d] of each law [b], as the rows at `places` get it in a batch of `places.total`.

    This holds for every sampler whose use of the generator does not depend on the laws: all but the power-spherical one's.
    """
    if places is None:
        return law.sample(generator)
    source = torch.zeros(places.total, dtype=torch.int64, device=places.rows.device)
    source[places.rows] = torch.arange(len(places.rows), device=places.rows.device)
    return law.slice(source).sample(generator)[places.rows]


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
    inject: tuple[bool, ...] | Tensor,
    sample: bool = False,
    generator: torch.Generator | None = None,
    correct: Corrector | None = None,
    longest: float | None = None,
    scored: bool = True,
    state: State | None = None,
    places: Places | None = None,
    route: Route = "auto",
) -> Rollout:
    """Rolls `model` out for k steps after prefix [b w d], beside the true frames truth [b k d] that follow it.

    The state advances by the law's `point()`, or by a draw where `sample`, shortened to the length `longest` where it is
    longer; `correct` then moves it. Where `inject[s]` (or `inject[i, s]` of a tensor [b k], for sequence i alone),
    the state after step s (0-based), which is the newest frame of the next window, is replaced by the truth; the older
    frames of the window stay as the model saw them. The true displacement of a step leads from true frame to true frame.
    Gradients flow through all steps; under `torch.no_grad()` nothing is kept. Without `scored` every `log_prob` is NaN:
    densities are not asked for where only the states, or their derivatives, matter. `state` is the model's before the newest
    frame of the prefix, where it is not what `unroll` makes of the frames before; `places` says whose draws are taken.

    `route` = "auto" takes the fused op (`arlat_dynamics.fused`) where `obstacle` has nothing against it, and else the loop below;
    "fused" and "eager" force one, and "compiled" is the loop with a step by torch.compile and one product for each weight's
    gradient (`arlat_dynamics.compiled`), worth its compilation in training alone. All give the same mean rollout up to rounding; in
    the fused one a sequence ends (NaN) with the step whose true frame is injected and not finite. Where Triton does not run what
    the op could, the log says so, once.

    The fused op draws a sampled rollout by the same law, but other draws than the loop's: by itself where no gradient is needed,
    `places` is None and Triton's kernel runs. Without `longest` its steps are at most `fused.LONGEST` typical ones long.

    Raises:
        ValueError: When shapes or the number of steps do not fit, `sample` has no generator, or the forced route cannot be taken.
    """
    b, k = truth.shape[:2]
    if prefix.shape[0] != b or prefix.shape[1] < 1 or {prefix.shape[2], truth.shape[2]} != {model.dim}:
        raise ValueError(
            f"prefix {tuple(prefix.shape)} and truth {tuple(truth.shape)} must be [b w {model.dim}] and [b k {model.dim}]."
        )
    mask = torch.as_tensor(inject, dtype=torch.bool, device=truth.device)
    if mask.shape not in {(k,), (b, k)}:
        raise ValueError(
            f"inject has the shape {tuple(mask.shape)} for {k} steps. Give ({k},), or ({b}, {k}) for each sequence."
        )
    mask = mask.expand(b, k)
    if sample and generator is None:
        raise ValueError("A sample rollout needs a generator.")
    why = obstacle(model, correct)
    if why is None and sample:
        followed = torch.is_grad_enabled() and any(
            part.requires_grad for part in (seen(prefix, state), truth, *model.parameters())
        )
        why = sample_obstacle(followed, places is not None)
    if route == "fused" and why is not None:
        raise ValueError(f'{why} Use route="auto" or "eager".')
    if why is None and takes_op(cast(ResidualMLP, model), route, sample, truth.device):
        drawn_by = generator if sample else None
        say_what_runs(cast(ResidualMLP, model), truth.device)
        return one_rollout(cast(ResidualMLP, model), seen(prefix, state), truth, mask, longest, scored, drawn_by)
    if route == "compiled" and (sample or correct is not None):
        raise ValueError('Compiled steps are mean steps without a corrector. Use route="auto" or "eager".')
    step: Callable[..., Step]
    if route == "compiled":
        step = CompiledStep(model, longest, scored)
    else:
        chosen = point if generator is None or not sample else partial(draw, generator=generator, places=places)
        step = partial(one_step, model, chosen, longest, scored)
    return by_steps(model, step, prefix, truth, mask, correct, generator, state)


def takes_op(model: ResidualMLP, route: Route, sample: bool, device: torch.device) -> bool:
    """Whether `route` means the fused op where nothing is against it: "auto" draws samples by Triton's kernel alone.

    Elsewhere a generator gives the loop's samples, whatever the model is.
    """
    if route == "auto" and sample:
        runs_by, why = twin(model, operands_here(device))
        if runs_by != "triton":
            say(device.type, f"sampled by the loop: {why}")
        return runs_by == "triton"
    return route in ("auto", "fused")


def say_what_runs(model: ResidualMLP, device: torch.device) -> None:
    """Says where the op is not Triton's, and why."""
    if device.type == "cpu" and not os.environ.get(VARIABLE):
        say("cpu", "by plain PyTorch: the model is on a CPU.")  # without a look at the weights
    elif (found := twin(model, operands_here(device)))[0] != "triton":
        say(device.type, f"by plain PyTorch: {found[1]}")


@cache
def say(device: str, how: str) -> None:
    """Logs once how rollouts go that Triton does not run: a warning, but on a CPU, where nothing else could, information."""
    LOG.log(logging.INFO if device == "cpu" else logging.WARNING, "rollout on %s %s", device, how)


def by_steps(
    model: Dynamics,
    step: Callable[[State, Tensor, Tensor], Step],
    prefix: Tensor,
    truth: Tensor,
    mask: Tensor,
    correct: Corrector | None,
    generator: torch.Generator | None,
    state: State | None,
) -> Rollout:
    """`rollout` with the mask [b k], as a loop over `step` of the model's state, x [b d] and the true displacement [b d]."""
    b, k = truth.shape[:2]
    true_step = torch.cat([truth[:, :1] - prefix[:, -1:], truth.diff(dim=1)], 1)
    if state is None:
        state = model.unroll(prefix[:, :-1])[0] if prefix.shape[1] > 1 else model.initial(b)
    seen = list(prefix.unbind(1))
    entering, taken, log_prob, clipped = [], [], [], []
    x = seen.pop()
    for s in range(k):
        seen = [*seen, x][-model.context :]
        state, dx, shortened, score = step(state, x, true_step[:, s])
        entering.append(x)
        log_prob.append(score)
        clipped.append(shortened)
        after = x + dx
        if correct is not None:
            after = correct(after, torch.stack(seen, 1), generator)
            dx = after - x
        taken.append(dx)
        x = torch.where(mask[:, s, None], truth[:, s], after)
    return Rollout(*(torch.stack(parts, 1) for parts in (entering, taken, log_prob, clipped)))
