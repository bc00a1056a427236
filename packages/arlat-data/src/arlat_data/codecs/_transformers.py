"""Models of the transformers library from a local folder or the hub's cache; the hub itself is asked only when told to."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.registry import missing_extra
from pydantic import Field

from arlat_data.codecs._folder import read_json, require_files

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PATTERNS = ["config.json", "*.safetensors", "*.safetensors.index.json"]


class PretrainedConfig(BaseConfig):
    """`NAME=FOLDER`, `NAME=OWNER/MODEL` from the hub's cache, `NAME:hub=true,revision=REV=OWNER/MODEL` with a download."""

    brought_by: ClassVar[tuple[str, str | None]] = (
        "arlat-data",
        None,
    )  # package, and its extra where it is not the name

    folder: str = Field(min_length=1)
    """A folder with config.json and model.safetensors, or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; a download needs one."""
    hub: bool = False
    """Allows a download when the weights are not on this machine."""

    def spelled(self, name: str, folder: str, revision: str | None = None) -> str:
        """How a user writes this configuration with a folder, or with a download of a revision."""
        return f"{name}={folder}" if revision is None else f"{name}:hub=true,revision={revision}={folder}"


def load_model(config: PretrainedConfig, name: str, class_name: str) -> Any:
    """Loads `transformers.class_name` in float32 from safetensors, without remote code; `name` is the codec and the model type.

    Raises UserError when the weights are not there, belong to another model or are incomplete.
    """
    try:
        import transformers
    except ImportError as error:
        package, extra = config.brought_by
        raise missing_extra(package, extra or name, error) from error
    folder = locate(config, name)
    about = read_json(folder / "config.json", name)
    if about.get("model_type") != name:
        raise UserError(f"{folder}/config.json describes a {about.get('model_type')!r} model, not {name!r}.")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, report = getattr(transformers, class_name).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # the library raises many kinds for broken files
        raise UserError(f"{folder} cannot be loaded as {class_name}: {type(error).__name__}: {error}.") from error
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        raise UserError(f"The weights in {folder} lack {len(wrong)} tensors of {class_name}, such as {wrong[0]}.")
    return model.eval().requires_grad_(False)


def locate(config: PretrainedConfig, name: str) -> Path:
    """The folder with the weights; answers at once when they are not on this machine and no download is allowed."""
    folder = Path(config.folder).expanduser()
    if folder.exists() or not HUB_ID.fullmatch(config.folder):
        return require_weights(folder, name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return require_weights(Path(_snapshot(snapshot_download, config, local_files_only=True)), name)
    except LocalEntryNotFoundError:
        if not config.hub:
            raise UserError(
                f"The weights of {config.folder!r} are not on this machine: there is no such folder, and the hub's cache "
                f"does not have them. Give a folder that holds config.json and model.safetensors ({config.spelled(name, 'FOLDER')}), "
                f"or allow a download: {config.spelled(name, config.folder, 'main')}."
            ) from None
    if config.revision is None:
        raise UserError(
            f"A download names its revision, so that it can be repeated: {config.spelled(name, config.folder, 'REVISION')}."
        )
    _require_network(config.folder)
    try:
        return require_weights(Path(_snapshot(snapshot_download, config, local_files_only=False)), name)
    except UserError:
        raise
    except Exception as error:  # the hub client raises many kinds
        raise UserError(f"{config.folder} at {config.revision} could not be downloaded: {error}.") from error


def require_weights(folder: Path, name: str) -> Path:
    """Returns `folder` when it holds config.json and safetensors, in one file or in shards with their index."""
    index = "model.safetensors.index.json"
    sharded = (folder.expanduser() / index).is_file()
    return require_files(folder, ["config.json", index if sharded else "model.safetensors"], name)


def _snapshot(download: Any, config: PretrainedConfig, local_files_only: bool) -> str:
    """The hub client's folder of one revision."""
    path: str = download(
        config.folder, revision=config.revision, allow_patterns=PATTERNS, local_files_only=local_files_only
    )
    return path


def _require_network(hub_id: str) -> None:
    """Raises UserError within seconds when the hub cannot be reached, where its client would retry for half a minute."""
    from huggingface_hub import constants

    if getproxies():
        return  # a proxy answers for the hub; the client's own error will say what is wrong
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError as error:
        raise UserError(
            f"{constants.ENDPOINT} cannot be reached ({error}), so {hub_id!r} cannot be downloaded. "
            f"Copy its config.json and model.safetensors to a folder and give that."
        ) from error
