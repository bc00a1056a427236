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


class Training(BaseConfig):
    """What a VAE was trained for, which its codec's name tells; empty where it is not known."""

    beta: float | None = None
    """Weight of the KL."""
    ar_loss: str = ""
    """The AR losses: none, smooth, pred, both, or several joined by +."""

    def options(self) -> str:
        """As options of a codec text, the comma before them.

        >>> Training(beta=0.01, ar_loss="none").options()
        ',beta=0.01,ar_loss=none'
        """
        known = {"beta": "" if self.beta is None else f"{self.beta:g}", "ar_loss": self.ar_loss}
        return "".join(f",{name}={value}" for name, value in known.items() if value)


UNKNOWN = Training()


class About(BaseConfig):
    """What vae.json says."""

    schema_name: str
    """Version of the format."""
    model: Config
    """The shape."""
    training: Training = UNKNOWN
    """What it was trained for."""
    sha256: str
    """Hash of vae.safetensors."""


def exists(folder: Path) -> bool:
    """Whether `folder` holds a whole VAE."""
    return (folder / "vae.json").is_file()


def save(model: VAE, folder: Path, training: Training = UNKNOWN) -> None:
    """Writes `model`; a crash leaves the old VAE or none."""
    (folder / "vae.json").unlink(missing_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    atomic_write(folder / "vae.safetensors", to_bytes(tensors))
    digest = sha256_file(folder / "vae.safetensors")
    about = About(schema_name=SCHEMA, model=model.config, training=training, sha256=digest)
    write_json(folder / "vae.json", about.model_dump(mode="json"))


def load(folder: Path) -> tuple[VAE, Training]:
    """Reads the VAE of `folder` and what it was trained for; raises UserError when there is no whole one, or its weights are not those written."""
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
    return model, about.training
