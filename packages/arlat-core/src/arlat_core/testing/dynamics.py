"""The contract of a dynamics model: `check_dynamics(model)` is all the test that a new one needs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from arlat_core.distributions import StepDistribution


class Steps(Protocol):
    """What is checked: a dynamics model as arlat-dynamics defines it."""

    dim: int
    context: int

    def initial(self, batch: int) -> Any:
        """State before the first frame."""

    def step(self, state: Any, x: Tensor) -> tuple[Any, StepDistribution]:
        """One frame."""

    def unroll(self, x: Tensor) -> tuple[Any, StepDistribution]:
        """All frames."""


def check_dynamics(model: Steps, frames: int = 13, scale: float = 1.0, tolerance: float = 1e-4) -> None:
    """Raises AssertionError, with values, when a dynamics model breaks its contract.

    unroll = steps, also going on from unroll's state; the past never sees the future; batch items are independent;
    nothing older than `context` frames matters (of a model without such a bound, whose `context` is longer than `frames`,
    there is nothing to check); calls repeat and leave states as they were.
    """
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(3, frames, model.dim, generator=generator)
    dx = scale * torch.randn(3, frames, model.dim, generator=generator)
    with torch.no_grad():
        last, laws = model.unroll(x)
        assert laws.batch_shape == (3, frames), f"unroll of [3 {frames} d] gave laws {tuple(laws.batch_shape)}"
        whole = laws.log_prob(dx)
        assert torch.isfinite(whole).all(), "log_prob is not finite"
        _check_steps(model, x, dx, whole, last, tolerance)
        other = x.clone()
        other[:, frames // 2 :] += 10 * scale
        _close(
            model.unroll(other)[1].log_prob(dx)[:, : frames // 2],
            whole[:, : frames // 2],
            tolerance,
            "the future changes the past",
        )
        _close(model.unroll(x[1:2])[1].log_prob(dx[1:2]), whole[1:2], tolerance, "an item alone against its batch")
        recent = model.unroll(torch.cat([x[:, :1] + scale, x[:, 1:]], 1))[1].log_prob(dx)
        _close(
            recent[:, model.context :],
            whole[:, model.context :],
            tolerance,
            f"frames older than {model.context} matter",
        )


def _check_steps(model: Steps, x: Tensor, dx: Tensor, whole: Tensor, last: Any, tolerance: float) -> None:
    """`step` in a loop gives what `unroll` gave, and both go on alike."""
    state = model.initial(len(x))
    first = state
    for t in range(x.shape[1]):
        state, law = model.step(state, x[:, t])
        assert law.batch_shape == (len(x),), f"step gave laws {tuple(law.batch_shape)}, not ({len(x)},)"
        _close(law.log_prob(dx[:, t]), whole[:, t], tolerance, f"step {t} against unroll")
    _close(
        model.step(state, x[:, 0])[1].log_prob(dx[:, 0]),
        model.step(last, x[:, 0])[1].log_prob(dx[:, 0]),
        tolerance,
        "going on from unroll's state against going on from steps",
    )
    again = model.step(first, x[:, 0])[1].log_prob(dx[:, 0])
    _close(again, whole[:, 0], tolerance, "the initial state was changed in place")


def _close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Compares with a tolerance relative to the largest magnitude, at least 1."""
    if expected.numel() == 0:
        return
    error = float((got - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error <= tolerance, f"{what}: relative difference {error:.2e}, allowed {tolerance:.0e}"
