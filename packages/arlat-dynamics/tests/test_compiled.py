"""Compiled steps are the loop's steps, and every weight's gradient is one product."""

from __future__ import annotations

import shutil
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from arlat_dynamics import compiled
from arlat_dynamics.headed import HeadConfig, HeadedModel
from arlat_dynamics.models import gru, mlp, transformer
from arlat_dynamics.rollout import injections, rollout
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DIM, WINDOW, STEPS, ROWS = 6, 3, 4, 5
MODELS: dict[str, Any] = {
    "mlp": lambda: mlp.build({"dim": DIM, "context": WINDOW, "hidden": 8, "depth": 2}),
    "mlp gaussian": lambda: mlp.build(
        {"dim": DIM, "context": WINDOW, "hidden": 8, "depth": 1, "head": HeadConfig(name="gaussian")}
    ),
    "mlp mixture": lambda: mlp.build({"dim": DIM, "context": WINDOW, "head": HeadConfig(name="gaussian_mixture")}),
    "mlp flow": lambda: mlp.build({"dim": DIM, "context": WINDOW, "hidden": 8, "head": HeadConfig(name="flow")}),
    "gru": lambda: gru.build({"dim": DIM, "width": 8, "depth": 2}),
    "transformer": lambda: transformer.build({"dim": DIM, "width": 8, "depth": 1, "heads": 2, "window": 4}),
}


pytestmark = pytest.mark.usefixtures("dynamo_alone")


def made(name: str) -> tuple[HeadedModel, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model, torch.randn(ROWS, WINDOW + STEPS, DIM)


def judged(model: HeadedModel, frames: Tensor, route: Any) -> list[Tensor]:
    """The fields of a rollout of shortened steps that is brought back to the truth once, and gradients in parameters and frames."""
    frames = frames.clone().requires_grad_()
    prefix, truth = frames[:, :WINDOW], frames[:, WINDOW:]
    rolled = rollout(model, prefix, truth, injections("C", STEPS), route=route, longest=0.5)
    loss = rolled.log_prob.sum() + rolled.step.square().sum()
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [*rolled, *torch.autograd.grad(loss, [frames, *leaves], allow_unused=False)]


@pytest.mark.parametrize("name", MODELS)
def test_values_and_all_gradients_are_the_loops(name: str) -> None:
    model, frames = made(name)
    for got, expected in zip(judged(model, frames, "compiled"), judged(model, frames, "eager"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH: inductor has no compiler")
def test_inductor_makes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    model, frames = made("mlp gaussian")
    for got, expected in zip(judged(model, frames, "compiled"), judged(model, frames, "eager"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_products_are_as_good_as_the_loops() -> None:
    model, frames = made("mlp gaussian")
    truth = judged(model, frames, "eager")
    with torch.autocast("cpu", torch.bfloat16):
        loop, got = (judged(model, frames, route) for route in ("eager", "compiled"))
    for one, other, true in zip(got, loop, truth, strict=True):
        assert one.dtype == true.dtype
        size = true.float().norm()
        assert (one.float() - true.float()).norm() <= 2 * (other.float() - true.float()).norm() + 1e-2 * size


class Products(TorchDispatchMode):
    """How many matrix products of each pair of shapes run."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[torch.Size, torch.Size]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.shapes[args[-2].shape, args[-1].shape] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp", "gru", "transformer"])
def test_each_weights_gradient_is_one_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def uncompiled(longest: float | None, scored: bool) -> compiled.Program:
        return compiled.replaced(partial(compiled.stepped, longest, scored), compiled.Linears())

    monkeypatch.setattr(compiled, "stepping", uncompiled)
    model, frames = made(name)
    with Products() as seen:
        judged(model, frames, "compiled")
    rows = ROWS * STEPS
    together = sum(count for (_, second), count in seen.shapes.items() if second[0] == rows)
    assert together == CALLS[name]
    with Products() as seen:
        judged(model, frames, "eager")
    assert not any(second[0] == rows for _, second in seen.shapes)


CALLS = {"mlp": 1 + 2 * 2 + 1, "gru": 1 + 2 * 2 + 1, "transformer": 1 + 4 + 1}  # of `linear` in a step


def test_only_mean_rollouts_are_compiled() -> None:
    model, frames = made("mlp")
    with pytest.raises(ValueError, match="mean steps without a corrector"):
        rollout(
            model,
            frames[:, :3],
            frames[:, 3:],
            (False,) * 4,
            sample=True,
            generator=torch.Generator(),
            route="compiled",
        )
