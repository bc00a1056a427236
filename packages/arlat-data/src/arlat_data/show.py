"""`arlat data show` and `arlat data codecs`."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Annotated

import tyro
from arlat_core import registry
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse


class Config(BaseConfig):
    """Settings of `arlat data show`."""

    store: Annotated[Path, tyro.conf.Positional]
    """The store to describe."""


def main(arguments: list[str], prog: str) -> int:
    """`arlat data show STORE`: what a store holds."""
    from arlat_data.store import LatentStore

    store = LatentStore.open(parse(Config, arguments, prog, "Says what a store holds.").store)
    spec = store.spec
    print(f"{store.path}: {spec.codec} ({spec.space}), D = {spec.dim} at {spec.frame_rate:g} Hz, hash {store.hash}")
    header = store.header
    size = sum(sum(shard.bytes) for shard in header.shards) / 2**20
    print(f"  {header.dtype}, {len(header.shards)} shards of {header.shard_frames} frames, {size:.1f} MiB")
    for split in store.splits:
        ids = store.ids(split)
        frames = sum(store.length(name) for name in ids)
        speakers = len({store.speaker(name) for name in ids})
        print(
            f"  {split}: {speakers} speakers, {len(ids)} utterances, {frames} frames, {frames / spec.frame_rate / 60:.1f} min"
        )
    trip = store.attributes.get("round_trip")
    if trip:
        print(f"  round trip: agreement {trip['agreement']:.2f}, distance {trip['distance_db']:.1f} dB")
    if store.truth:
        print(f"  synthetic: {store.truth.get('process', '?')}, {len(store.truth.get('values', {}))} known answers")
    for row in store.skipped:
        print(f"  left out: {row['path']}: {row['reason']}")
    return 0


def codecs(arguments: list[str], prog: str) -> int:
    """`arlat data codecs`: the codecs that are installed, without importing any."""
    if arguments in (["-h"], ["--help"]):
        print(f"usage: {prog}\n\nLists the codecs that are installed.")
        return 0
    if arguments:
        raise UserError(f"{prog} takes no arguments, but got {' '.join(arguments)!r}.")
    for name, module in registry.names("codecs").items():
        print(f"{name:<10} {sentence(module)}")
    return 0


def sentence(module: str) -> str:
    """The first line of a module's docstring, read without running the module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return f"({module} has no source)"
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or f"({module})"
    return text.partition("\n")[0]
