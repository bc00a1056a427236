"""Everything that training changes, on disk and back to the bit: safetensors, its hash beside it, the newest two kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arlat_core.files import atomic_write, sha256_file
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from arlat_vae.balancer import Norms
from arlat_vae.discriminator import Discriminator
from arlat_vae.model import VAE

KEPT = 2


@dataclass
class Trainee:
    """The models, their optimisers, and what else goes from step to step; `average` is the moving average of `model`."""

    model: VAE
    average: VAE
    optimiser: torch.optim.Optimizer
    judge: Discriminator | None = None
    judge_optimiser: torch.optim.Optimizer | None = None
    norms: Norms = field(default_factory=Norms)
    step: int = 0
    skipped: int = 0


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimiser's moments and step counts by name."""
    state = optimiser.state_dict()["state"]
    return {f"{prefix}.{row}.{key}": value for row, values in state.items() for key, value in values.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """The reverse of `optimiser_tensors`; parameter groups stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            row, key = name.removeprefix(f"{prefix}.").split(".")
            state.setdefault(int(row), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def models(trainee: Trainee) -> dict[str, torch.nn.Module]:
    """The modules by name."""
    judge = {"judge": trainee.judge} if trainee.judge else {}
    return {"model": trainee.model, "average": trainee.average, **judge}


def optimisers(trainee: Trainee) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by name."""
    judge = {"judge_optimiser": trainee.judge_optimiser} if trainee.judge_optimiser else {}
    return {"optimiser": trainee.optimiser, **judge}


def save(trainee: Trainee, folder: Path) -> None:
    """Writes `step-NNNNNNNN.safetensors`, then its hash, and removes all but the newest two."""
    tensors: dict[str, Tensor] = {}
    for name, module in models(trainee).items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in optimisers(trainee).items():
        tensors |= optimiser_tensors(optimiser, name)
    rest = {
        "step": trainee.step,
        "skipped": trainee.skipped,
        "norms": {"total": dict(trainee.norms.total), "weight": dict(trainee.norms.weight)},
    }
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    path = folder / f"step-{trainee.step:08d}.safetensors"
    atomic_write(path, to_bytes(whole, {"rest": json.dumps(rest)}))
    atomic_write(path.with_suffix(".sha256"), sha256_file(path))
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.with_suffix(".sha256").unlink(missing_ok=True)
        old.unlink()


def newest(folder: Path) -> Path | None:
    """The newest snapshot whose bytes are those that were written."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        digest = path.with_suffix(".sha256")
        if digest.is_file() and digest.read_text() == sha256_file(path):
            return path
    return None


def load(trainee: Trainee, path: Path) -> None:
    """Makes `trainee` what it was when `path` was written."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rest: dict[str, Any] = json.loads(file.metadata()["rest"])
    for name, module in models(trainee).items():
        prefix = f"{name}."
        module.load_state_dict(
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        )
    for name, optimiser in optimisers(trainee).items():
        load_optimiser(optimiser, tensors, name)
    trainee.step, trainee.skipped, trainee.norms = rest["step"], rest["skipped"], Norms(**rest["norms"])
