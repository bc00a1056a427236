"""Which way the rollouts of a training are computed, and why: a rule, in words."""

from __future__ import annotations

from typing import Literal, NamedTuple

from arlat_core.config import UserError

from arlat_dynamics.base import Dynamics
from arlat_dynamics.fused import obstacle, sample_obstacle, twin
from arlat_dynamics.models.mlp import ResidualMLP

Way = Literal["fused", "graph", "eager"]
Asked = Literal["auto", "fused", "graph", "eager"]
TWINS = {"triton": "Triton", "reference": "plain PyTorch"}


class Route(NamedTuple):
    """One of three ways, and why it is not another one ("" where there is nothing to say).

    fused: `arlat_kernels.residual_rollout`. graph: the losses of an update as one CUDA graph. eager: step by step.
    """

    way: Way
    why: str

    def __str__(self) -> str:
        return f"rollout: {self.way}" + (f" ({self.why})" if self.why else "")


def choose(asked: Asked, unfused: str | None, runs_by: str, off_chip: str, uncaptured: str | None) -> Route:
    """The way that `asked` means, where obstacles to the op (`unfused`) and to a graph (`uncaptured`) are given in words.

    `runs_by` is what would run the op, and `off_chip` why that is not Triton. By itself the op is taken where Triton runs it, or
    where nothing can be captured: its plain PyTorch has fewer calls than the loop over the model's laws.

    Raises:
        UserError: When the way that is asked for cannot be taken. A CPU alone is no reason: there a graph is the eager loop.
    """
    if asked == "fused" and unfused is not None:
        raise UserError(f'route = "fused" cannot be taken: {unfused} Use route = "auto".')
    if asked == "fused" or (asked == "auto" and unfused is None and (runs_by == "triton" or uncaptured is not None)):
        return Route("fused", TWINS[runs_by] + (f": {off_chip}" if off_chip else ""))
    if asked == "eager":
        return Route("eager", "as asked for")
    if uncaptured is None:
        return Route("graph", (unfused or off_chip) if asked == "auto" else "as asked for")
    return Route("eager", uncaptured if asked == "graph" or unfused is None else unfused)


def capture_obstacle(device: str, sample: bool, world: int) -> str | None:
    """Why the losses of an update cannot be one CUDA graph, in words, or None."""
    if not device.startswith("cuda"):
        return f"There is no CUDA graph on {device}."
    if sample:
        return "A graph would replay the draws of its first update; this objective draws anew in each."
    if world > 1:
        return f"A graph holds one process's work; here are {world}."
    return None


def training_route(asked: Asked, model: Dynamics, sample: bool, operands: str, device: str, world: int = 1) -> Route:
    """The way for a `model` on `device` whose objective asks for mean rollouts, or for sampled ones."""
    unfused = obstacle(model) or (sample_obstacle(gradients=True, placed=False) if sample else None)
    runs_by, off_chip = twin(model, operands) if unfused is None and isinstance(model, ResidualMLP) else ("", "")
    return choose(asked, unfused, runs_by, off_chip, capture_obstacle(device, sample, world))
