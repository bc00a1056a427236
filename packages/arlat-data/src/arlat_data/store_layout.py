"""Where the parts of a store lie, and what its manifests and its header say of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from arlat_core.config import Config, UserError
from arlat_core.files import atomic_write, sha256_file, sync_folder
from arlat_core.types import LatentSpec, fingerprint
from pydantic import Field, ValidationError

from arlat_data.splits import SPLITS

CHUNK_FRAMES = 256
SHARD_FRAMES = 65_536
SCHEMA = "arlat-store/1"
WORK = ".work"
"""Folder of a store that is being written: lock, settings, attempt."""
INDEX = ("id", "speaker", "split", "start", "length", "samples")
"""Arrays [U] with one entry per utterance."""
DType = Literal["float16", "float32"]


class Item(NamedTuple):
    """One utterance's place: rows start … start+length of the array `z`, all in one shard; `samples` of its audio."""

    id: str
    speaker: str
    split: str
    start: int
    length: int
    samples: int = 0


class Left(Config):
    """A file that is not in the store, and why."""

    path: str
    reason: str


class Failed(Left):
    """An utterance that was planned and could not be encoded; its rows stay NaN and are in no index."""

    id: str


class Manifest(Config):
    """What a finished shard holds: rows, and sha256 and bytes of its two files (latents, energies)."""

    rows: int = Field(ge=0)
    sha256: tuple[str, str]
    bytes: tuple[int, int]
    failed: tuple[Failed, ...] = ()


class Header(Config):
    """`store.json`, which is written last of all; `checksum` covers the rest of it."""

    format: str
    spec: LatentSpec
    dtype: DType
    shard_frames: int = Field(gt=0)
    shards: tuple[Manifest, ...]
    files: dict[str, str]
    """Every other file of the store -> sha256."""
    skipped: tuple[Left, ...] = ()
    attributes: dict[str, Any] = Field(default_factory=dict)
    checksum: str = ""

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over spec, shards and index: the same latents under the same names."""
        index = {name: digest for name, digest in self.files.items() if name.split("/")[0] in INDEX}
        shards = [shard.sha256 for shard in self.shards]
        return fingerprint({"spec": self.spec.model_dump(mode="json"), "shards": shards, "index": index})

    def sealed(self) -> Header:
        """The header with its checksum."""
        content = self.model_dump(mode="json", exclude={"checksum"})
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self.model_copy(update={"checksum": digest})


def place(wanted: Sequence[tuple[str, str, str, int, int]], shard_frames: int = SHARD_FRAMES) -> list[Item]:
    """Gives each (id, speaker, split, frames, samples) its rows, in order; none straddles a shard.

    Raises UserError for an id that comes twice, a speaker in two splits, an unknown split, or an utterance longer than
    a shard.
    """
    items: list[Item] = []
    at, seen, sides = 0, set(), dict[str, str]()
    for name, speaker, split, frames, samples in wanted:
        if name in seen:
            raise UserError(f"The utterance {name!r} comes twice. Ids must differ; rename one of the files.")
        if split not in SPLITS:
            raise UserError(f"The utterance {name!r} is in the split {split!r}. Splits: {', '.join(SPLITS)}.")
        if sides.setdefault(speaker, split) != split:
            raise UserError(f"The speaker {speaker!r} is in both splits ({name!r} in {split}). Give each speaker one.")
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


def shard_files(path: Path, shard: int) -> tuple[Path, Path]:
    """The files of one shard: its latents and its energies."""
    return path / "z" / "c" / str(shard) / "0", path / "energy" / "c" / str(shard)


def manifest_path(path: Path, shard: int) -> Path:
    """Where a shard's manifest is."""
    return path / "manifest" / f"shard-{shard:06d}.json"


def write_manifest(path: Path, shard: int, rows: int, failed: Sequence[Failed]) -> None:
    """Says that a shard is done, once its files are safe on the disk."""
    files = shard_files(path, shard)
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        sync_folder(file.parent)
        sync_folder(file.parent.parent)
    one, two = files
    manifest = Manifest(
        rows=rows,
        sha256=(sha256_file(one), sha256_file(two)),
        bytes=(one.stat().st_size, two.stat().st_size),
        failed=tuple(sorted(failed, key=lambda row: row.id)),
    )
    atomic_write(manifest_path(path, shard), manifest.model_dump_json(indent=1) + "\n")


def read_manifest(path: Path, shard: int) -> Manifest | None:
    """A shard's manifest; None where it is missing or not readable, so that the shard counts as not done."""
    try:
        return Manifest.model_validate_json(manifest_path(path, shard).read_bytes())
    except (OSError, ValidationError):
        return None


def done(path: Path, shard: int) -> bool:
    """Whether a shard has a manifest and files of the sizes that it tells."""
    manifest = read_manifest(path, shard)
    return manifest is not None and look(path, shard, manifest) is None


def look(path: Path, shard: int, manifest: Manifest) -> str | None:
    """What a look at names and sizes finds wrong with a shard; None when nothing."""
    for file, size in zip(shard_files(path, shard), manifest.bytes, strict=True):
        try:
            found = file.stat().st_size
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return f"{file.relative_to(path)} {'is missing' if missing else f'cannot be read: {error.strerror}'}"
        if found != size:
            return f"{file.relative_to(path)} has {found} bytes, and was written with {size}"
    if not manifest_path(path, shard).exists():
        return f"{manifest_path(path, shard).relative_to(path)} is missing"
    return None


def study(path: Path, shard: int, manifest: Manifest) -> str | None:
    """What reading every byte finds wrong with a shard; None when nothing."""
    wrong = look(path, shard, manifest)
    if wrong is not None:
        return wrong
    for file, digest in zip(shard_files(path, shard), manifest.sha256, strict=True):
        if sha256_file(file) != digest:
            return f"{file.relative_to(path)} is not what was written: its sha256 differs"
    if read_manifest(path, shard) != manifest:
        return f"{manifest_path(path, shard).relative_to(path)} is not the one that the store was finished with"
    return None


def read_header(path: Path) -> Header:
    """The header of a finished store; UserError for what is none, unfinished, of another version or broken."""
    file = path / "store.json"
    if not file.is_file():
        if (path / WORK).exists() or (path / "zarr.json").exists():
            raise UserError(
                f"{path} is an unfinished store: run the command that makes it again, it goes on from there."
            )
        raise UserError(f"{path} is no latent store: make one with `arlat data extract` or `arlat data synth`.")
    broken = f"{path} is broken: store.json is not what was written. Remove that file and run the command that made the store; it keeps whole shards."
    try:
        content = json.loads(file.read_bytes())
        version = content.get("format", content.get("schema")) if isinstance(content, dict) else None
    except (ValueError, RecursionError) as error:
        raise UserError(broken) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    if isinstance(version, (str, int)) and version != SCHEMA:
        raise UserError(f"{path} has the format {version!r}; this version reads {SCHEMA!r}. Make the store anew.")
    try:
        header = Header.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(broken) from error
    if header.sealed().checksum != header.checksum:
        raise UserError(broken)
    return header


def check_file(path: Path, header: Header, name: str) -> Path:
    """The path of one of the store's other files; UserError when its bytes are not what was written."""
    file = path / name
    wrong = "is missing" if not file.is_file() else None
    if wrong is None and sha256_file(file) != header.files.get(name):
        wrong = "is not what was written: its sha256 differs"
    if wrong is not None:
        raise UserError(f"{path} is broken: {name} {wrong}. See `arlat data verify {path}`.")
    return file
