"""The latent store: a zarr group on disk whose manifests, not zarr, say what is done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from arlat_core.config import UserError
from arlat_core.files import sha256_file
from arlat_core.types import LatentSpec, fingerprint
from safetensors.numpy import load_file
from torch import Tensor

from arlat_data.store_writer import SCHEMA, Item, StoreWriter, manifest_path, read_manifest, shard_files, write_store

__all__ = ["Item", "LatentStore", "Split", "StoreWriter", "write_store"]

SPLITS = ("train", "eval")


@dataclass(frozen=True)
class Split:
    """All frames of one split in memory: z [T d] float32; start and length [U] int64; energy [T] in dB, NaN where unknown."""

    z: Tensor
    start: Tensor
    length: Tensor
    ids: list[str]
    speakers: list[str]
    energy: Tensor

    def crops(self, frames: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` random crops [count frames d]: an utterance by the number of its crops, then a place in it."""
        room = (self.length - frames + 1).clamp(min=0)
        if int(room.sum()) == 0:
            raise UserError(
                f"No utterance has {frames} frames; the longest has {int(self.length.max())}. Ask for shorter crops."
            )
        ends = room.cumsum(0)
        draw = torch.randint(int(ends[-1]), (count,), generator=generator)
        utterance = torch.searchsorted(ends, draw, right=True)
        first = self.start[utterance] + draw - (ends[utterance] - room[utterance])
        return self.z[first[:, None] + torch.arange(frames)]


def fault(path: Path, shard: int, expected: list[str]) -> str | None:
    """What a cheap look finds wrong with a shard: its manifest, its files and their sizes; None when nothing."""
    if not manifest_path(path, shard).exists():
        return "its manifest is missing"
    manifest = read_manifest(path, shard)
    if manifest["sha256"] != expected:
        return "its manifest is not the one that the store was finished with"
    for file, size in zip(shard_files(path, shard), manifest["bytes"], strict=True):
        if not file.exists():
            return f"{file.relative_to(path)} is missing"
        if file.stat().st_size != size:
            return f"{file.relative_to(path)} has {file.stat().st_size} bytes, and was written with {size}"
    return None


class LatentStore:
    """A finished store on disk. Opening checks the manifests and the sizes of the shards, not every byte."""

    def __init__(self, path: Path, header: dict[str, Any], items: list[Item]) -> None:
        self.path, self.header, self.items = path, header, items
        self.spec = LatentSpec.model_validate(header["spec"])
        self._by_id = {item.id: item for item in items}

    @classmethod
    def open(cls, path: Path | str) -> LatentStore:
        """Opens a finished store; UserError says what is missing, broken or unfinished."""
        path = Path(path)
        if not (path / "store.json").exists():
            state = (
                "is an unfinished store: run the command that makes it again"
                if (path / "zarr.json").exists()
                else ("is no latent store: make one with `arlat data extract` or `arlat data synth`")
            )
            raise UserError(f"{path} {state}.")
        header = json.loads((path / "store.json").read_text(encoding="utf-8"))
        if header.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {header.get('schema')!r}; this version reads {SCHEMA}. Extract it anew."
            )
        for shard, expected in enumerate(header["sha256"]):
            wrong = fault(path, shard, expected)
            if wrong:
                raise UserError(f"{path} is broken: shard {shard}: {wrong}. See `arlat data verify {path}`.")
        if sha256_file(path / "utterances.json") != header["utterances"]:
            raise UserError(f"{path} is broken: utterances.json is not what was written. Extract it anew.")
        items = [Item(**row) for row in json.loads((path / "utterances.json").read_text(encoding="utf-8"))]
        return cls(path, header, items)

    @property
    def hash(self) -> str:
        """Hash of the contents: spec, utterances and every shard's sha256."""
        return fingerprint({key: self.header[key] for key in ("spec", "sha256", "utterances")})

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return SPLITS

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Files that could not be read: path and reason."""
        return list(self.header.get("skipped", []))

    @property
    def attributes(self) -> dict[str, Any]:
        """What the maker of the store noted."""
        return dict(self.header.get("attributes", {}))

    def ids(self, split: str) -> list[str]:
        """Utterances of a split, in order."""
        if split not in SPLITS:
            raise UserError(f"{split!r} is no split. Splits: {', '.join(SPLITS)}.")
        return [item.id for item in self.items if item.split == split]

    def item(self, utterance: str) -> Item:
        """Where an utterance lies; UserError for an unknown id."""
        if utterance not in self._by_id:
            raise UserError(f"{self.path} has no utterance {utterance!r}.")
        return self._by_id[utterance]

    def speaker(self, utterance: str) -> str:
        """Speaker of an utterance."""
        return self.item(utterance).speaker

    def length(self, utterance: str) -> int:
        """Frames of an utterance."""
        return self.item(utterance).length

    def frames(self, utterance: str) -> npt.NDArray[np.float32]:
        """Latents [t d] float32 of one utterance."""
        return self._rows("z", self.item(utterance))

    def energy(self, utterance: str) -> npt.NDArray[np.float32]:
        """Frame energies [t] in dB; NaN in a synthetic store."""
        return self._rows("energy", self.item(utterance))

    def _rows(self, name: str, item: Item) -> npt.NDArray[np.float32]:
        array = self._group[name]
        return np.asarray(array[item.start : item.start + item.length], dtype=np.float32)

    @cached_property
    def _group(self) -> Any:
        return zarr.open_group(self.path, mode="r")

    @cached_property
    def moments(self) -> dict[str, npt.NDArray[np.float64]]:
        """mean [d] and covariance [d d] of the training frames, float64."""
        return load_file(self.path / "moments.safetensors")

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of the training frames [d]."""
        return self.moments["mean"]

    @property
    def covariance(self) -> npt.NDArray[np.float64]:
        """Covariance of the training frames [d d]."""
        return self.moments["covariance"]

    @property
    def truth(self) -> dict[str, Any] | None:
        """Known answers of a synthetic store."""
        path = self.path / "truth.json"
        if not path.exists():
            return None
        answers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return answers

    def load(self, split: str, device: str = "cpu") -> Split:
        """All frames of a split, read shard by shard."""
        wanted = [item for item in self.items if item.split == split]
        rows = self.header["shard_frames"]
        z, energy, start, at = [], [], [], 0
        for shard in sorted({item.start // rows for item in wanted}):
            block = np.asarray(self._group["z"][shard * rows : (shard + 1) * rows], dtype=np.float32)
            loud = np.asarray(self._group["energy"][shard * rows : (shard + 1) * rows], dtype=np.float32)
            for item in (item for item in wanted if item.start // rows == shard):
                here = item.start - shard * rows
                z.append(block[here : here + item.length])
                energy.append(loud[here : here + item.length])
                start.append(at)
                at += item.length
        lengths = [item.length for item in wanted]
        latents = np.concatenate(z) if z else np.zeros((0, self.spec.dim), np.float32)
        if not np.isfinite(latents).all():
            raise UserError(
                f"{self.path} has rows that are not finite in split {split!r}: run `arlat data verify {self.path}`."
            )
        return Split(
            torch.from_numpy(latents).to(device),
            torch.tensor(start, dtype=torch.int64),
            torch.tensor(lengths, dtype=torch.int64),
            [item.id for item in wanted],
            [item.speaker for item in wanted],
            torch.from_numpy(np.concatenate(energy)) if energy else torch.zeros(0),
        )
