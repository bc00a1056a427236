"""A fitted model on disk: `model.safetensors`, and `model.json` written last, which says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from arlat_core import registry
from arlat_core.config import UserError
from arlat_core.files import atomic_write, sha256_file, write_json
from arlat_core.types import LatentSpec
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from arlat_dynamics.base import Dynamics

SCHEMA = "arlat-dynamics/1"
M = TypeVar("M", bound=Dynamics)


def exists(folder: Path) -> bool:
    """Whether `folder` holds a whole model."""
    return (folder / "model.json").is_file()


def save(model: Dynamics, folder: Path, spec: LatentSpec) -> None:
    """Writes `model`, made for latents of `spec`; a crash leaves the old model or none."""
    if model.dim != spec.dim:
        raise ValueError(f"The model is for {model.dim} dimensions and its latents have {spec.dim}.")
    (folder / "model.json").unlink(missing_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    atomic_write(folder / "model.safetensors", to_bytes(tensors))
    about = {
        "schema": SCHEMA,
        "plugin": model.plugin,
        "settings": model.settings().model_dump(mode="json"),
        "spec": spec.model_dump(mode="json"),
        "sha256": sha256_file(folder / "model.safetensors"),
    }
    write_json(folder / "model.json", about)


def load(folder: Path, spec: LatentSpec, kind: type[M] = Dynamics) -> M:  # type: ignore[assignment]
    """Reads the model of `folder` for latents of `spec`.

    Raises:
        UserError: When there is no whole model, it is broken, or it is no `kind`.
        ValueError: When it was made for other latents.
    """
    if not exists(folder):
        raise UserError(f"{folder} holds no finished model (no model.json). Train it, or give another folder.")
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if about.get("schema") != SCHEMA:
        raise UserError(f"{folder}/model.json has the schema {about.get('schema')!r}, not {SCHEMA!r}. Train it anew.")
    LatentSpec.model_validate(about["spec"]).require(spec, f"The model {folder}")
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != about["sha256"]:
        raise UserError(f"{weights} is missing or is not the file that was written. Delete {folder} and train it anew.")
    model = registry.load("dynamics", about["plugin"]).build(about["settings"])
    model.load_state_dict(load_file(weights))
    if not isinstance(model, kind):
        raise UserError(f"{folder} holds a {type(model).__name__}, where a {kind.__name__} is needed.")
    return model
