"""`arlat data verify`: reads every byte of a store against its manifests, and extracts broken shards anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.files import sha256_file, write_json
from arlat_core.run import run_directory

from arlat_data.store import fault
from arlat_data.store_writer import SCHEMA, Item, manifest_path, read_manifest, shard_files


class Config(BaseConfig):
    """Settings of `arlat data verify`."""

    store: Annotated[Path, tyro.conf.Positional]
    """The store to check."""
    repair: bool = False
    """Extract broken shards anew; needs --audio, and --codec where it names a folder that has moved."""
    audio: Path | None = None
    """The folder that the store was extracted from."""
    device: str = "cpu"
    """Where the codec runs."""


def read_header(path: Path) -> dict[str, Any]:
    """The header of a finished store; UserError otherwise."""
    if not (path / "store.json").exists():
        raise UserError(f"{path} is no finished latent store: store.json is missing. Run the command that makes it.")
    header: dict[str, Any] = json.loads((path / "store.json").read_text(encoding="utf-8"))
    if header.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {header.get('schema')!r}; this version reads {SCHEMA}. Extract it anew.")
    return header


def broken_shards(path: Path) -> dict[int, str]:
    """Shard -> what is wrong with it, from every byte of every shard."""
    header = read_header(path)
    found: dict[int, str] = {}
    for shard, expected in enumerate(header["sha256"]):
        wrong = fault(path, shard, expected)
        if wrong is None:
            for file, digest in zip(shard_files(path, shard), expected, strict=True):
                if sha256_file(file) != digest:
                    wrong = f"{file.relative_to(path)} is not what was written: its sha256 differs"
        if wrong is not None:
            found[shard] = wrong
    return found


def repair(path: Path, shards: list[int], audio: Path, device: str) -> None:
    """Extracts `shards` anew from the folder that the store came from; their bytes must be what they were."""
    from arlat_data import extract

    header = read_header(path)
    settings = header["attributes"].get("settings")
    if settings is None:
        raise UserError(f"{path} was not extracted from audio, so it cannot be repaired. Make it anew.")
    chosen = {key: value for key, value in settings.items() if key in extract.Config.model_fields}
    config = extract.Config(audio=audio, out=path, device=device, **chosen)
    corpus, codec = extract.prepare(config)
    now = extract.settings_of(config, corpus, codec)
    if now != settings:
        different = ", ".join(sorted(key for key in now if now[key] != settings.get(key)))
        raise UserError(
            f"{audio} or the codec is not what {path} was made from ({different}). Extract into a new store."
        )
    task = extract.task_of(config, corpus, codec)
    with run_directory(path / ".work", settings):
        for shard in shards:
            for file in [*shard_files(path, shard), manifest_path(path, shard)]:
                file.unlink(missing_ok=True)
            extract.encode_shard(task, shard)
            if read_manifest(path, shard)["sha256"] != header["sha256"][shard]:
                # another processor or library rounds otherwise: the shard is sound, and the header says what it holds now
                header["sha256"][shard] = read_manifest(path, shard)["sha256"]
                write_json(path / "store.json", header)
    extract.remove_work(path)


def main(arguments: list[str], prog: str) -> int:
    """`arlat data verify STORE [--repair --audio DIR]`: 0 when the store is whole, 1 when it is not."""
    config = parse(Config, arguments, prog, "Checks every byte of a store, and repairs it.")
    found = broken_shards(config.store)
    header = read_header(config.store)
    if sha256_file(config.store / "utterances.json") != header["utterances"]:
        print(f"{config.store}: utterances.json is not what was written. Extract the store anew.")
        return 1
    items = [Item(**row) for row in json.loads((config.store / "utterances.json").read_text(encoding="utf-8"))]
    for shard, wrong in found.items():
        lost = sum(item.start // header["shard_frames"] == shard for item in items)
        print(f"shard {shard}: {wrong} ({lost} utterances)")
    if not found:
        print(f"{config.store}: all {header['shards']} shards are whole.")
        return 0
    if not config.repair:
        print("Repair it: arlat data verify STORE --repair --audio DIR")
        return 1
    if config.audio is None:
        raise UserError("--repair needs --audio, the folder that the store was extracted from.")
    repair(config.store, sorted(found), config.audio, config.device)
    left = broken_shards(config.store)
    print(f"{len(found) - len(left)} of {len(found)} shards repaired.")
    return 1 if left else 0
