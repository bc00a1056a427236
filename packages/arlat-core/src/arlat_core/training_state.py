"""What a killed training goes on from: the newest two states on disk, each whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from arlat_core.files import atomic_write, sha256_file, write_json

KEPT = 2


class State(NamedTuple):
    """A training after `step` updates: its tensors by name, what else there is to say, and notes on states that were broken."""

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    notes: list[str]


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes the state after `step` updates, its description last, and drops all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{step:09d}.safetensors"
    atomic_write(weights, to_bytes({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))
    write_json(weights.with_suffix(".json"), {"step": step, "sha256": sha256_file(weights)} | about)
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        old.unlink()
    kept = {path.stem for path in folder.glob("*.json")}
    for orphan in folder.glob("*.safetensors"):
        if orphan.stem not in kept:
            orphan.unlink()


def load_state(folder: Path) -> State | None:
    """The newest whole state of `folder`; a broken one is passed over with a note."""
    notes = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        weights = path.with_suffix(".safetensors")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            whole = weights.is_file() and sha256_file(weights) == about["sha256"]
        except (ValueError, KeyError, OSError) as error:
            notes.append(f"{path} cannot be read ({error}); the state before it is taken.")
            continue
        if whole:
            return State(about["step"], load_file(weights), about, notes)
        notes.append(f"{weights} is missing or is not what was written; the state before it is taken.")
    return None if not notes else State(0, {}, {}, notes)


def pack(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's tensors, by `prefix`.parameter.name."""
    state = optimiser.state_dict()["state"]
    return {f"{prefix}.{index}.{key}": value for index, kept in state.items() for key, value in kept.items()}


def unpack(prefix: str, tensors: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Gives an optimiser back what `pack` took from it."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            _, index, key = name.rsplit(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def taken(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix`., without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def truncate_log(path: Path, step: int) -> None:
    """Drops the lines of a JSON-lines log that lie after `step`, and a line that a kill cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["step"] <= step:
            kept.append(line)
    atomic_write(path, "".join(f"{line}\n" for line in kept))
