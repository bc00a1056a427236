"""Losses as CUDA graphs: what is captured is the loss itself, once for each number of steps, and asks nothing of the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arlat_dynamics.captured import CapturedLoss, Core
from arlat_dynamics.headed import HeadConfig, HeadedModel
from arlat_dynamics.models import gru, mlp, transformer
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_loss import RolloutLoss, draw_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DIM = 6
CONFIG = RolloutTrainConfig.model_validate(
    {"context": 3, "steps": 4, "batch": 5, "state_weight": 0.1, "noise": {"level": 0.2}, "true_frames": (0.3, 0.3)}
)
HOST = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero", "equal", "unique")
MODELS: dict[str, Any] = {
    "mlp": lambda: mlp.build({"dim": DIM, "context": 3, "hidden": 8}),
    "mlp gaussian": lambda: mlp.build({"dim": DIM, "context": 3, "head": HeadConfig(name="gaussian")}),
    "mlp mixture": lambda: mlp.build({"dim": DIM, "context": 3, "head": HeadConfig(name="gaussian_mixture")}),
    "gru": lambda: gru.build({"dim": DIM, "width": 8, "depth": 1}),
    "transformer": lambda: transformer.build({"dim": DIM, "width": 8, "depth": 1, "heads": 2, "window": 4}),
}


class Recorder(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def made(name: str) -> tuple[HeadedModel, Tensor]:
    torch.manual_seed(0)
    return MODELS[name](), torch.randn(5, 7, DIM)


def gradients(model: HeadedModel, total: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(model.parameters())))


@pytest.mark.usefixtures("dynamo_alone")
@pytest.mark.parametrize("name", MODELS)
def test_nothing_that_is_captured_asks_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arlat_kernels.vmf.check", lambda kappa, dim: None)  # entries are looked at on a CPU alone
    model, frames = made(name)
    loss = RolloutLoss(model, CONFIG, float(model.head.scale))
    inject = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    with Recorder() as seen:
        gradients(model, Core(loss)(frames, frames, inject)[0])
    assert not seen.names & set(HOST)
    with Recorder() as seen:  # the recorder sees what it must not find
        float(frames.sum())
        torch.tensor([1.0])
    assert {"_local_scalar_dense", "lift_fresh"} <= seen.names


@pytest.mark.usefixtures("dynamo_alone")
def test_each_number_of_steps_is_captured_once_and_gives_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    captures: list[tuple[int, Any]] = []

    def capture(module: Core, samples: tuple[Tensor, ...], allow_unused_input: bool, pool: object) -> Core:
        captures.append((samples[2].shape[1], pool))
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    model, frames = made("mlp gaussian")
    loss = RolloutLoss(model, CONFIG, float(model.head.scale))
    captured = CapturedLoss(loss)
    for update, steps in enumerate((1, 2, 2, 4, 1)):
        draws = draw_step(CONFIG, DIM, 0.3, torch.Generator().manual_seed(update))
        got, expected = (each(frames, draws, steps, torch.Generator()) for each in (captured, loss))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)
        for one, other in zip(gradients(model, got.total), gradients(model, expected.total), strict=True):
            torch.testing.assert_close(one, other)
    assert captures == [(1, "pool"), (2, "pool"), (4, "pool")]
