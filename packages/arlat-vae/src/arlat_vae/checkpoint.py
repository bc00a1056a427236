"""A trained VAE on disk: `vae.safetensors`, and `vae.json` written last, which says what it is; `inner.*` for a VAE of latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, validate
from arlat_core.files import atomic_write, sha256_file, write_json
from arlat_core.run import RESOLVED
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from arlat_vae.inner import Config as InnerConfig
from arlat_vae.inner import InnerVAE
from arlat_vae.model import VAE, Config

SCHEMAS = {"vae": "arlat-vae/1", "inner": "arlat-inner/1"}
C = TypeVar("C", bound=BaseConfig)


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


class About(BaseConfig, Generic[C]):
    """What vae.json, or inner.json, says."""

    schema_name: str
    """Version of the format."""
    model: C
    """The shape."""
    training: Training = UNKNOWN
    """What it was trained for."""
    sha256: str
    """Hash of the weights."""


def exists(folder: Path, name: str = "vae") -> bool:
    """Whether `folder` holds a whole VAE, as NAME.json and NAME.safetensors."""
    return (folder / f"{name}.json").is_file()


def save(model: VAE | InnerVAE, folder: Path, training: Training = UNKNOWN, name: str = "vae") -> None:
    """Writes `model`; a crash leaves the old VAE or none."""
    description, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    description.unlink(missing_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    atomic_write(weights, to_bytes(tensors))
    about = {
        "schema_name": SCHEMAS[name],
        "model": model.config.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "sha256": sha256_file(weights),
    }
    write_json(description, about)


def read(folder: Path, name: str, config: type[C]) -> tuple[About[C], dict[str, Tensor]]:
    """What `folder` says of its VAE and its weights; raises UserError when there is no whole one, or they are not those written."""
    folder = folder.expanduser()
    path, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not exists(folder, name):
        started = (folder.parent / RESOLVED).is_file()
        give, goes_on = (
            f"Give the folder that `arlat vae train` wrote, RUN/{name}.",
            "Its training is not finished; go on with",
        )
        hint = f"{goes_on}: arlat vae train --resume {folder.parent}" if started else give
        raise UserError(f"{folder} holds no finished VAE (no {path.name}). {hint}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no JSON: {error}. Train the VAE anew.") from error
    about = validate(About[config], values, str(path))  # type: ignore[valid-type]
    if about.schema_name != SCHEMAS[name]:
        raise UserError(f"{path} has the schema {about.schema_name!r}, not {SCHEMAS[name]!r}. Train the VAE anew.")
    if not weights.is_file() or sha256_file(weights) != about.sha256:
        raise UserError(f"{weights} is missing or is not the file that was written. Train the VAE anew.")
    return about, load_file(weights)


def load(folder: Path) -> tuple[VAE, Training]:
    """Reads the VAE of `folder` and what it was trained for; raises as `read`."""
    about, tensors = read(folder, "vae", Config)
    model = VAE(about.model)
    model.load_state_dict(tensors)
    return model, about.training


def load_inner(folder: Path) -> tuple[InnerVAE, Training]:
    """Reads the VAE of latents of `folder` and what it was trained for; raises as `read`."""
    about, tensors = read(folder, "inner", InnerConfig)
    model = InnerVAE(about.model)
    model.load_state_dict(tensors)
    return model, about.training


def require(asked: Mapping[str, object], dim: int, training: Training, folder: Path) -> None:
    """Raises UserError where options of a codec text that name what a VAE is (dim, beta, ar_loss) are given and not true of it."""
    has = {"dim": dim, **training.model_dump()}
    wanted = {name: asked[name] for name in has if asked[name] not in ("", None)}
    if wrong := [f"{name} {has[name]!r}, not {value!r}" for name, value in wanted.items() if has[name] != value]:
        raise UserError(f"The VAE of {folder} has {', '.join(wrong)}. Leave out what does not matter.")
