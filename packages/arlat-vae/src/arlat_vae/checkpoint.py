"""A trained VAE on disk: `vae.safetensors`, and `vae.json` written last, which says what it is."""

from __future__ import annotations

import json
from pathlib import Path

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, validate
from arlat_core.files import atomic_write, sha256_file, write_json
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from arlat_vae.model import VAE, Config

SCHEMA = "arlat-vae/1"


class About(BaseConfig):
    """What vae.json says."""

    schema_name: str
    """Version of the format."""
    model: Config
    """The shape."""
    sha256: str
    """Hash of vae.safetensors."""


def exists(folder: Path) -> bool:
    """Whether `folder` holds a whole VAE."""
    return (folder / "vae.json").is_file()


def save(model: VAE, folder: Path) -> None:
    """Writes `model`; a crash leaves the old VAE or none."""
    (folder / "vae.json").unlink(missing_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    atomic_write(folder / "vae.safetensors", to_bytes(tensors))
    about = About(schema_name=SCHEMA, model=model.config, sha256=sha256_file(folder / "vae.safetensors"))
    write_json(folder / "vae.json", about.model_dump(mode="json"))


def load(folder: Path) -> VAE:
    """Reads the VAE of `folder`; raises UserError when there is no whole one, or its weights are not those written."""
    folder = folder.expanduser()
    if not exists(folder):
        raise UserError(
            f"{folder} holds no finished VAE (no vae.json). Give the folder that `arlat vae train` wrote, RUN/vae."
        )
    try:
        values = json.loads((folder / "vae.json").read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{folder}/vae.json is no JSON: {error}. Train the VAE anew.") from error
    about = validate(About, values, f"{folder}/vae.json")
    if about.schema_name != SCHEMA:
        raise UserError(f"{folder}/vae.json has the schema {about.schema_name!r}, not {SCHEMA!r}. Train the VAE anew.")
    weights = folder / "vae.safetensors"
    if not weights.is_file() or sha256_file(weights) != about.sha256:
        raise UserError(f"{weights} is missing or is not the file that was written. Train the VAE anew.")
    model = VAE(about.model)
    model.load_state_dict(load_file(weights))
    return model
