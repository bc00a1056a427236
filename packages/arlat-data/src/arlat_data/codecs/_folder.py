"""Folders that hold a codec's weights: what is missing or broken becomes one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arlat_core.config import UserError
from arlat_core.files import atomic_write, write_json
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor


def require_files(folder: Path, names: list[str], codec: str) -> Path:
    """Returns `folder` (with ~ expanded) when it holds every file of `names`; raises UserError that lists what is missing."""
    folder = folder.expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"The folder {folder} of the codec {codec} {what}. It should hold {', '.join(names)}.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(item.name for item in folder.iterdir())[:10]) or "nothing"
        raise UserError(f"The folder {folder} of the codec {codec} lacks {', '.join(missing)}; it holds {there}.")
    return folder


def read_json(path: Path, codec: str) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} of the codec {codec} is no JSON: {error}. Make or fetch it anew.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} of the codec {codec} should hold a JSON object, but holds a {type(value).__name__}.")
    return value


def read_tensors(path: Path, shapes: dict[str, tuple[int, ...]], codec: str) -> dict[str, Tensor]:
    """Reads a safetensors file that must hold tensors of these names and shapes."""
    try:
        tensors = load_safetensors(path.read_bytes())
    except SafetensorError as error:
        raise UserError(
            f"{path} of the codec {codec} is no safetensors file: {error}. Make or fetch it anew."
        ) from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise UserError(f"{path} of the codec {codec} should hold {shapes}, but holds {found}. Make it anew.")
    return tensors


def write_fitted(folder: Path, name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes `name.safetensors` and, last, `name.json`: a folder with the JSON is whole."""
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    atomic_write(folder / f"{name}.safetensors", save_safetensors(contiguous))
    write_json(folder / f"{name}.json", about)
