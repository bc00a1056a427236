"""Writing a store: lengths are planned first, every shard has one writer, and its manifest is written last."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr
from arlat_core.config import UserError
from arlat_core.files import atomic_write, sha256_file, sync_folder, write_json
from arlat_core.run import check_settings, run_directory
from arlat_core.types import LatentSpec
from safetensors.numpy import save
from zarr.codecs import Crc32cCodec

from arlat_data.store_layout import (
    CHUNK_FRAMES,
    INDEX,
    SCHEMA,
    SHARD_FRAMES,
    WORK,
    DType,
    Failed,
    Header,
    Item,
    Left,
    done,
    place,
    read_manifest,
    shard_size,
    write_manifest,
)

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Row: TypeAlias = tuple[str, str, str, FloatArray, FloatArray | None]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def claim(path: Path, repairing: bool = False) -> Iterator[None]:
    """Locks a store for the one process that writes it, and clears away what a killed one left half written.

    A finished store is locked only for repairing. Raises UserError when another process holds it, when the folder holds something else, or when the disk is full.
    """
    fresh = not path.exists()
    taken = UserError(f"{path} exists and is not empty. Choose another --out, or remove it.")
    ours = (path / WORK).exists() or group_attributes(path).get("format") == SCHEMA
    if not fresh and not ours and (not path.is_dir() or any(path.iterdir())):
        raise taken
    try:
        with run_directory(path / WORK, {}):
            try:
                if (path / "store.json").exists() != repairing:
                    raise taken
                sweep(path)
                yield
            finally:
                if (path / "store.json").exists() or not (path / "zarr.json").exists():
                    shutil.rmtree(path / WORK)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{path} cannot be written: {os.strerror(error.errno or 0)}. Make room and run the same command again; it goes on from here."
        ) from error
    finally:
        if fresh and path.exists() and not any(path.iterdir()):
            path.rmdir()


def sweep(path: Path) -> None:
    """Removes files that a killed writer never renamed to their final name."""
    for left in [*path.rglob("*.partial"), *path.glob(".*.tmp"), *path.glob("manifest/.*.tmp")]:
        left.unlink()


def settle(path: Path, settings: dict[str, Any]) -> None:
    """Binds a claimed store to the settings that decide its bytes.

    Raises UserError with the differences when shards are there that were made with others.
    """
    file = path / WORK / "settings.json"
    if not any((path / "manifest").glob("shard-*.json")):
        file.unlink(missing_ok=True)
    elif not file.exists():  # the header of a finished store was removed, to be written again
        write_json(file, group_attributes(path).get("settings"))
    check_settings(file, settings)


def group_attributes(path: Path) -> dict[str, Any]:
    """Attributes of the zarr group in a folder; empty where there is none, or none that can be read."""
    try:
        found = json.loads((path / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


class StoreWriter:
    """Writes the shards of one planned store; shards may be written by different processes, each by one."""

    def __init__(self, path: Path, spec: LatentSpec, items: Sequence[Item], dtype: DType, shard_frames: int) -> None:
        self.path, self.spec, self.items, self.dtype, self.shard_frames = path, spec, list(items), dtype, shard_frames
        last = self.items[-1] if self.items else None
        self.shards = 0 if last is None else (last.start + max(last.length, 1) - 1) // shard_frames + 1
        self._of_shard: dict[int, list[Item]] = {
            shard: list(some) for shard, some in itertools.groupby(self.items, lambda item: item.start // shard_frames)
        }

    @classmethod
    def create(
        cls,
        path: Path,
        spec: LatentSpec,
        items: Sequence[Item],
        dtype: DType = "float16",
        shard_frames: int = SHARD_FRAMES,
        settings: dict[str, Any] | None = None,
    ) -> StoreWriter:
        """Makes the arrays of a planned store, or takes up those that are there; `settings` are those of `settle`."""
        writer = cls(Path(path), spec, items, dtype, shard_frames)
        layouts = {
            "z": ((writer.shards * shard_frames, spec.dim), dtype),
            "energy": ((writer.shards * shard_frames,), "float32"),
        }
        attributes: dict[str, Any] = {
            "format": SCHEMA,
            "spec": spec.model_dump(mode="json"),
            "settings": settings or {},
        }
        group = zarr.open_group(path, mode="a", zarr_format=3, attributes=attributes)
        if group.attrs.asdict() != attributes:
            group.attrs.put(attributes)
        for name, (shape, kind) in layouts.items():
            if (writer.path / name / "zarr.json").exists():
                array = group[name]
                if not isinstance(array, zarr.Array) or (array.shape, str(array.dtype)) != (shape, kind):
                    raise UserError(f"{path} was begun with another plan. Choose another --out, or remove it.")
                continue
            group.create_array(
                name,
                shape=shape,
                dtype=kind,
                chunks=(min(CHUNK_FRAMES, shard_frames), *shape[1:]),
                shards=(shard_frames, *shape[1:]),
                compressors=[Crc32cCodec()],
                fill_value=float("nan"),
            )
        return writer

    def of_shard(self, shard: int) -> list[Item]:
        """The utterances of one shard, in order."""
        return self._of_shard.get(shard, [])

    def done(self, shard: int) -> bool:
        """Whether a shard has its manifest, which is written last, and files of the sizes that it tells."""
        return done(self.path, shard)

    def write_shard(
        self,
        shard: int,
        rows: dict[str, tuple[FloatArray, FloatArray | None]],
        failed: Sequence[Failed] = (),
    ) -> None:
        """Writes a shard from {id: (z [t d], energy [t] or None)} and then its manifest.

        Utterances of the plan that are not in `rows` must be in `failed`; their rows stay NaN.
        """
        lost = {row.id for row in failed}
        z = np.full((self.shard_frames, self.spec.dim), np.nan, dtype=self.dtype)
        energy = np.full(self.shard_frames, np.nan, dtype=np.float32)
        count = 0
        for item in self.of_shard(shard):
            if item.id in lost:
                continue
            latents, loud = rows[item.id]
            check_rows(item, latents, self.spec.dim, self.dtype)
            here = item.start - shard * self.shard_frames
            z[here : here + item.length] = latents
            if loud is not None:
                energy[here : here + item.length] = loud
            count += item.length
        span = slice(shard * self.shard_frames, (shard + 1) * self.shard_frames)
        with zarr.config.set({"array.write_empty_chunks": True}):  # a shard of NaN is written too, and can be hashed
            group = zarr.open_group(self.path, mode="r+")
            group["z"][span] = z  # type: ignore[index]
            group["energy"][span] = energy  # type: ignore[index]
        write_manifest(self.path, shard, count, failed)

    def finish(
        self,
        *,
        skipped: Sequence[Left] = (),
        attributes: dict[str, Any] | None = None,
        truth: dict[str, Any] | None = None,
    ) -> Header:
        """Writes the index, the training moments and, last, `store.json`; every shard must be done."""
        manifests = [read_manifest(self.path, shard) for shard in range(self.shards)]
        missing = [shard for shard, manifest in enumerate(manifests) if manifest is None]
        if missing:
            raise UserError(f"{self.path} is unfinished: shards {missing} are missing. Run the same command again.")
        shards = tuple(manifest for manifest in manifests if manifest is not None)
        failed = [row for manifest in shards for row in manifest.failed]
        empty = [Left(path=item.id, reason="it has 0 frames") for item in self.items if item.length == 0]
        lost = {row.id for row in failed} | {row.path for row in empty}
        kept = [item for item in self.items if item.id not in lost]
        write_index(self.path, kept)
        moments = training_moments(self.path, kept, self.spec.dim, self.shard_frames)
        atomic_write(self.path / "moments.safetensors", save(moments))
        if truth is not None:
            write_json(self.path / "truth.json", truth)
        unread = [Left(path=row.path, reason=row.reason) for row in failed]
        header = Header(
            format=SCHEMA,
            spec=self.spec,
            dtype=self.dtype,
            shard_frames=self.shard_frames,
            shards=shards,
            files=other_files(self.path),
            skipped=(*skipped, *unread, *empty),
            attributes=attributes or {},
        ).sealed()
        write_json(self.path / "store.json", header.model_dump(mode="json"))
        return header


def check_rows(item: Item, latents: FloatArray, dim: int, dtype: str) -> None:
    """Refuses latents of another shape than planned, or that the store's type cannot hold."""
    if latents.shape != (item.length, dim):
        raise UserError(f"{item.id} gave latents {latents.shape}, and {(item.length, dim)} was planned.")
    if not np.isfinite(latents).all():
        raise UserError(f"{item.id} gave latents that are not finite. Leave the file out, or mend the codec.")
    if latents.size and float(np.abs(latents).max()) > float(np.finfo(dtype).max):
        raise UserError(
            f"{item.id} gave latents up to {np.abs(latents).max():.3g}, too large for {dtype}. Use --dtype float32."
        )


def write_index(path: Path, items: Sequence[Item]) -> None:
    """Writes one array [U] per field of the utterances, one chunk each."""
    group = zarr.open_group(path, mode="r+")
    for name in INDEX:
        text = name in ("id", "speaker", "split")
        array = group.create_array(
            name,
            shape=(len(items),),
            dtype="string" if text else "int64",
            chunks=(max(1, len(items)),),
            compressors=[Crc32cCodec()],
            overwrite=True,
        )
        if items:
            values = [getattr(item, name) for item in items]
            array[:] = np.array(values, dtype=object if text else np.int64)


def other_files(path: Path) -> dict[str, str]:
    """sha256 of all files of a store that are no shard and no manifest: index, metadata, moments, truth."""
    names = [f"{name}/c/0" for name in INDEX] + [f"{name}/zarr.json" for name in ("z", "energy", *INDEX)]
    names += ["zarr.json", "moments.safetensors", "truth.json"]
    found = [name for name in names if (path / name).is_file()]
    for name in found:
        with (path / name).open("rb") as handle:
            os.fsync(handle.fileno())
        sync_folder((path / name).parent)
    return {name: sha256_file(path / name) for name in found}


def training_moments(
    path: Path, items: Sequence[Item], dim: int, shard_frames: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean [d] and covariance [d d] of the training frames, float64, from sums about the first utterance's mean."""
    array = zarr.open_group(path, mode="r")["z"]
    shift: npt.NDArray[np.float64] | None = None
    count, total, square = 0, np.zeros(dim), np.zeros((dim, dim))
    training = [item for item in items if item.split == "train"]
    for shard, some in itertools.groupby(training, lambda item: item.start // shard_frames):
        block = np.asarray(array[shard * shard_frames : (shard + 1) * shard_frames])  # type: ignore[index]
        for item in some:
            at = item.start - shard * shard_frames
            x = block[at : at + item.length].astype(np.float64)
            shift = x.mean(0) if shift is None else shift
            x = x - shift
            count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    if shift is None:
        return {"mean": np.full(dim, math.nan), "covariance": np.full((dim, dim), math.nan)}
    mean = total / count
    return {"mean": shift + mean, "covariance": square / count - np.outer(mean, mean)}


def write_store(
    path: Path | str,
    spec: LatentSpec,
    utterances: Iterable[Row],
    *,
    dtype: DType = "float16",
    truth: dict[str, Any] | None = None,
    attributes: dict[str, Any] | None = None,
    skipped: Sequence[Left] = (),
    shard_frames: int = SHARD_FRAMES,
) -> None:
    """Writes a whole store from rows (id, speaker, split, z [t d], energy [t] or None) that fit in memory.

    Raises UserError when `path` holds something already, or when a row is not finite.
    """
    path = Path(path)
    if (path / "store.json").exists():
        raise UserError(f"{path} exists and is not empty: it holds a store. Choose another --out, or remove it.")
    with claim(path):
        rows = list(utterances)
        shard_frames = shard_size(sum(len(z) for _, _, _, z, _ in rows), shard_frames)
        items = place([(name, speaker, split, len(z), 0) for name, speaker, split, z, _ in rows], shard_frames)
        content = {name: (z, energy) for name, _, _, z, energy in rows}
        for item in items:
            check_rows(item, content[item.id][0], spec.dim, dtype)
        settings = {"written": "whole", "spec": spec.model_dump(mode="json")}
        settle(path, settings)
        for left in [child for child in path.iterdir() if child.name != WORK]:  # of a killed writer: rows may differ
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        writer = StoreWriter.create(path, spec, items, dtype, shard_frames, settings)
        for shard in range(writer.shards):
            writer.write_shard(shard, {item.id: content[item.id] for item in writer.of_shard(shard)})
        writer.finish(truth=truth, attributes=attributes, skipped=skipped)
