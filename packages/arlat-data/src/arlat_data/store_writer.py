"""Writing a store: lengths are planned first, every shard has one writer, and its manifest is written last."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from arlat_core.config import UserError
from arlat_core.files import atomic_write, sha256_file, write_json
from arlat_core.types import LatentSpec
from safetensors.numpy import save
from zarr.codecs import Crc32cCodec

CHUNK_FRAMES = 256
SHARD_FRAMES = 65_536
SCHEMA = 1
DType = Literal["float16", "float32"]
Row = tuple[str, str, str, npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]] | None]


@dataclass(frozen=True)
class Item:
    """One utterance's place: rows start … start+length of the array `z`, all in one shard; `samples` of its audio."""

    id: str
    speaker: str
    split: str
    start: int
    length: int
    samples: int = 0


def place(wanted: Sequence[tuple[str, str, str, int, int]], shard_frames: int = SHARD_FRAMES) -> list[Item]:
    """Gives each (id, speaker, split, frames, samples) its rows, in order; none straddles a shard.

    Raises UserError for an id that comes twice, or an utterance longer than a shard.
    """
    items, at, seen = [], 0, set()
    for name, speaker, split, frames, samples in wanted:
        if name in seen:
            raise UserError(f"The utterance {name!r} comes twice. Ids must differ; rename one of the files.")
        if frames > shard_frames:
            raise UserError(f"{name} has {frames} frames, and a shard holds {shard_frames}. Cut the recording.")
        seen.add(name)
        if at // shard_frames != (at + max(frames, 1) - 1) // shard_frames:
            at = (at // shard_frames + 1) * shard_frames
        items.append(Item(name, speaker, split, at, frames, samples))
        at += frames
    return items


def shard_size(frames: int, at_most: int = SHARD_FRAMES) -> int:
    """Frames of a shard of a store of `frames`: a small store is one shard of whole chunks, with no empty tail."""
    return max(CHUNK_FRAMES, min(at_most, -(-frames // CHUNK_FRAMES) * CHUNK_FRAMES))


class StoreWriter:
    """Writes the shards of one planned store; shards may be written by different processes, each by one."""

    def __init__(self, path: Path, items: Sequence[Item], dim: int, dtype: DType, shard_frames: int) -> None:
        self.path, self.items, self.dim, self.dtype, self.shard_frames = path, list(items), dim, dtype, shard_frames
        last = self.items[-1] if self.items else None
        self.shards = 0 if last is None else (last.start + max(last.length, 1) - 1) // shard_frames + 1

    @classmethod
    def create(
        cls, path: Path, items: Sequence[Item], dim: int, dtype: DType = "float16", shard_frames: int = SHARD_FRAMES
    ) -> StoreWriter:
        """Makes the arrays of a planned store, or takes up those that are there."""
        writer = cls(path, items, dim, dtype, shard_frames)
        if not (path / "z" / "zarr.json").exists() or not (path / "energy" / "zarr.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            group = zarr.open_group(path, mode="a", zarr_format=3)
            rows = writer.shards * shard_frames
            layouts: list[tuple[str, tuple[int, ...], str]] = [
                ("z", (rows, dim), dtype),
                ("energy", (rows,), "float32"),
            ]
            for name, shape, kind in layouts:
                chunk = min(CHUNK_FRAMES, shard_frames)
                group.create_array(
                    name,
                    shape=shape,
                    dtype=kind,
                    chunks=(chunk, *shape[1:]),
                    shards=(shard_frames, *shape[1:]),
                    compressors=[Crc32cCodec()],
                    fill_value=float("nan"),
                    overwrite=True,
                )
        return writer

    def of_shard(self, shard: int) -> list[Item]:
        """The utterances of one shard, in order."""
        return [item for item in self.items if item.start // self.shard_frames == shard]

    def done(self, shard: int) -> bool:
        """Whether a shard's manifest is there, which is written last."""
        return manifest_path(self.path, shard).exists()

    def write_shard(
        self,
        shard: int,
        rows: dict[str, tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]] | None]],
        failed: Sequence[dict[str, str]] = (),
    ) -> None:
        """Writes a shard from {id: (z [t d], energy [t] or None)} and then its manifest.

        Utterances of the plan that are not in `rows` must be in `failed` ({"id", "path", "reason"}); their rows stay NaN.
        """
        z = np.full((self.shard_frames, self.dim), np.nan, dtype=self.dtype)
        energy = np.full(self.shard_frames, np.nan, dtype=np.float32)
        for item in self.of_shard(shard):
            if item.id not in rows:
                continue
            latents, loud = rows[item.id]
            check_rows(item, latents, self.dim, self.dtype)
            here = item.start - shard * self.shard_frames
            z[here : here + item.length] = latents
            if loud is not None:
                energy[here : here + item.length] = loud
        span = slice(shard * self.shard_frames, (shard + 1) * self.shard_frames)
        with zarr.config.set({"array.write_empty_chunks": True}):  # a shard of NaN is written too, and can be hashed
            group = zarr.open_group(self.path, mode="r+")
            group["z"][span] = z  # type: ignore[index]
            group["energy"][span] = energy  # type: ignore[index]
        write_manifest(self.path, shard, failed)

    def finish(
        self,
        spec: LatentSpec,
        *,
        skipped: Sequence[dict[str, str]] = (),
        attributes: dict[str, Any] | None = None,
        truth: dict[str, Any] | None = None,
    ) -> None:
        """Writes the index, the training moments and, last, `store.json`; every shard must be done."""
        missing = [shard for shard in range(self.shards) if not self.done(shard)]
        if missing:
            raise UserError(f"{self.path} is unfinished: shards {missing} are missing. Run the same command again.")
        manifests = [read_manifest(self.path, shard) for shard in range(self.shards)]
        failed = [row for manifest in manifests for row in manifest["failed"]]
        lost = {row["id"] for row in failed}
        kept = [item for item in self.items if item.id not in lost and item.length > 0]
        write_json(self.path / "utterances.json", [asdict(item) for item in kept])
        atomic_write(
            self.path / "moments.safetensors", save(training_moments(self.path, kept, self.dim, self.shard_frames))
        )
        if truth is not None:
            write_json(self.path / "truth.json", truth)
        header = {
            "schema": SCHEMA,
            "spec": spec.model_dump(mode="json"),
            "dtype": self.dtype,
            "shards": self.shards,
            "shard_frames": self.shard_frames,
            "sha256": [manifest["sha256"] for manifest in manifests],
            "utterances": sha256_file(self.path / "utterances.json"),
            "skipped": [*skipped, *({"path": row["path"], "reason": row["reason"]} for row in failed)],
            "attributes": attributes or {},
        }
        write_json(self.path / "store.json", header)


def check_rows(item: Item, latents: npt.NDArray[np.floating[Any]], dim: int, dtype: str) -> None:
    """Refuses latents of another shape than planned, or that the store's type cannot hold."""
    if latents.shape != (item.length, dim):
        raise UserError(f"{item.id} gave latents {latents.shape}, and {(item.length, dim)} was planned.")
    if not np.isfinite(latents).all():
        raise UserError(f"{item.id} gave latents that are not finite. Leave the file out, or mend the codec.")
    if latents.size and float(np.abs(latents).max()) > float(np.finfo(dtype).max):
        raise UserError(
            f"{item.id} gave latents up to {np.abs(latents).max():.3g}, too large for {dtype}. Use --dtype float32."
        )


def shard_files(path: Path, shard: int) -> list[Path]:
    """The files of one shard: its latents and its energies."""
    return [path / "z" / "c" / str(shard) / "0", path / "energy" / "c" / str(shard)]


def manifest_path(path: Path, shard: int) -> Path:
    """Where a shard's manifest is."""
    return path / "manifest" / f"shard-{shard:06d}.json"


def write_manifest(path: Path, shard: int, failed: Sequence[dict[str, str]]) -> None:
    """Says that a shard is done, with the size and hash of its files."""
    files = shard_files(path, shard)
    entry = {
        "sha256": [sha256_file(file) for file in files],
        "bytes": [file.stat().st_size for file in files],
        "failed": sorted(failed, key=lambda row: row["id"]),
    }
    write_json(manifest_path(path, shard), entry)


def read_manifest(path: Path, shard: int) -> dict[str, Any]:
    """Reads one manifest."""
    manifest: dict[str, Any] = json.loads(manifest_path(path, shard).read_text(encoding="utf-8"))
    return manifest


def training_moments(
    path: Path, items: Sequence[Item], dim: int, shard_frames: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean [d] and covariance [d d] of the training frames, float64, shard by shard in two passes of sums."""
    array = zarr.open_group(path, mode="r")["z"]
    shift: npt.NDArray[np.float64] | None = None
    count, total, square = 0, np.zeros(dim), np.zeros((dim, dim))
    for shard in sorted({item.start // shard_frames for item in items}):
        block = np.asarray(array[shard * shard_frames : (shard + 1) * shard_frames], dtype=np.float64)  # type: ignore[index]
        for item in items:
            if item.start // shard_frames != shard or item.split != "train":
                continue
            x = block[item.start % shard_frames : item.start % shard_frames + item.length]
            shift = x.mean(0) if shift is None else shift
            x = x - shift
            count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    if shift is None:
        return {"mean": np.full(dim, math.nan), "covariance": np.full((dim, dim), math.nan)}
    mean = total / count
    return {"mean": shift + mean, "covariance": square / count - np.outer(mean, mean)}


def write_store(
    path: Path,
    spec: LatentSpec,
    utterances: Iterable[Row],
    *,
    dtype: DType = "float16",
    truth: dict[str, Any] | None = None,
    attributes: dict[str, Any] | None = None,
    skipped: Sequence[dict[str, str]] = (),
    shard_frames: int = SHARD_FRAMES,
) -> None:
    """Writes a whole store from rows (id, speaker, split, z [t d], energy [t] or None) that fit in memory.

    Raises UserError when `path` holds something already.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} exists and is not empty. Choose another --out, or remove it.")
    rows = list(utterances)
    shard_frames = shard_size(sum(len(z) for _, _, _, z, _ in rows), shard_frames)
    items = place([(name, speaker, split, len(z), 0) for name, speaker, split, z, _ in rows], shard_frames)
    writer = StoreWriter.create(path, items, spec.dim, dtype, shard_frames)
    content = {name: (z, energy) for name, _, _, z, energy in rows}
    for shard in range(writer.shards):
        writer.write_shard(shard, {item.id: content[item.id] for item in writer.of_shard(shard)})
    writer.finish(spec, truth=truth, attributes=attributes, skipped=skipped)
