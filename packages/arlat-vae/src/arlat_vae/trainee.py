"""Everything that training changes, and its way to disk and back to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from arlat_core.distributed import Ranks
from arlat_core.training_state import load_state, pack, save_state, taken, unpack
from torch import Tensor

from arlat_vae.ar_losses import ARState
from arlat_vae.balancer import Norms
from arlat_vae.discriminator import Discriminator
from arlat_vae.inner import InnerVAE
from arlat_vae.model import VAE
from arlat_vae.steering import Multipliers
from arlat_vae.teacher import Teacher

Model = TypeVar("Model", VAE, InnerVAE)


@dataclass
class Trainee(Generic[Model]):
    """The models, their optimisers, and what else goes from step to step; `average` is the moving average of `model`.

    `reconstruct` is what `optimiser` trains: the model, and where it is of speech what wraps it for one step. Counted are steps that were `skipped` for want of a finite gradient, those of them `in_a_row` now, the `returns` to an
    earlier state that many in a row led to, and the returns that are `stuck` at the newest state.
    """

    model: Model
    average: Model
    optimiser: torch.optim.Optimizer
    here: Ranks
    reconstruct: torch.nn.Module
    judge: Discriminator | None = None
    judge_optimiser: torch.optim.Optimizer | None = None
    judging: torch.nn.Module | None = None
    projection: torch.nn.Linear | None = None
    teacher: Teacher | None = None
    ar: ARState = field(default_factory=ARState)
    norms: Norms = field(default_factory=Norms)
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    returns: int = 0
    stuck: int = 0

    def models(self) -> dict[str, torch.nn.Module]:
        """The modules by name."""
        judge = {"judge": self.judge} if self.judge else {}
        projection = {"projection": self.projection} if self.projection else {}
        return {"model": self.model, "average": self.average, **judge, **projection, **self.ar.models()}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name."""
        judge = {"judge_optimiser": self.judge_optimiser} if self.judge_optimiser else {}
        return {"optimiser": self.optimiser, **judge, **self.ar.optimisers()}


def save(trainee: Trainee[Model], folder: Path) -> None:
    """Writes the state after `trainee.step` steps, by the first process; the newest two are kept."""
    if not trainee.here.first:
        return
    tensors: dict[str, Tensor] = {}
    for name, module in trainee.models().items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in trainee.optimisers().items():
        tensors |= pack(name, optimiser)
    about = {
        "skipped": trainee.skipped,
        "in_a_row": trainee.in_a_row,
        "returns": trainee.returns,
        "stuck": trainee.stuck,
        "norms": {"total": dict(trainee.norms.total), "weight": dict(trainee.norms.weight)},
        **trainee.ar.about(),
    }
    save_state(folder, trainee.step, tensors, about)


def load(trainee: Trainee[Model], folder: Path) -> tuple[bool, list[str]]:
    """Makes `trainee` what it was at the newest whole state of `folder`; returns whether there is one, and notes on broken ones."""
    state = load_state(folder)
    if state is None or not state.tensors:
        return False, [] if state is None else state.notes
    for name, module in trainee.models().items():
        module.load_state_dict(taken(name, state.tensors))
    for name, optimiser in trainee.optimisers().items():
        unpack(name, state.tensors, optimiser)
    trainee.step, trainee.skipped, trainee.in_a_row = state.step, state.about["skipped"], state.about["in_a_row"]
    trainee.returns, trainee.stuck = state.about["returns"], state.about["stuck"]
    trainee.norms = Norms(**state.about["norms"])
    trainee.ar.multipliers = Multipliers(**state.about.get("multipliers", {}))
    return True, state.notes
