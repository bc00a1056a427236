"""`arlat data verify`: reads every byte of a store against its manifests, and extracts broken shards anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse

from arlat_data.store_layout import Header, check_file, manifest_path, read_header, shard_files, study


class Config(BaseConfig):
    """Settings of `arlat data verify`."""

    store: Annotated[Path, tyro.conf.Positional]
    """The store to check."""
    repair: bool = False
    """Extract broken shards anew; needs --audio."""
    audio: Path | None = None
    """The folder that the store was extracted from."""
    codec: str | None = None
    """The codec's text, where its folder has moved since."""
    device: str | None = None
    """Where the codec runs; by default the kind of device that the store was made on."""


def broken_shards(path: Path, header: Header | None = None) -> dict[int, str]:
    """Shard -> what is wrong with it, from every byte of every shard."""
    from rich.console import Console
    from rich.progress import track

    found: dict[int, str] = {}
    manifests = (header or read_header(path)).shards
    bar = track(manifests, "verifying", console=Console(stderr=True), transient=True)
    for shard, manifest in enumerate(bar):
        wrong = study(path, shard, manifest)
        if wrong is not None:
            found[shard] = wrong
    return found


def broken_files(path: Path, header: Header) -> dict[str, str]:
    """Name -> what is wrong with it, of the files that are no shard: index, metadata, moments, truth."""
    found = {}
    for name in header.files:
        try:
            check_file(path, header, name)
        except UserError as error:
            found[name] = str(error).partition(f"broken: {name} ")[2].partition(". See")[0]
    return found


def repair(path: Path, header: Header, shards: list[int], config: Config) -> Header:
    """Extracts `shards` anew from the folder that the store came from, and writes the index, moments and header again.

    Raises UserError when the folder or the codec is not what the store was made from.
    """
    from arlat_data import extract
    from arlat_data.encode import run_shards
    from arlat_data.store_writer import StoreWriter, claim, settle

    settings = header.attributes.get("settings")
    if settings is None:
        raise UserError(f"{path} was not extracted from audio, so it cannot be repaired. Make it anew.")
    if config.audio is None:
        raise UserError("--repair needs --audio, the folder that the store was extracted from.")
    chosen = {key: value for key, value in settings.items() if key in extract.Config.model_fields}
    given = {"audio": config.audio, "out": path, "device": config.device or settings["device"]}
    wanted = extract.Config.model_validate(chosen | given | ({"codec": config.codec} if config.codec else {}))
    corpus, codec = extract.prepare(wanted)
    now = extract.settings_of(wanted, corpus, codec) | {"codec": settings["codec"]}
    if now != settings:
        different = ", ".join(sorted(key for key in now if now[key] != settings.get(key)))
        raise UserError(
            f"{config.audio} or the codec is not what {path} was made from ({different}). Extract into a new store."
        )
    task = extract.task_of(wanted, corpus, codec)
    broken = [path / name for name in broken_files(path, header)]
    for shard in shards:
        broken += [manifest_path(path, shard), *shard_files(path, shard)]
    with claim(path, repairing=True):
        for file in broken:
            file.unlink(missing_ok=True)
        settle(path, settings)
        writer = StoreWriter.create(path, codec.spec, task.items, wanted.dtype, task.shard_frames, settings)
        run_shards(task, shards, 1)
        told = {row.path for shard in header.shards for row in shard.failed}  # `finish` takes these from the manifests
        known = [left for left in header.skipped if left.path not in told]
        return writer.finish(skipped=known, attributes=header.attributes)


def main(arguments: list[str], prog: str) -> int:
    """`arlat data verify STORE [--repair --audio DIR]`: 0 when the store is whole, 1 when it is not."""
    config = parse(Config, arguments, prog, "Checks every byte of a store, and repairs it.")
    path, header = config.store, read_header(config.store)
    shards, files = broken_shards(path, header), broken_files(path, header)
    for shard, wrong in shards.items():
        print(f"shard {shard}: {wrong} ({header.shards[shard].rows} frames)")
    for name, wrong in files.items():
        print(f"{name}: {wrong}")
    if not shards and not files:
        print(f"{path}: all {len(header.shards)} shards and {len(header.files)} other files are whole.")
        return 0
    if not config.repair:
        print(f"Repair it: arlat data verify {path} --repair --audio DIR")
        return 1
    after = repair(path, header, sorted(shards), config)
    print(f"{path}: {len(shards)} shards and {len(files)} other files are written anew.")
    if after.hash != header.hash:
        print(
            f"The new bytes are not the old ones (another machine or library rounds otherwise): "
            f"the hash was {header.hash} and is {after.hash}."
        )
    return 1 if broken_shards(path, after) or broken_files(path, after) else 0
