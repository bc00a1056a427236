"""The latent store: a zarr group on disk whose manifests, not zarr, say what is done."""

from __future__ import annotations

import itertools
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
from safetensors.numpy import load_file
from torch import Tensor

from arlat_data.splits import SPLITS
from arlat_data.store_layout import INDEX, Header, Item, check_file, look, read_header
from arlat_data.store_writer import StoreWriter, write_store

__all__ = ["Item", "LatentStore", "Split", "StoreWriter", "write_store"]


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
        total, dim = self.z.shape
        windows = self.z.contiguous().as_strided(
            (total - frames + 1, frames * dim), (dim, 1)
        )  # [T-frames+1, frames*d], overlapping
        if self.z.device.type != "cpu" or self.z.dtype != torch.float32:
            return windows.index_select(0, first.to(self.z.device)).view(count, frames, dim)
        # numpy asks for huge pages and torch does not: three times faster where a batch is some megabytes
        out = torch.from_numpy(np.empty((count, frames * dim), np.float32))
        return torch.index_select(windows, 0, first, out=out).view(count, frames, dim)


class LatentStore:
    """A finished store on disk. Opening checks the names and sizes of the shards and the index, not every byte."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header, self.spec = path, header, header.spec

    @classmethod
    def open(cls, path: Path | str) -> LatentStore:
        """Opens a finished store; UserError says what is missing, broken or unfinished."""
        path = Path(path)
        header = read_header(path)
        for shard, manifest in enumerate(header.shards):
            wrong = look(path, shard, manifest)
            if wrong is not None:
                raise UserError(f"{path} is broken: shard {shard}: {wrong}. See `arlat data verify {path}`.")
        for name in header.files:
            if name not in ("moments.safetensors", "truth.json"):  # large; checked when they are read
                check_file(path, header, name)
        return cls(path, header)

    @property
    def hash(self) -> str:
        """Hash of the contents: spec, index and every shard's sha256."""
        return self.header.hash

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return SPLITS

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Files that could not be read: path and reason."""
        return [left.model_dump() for left in self.header.skipped]

    @property
    def attributes(self) -> dict[str, Any]:
        """What the maker of the store noted."""
        return dict(self.header.attributes)

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The utterances in the order of their rows."""
        group = self._group
        columns = [np.asarray(group[name][:]).tolist() for name in INDEX] if self.header.files.get("id/c/0") else []
        return tuple(map(Item._make, zip(*columns, strict=True)))

    @cached_property
    def _by_id(self) -> dict[str, Item]:
        return {item.id: item for item in self.items}

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
        item = self.item(utterance)
        found = self._read("z", item.start, item.length).astype(np.float32)
        self._require_finite(found, f"{utterance!r} in shard {item.start // self.header.shard_frames}")
        return found

    def energy(self, utterance: str) -> npt.NDArray[np.float32]:
        """Frame energies [t] in dB; NaN in a synthetic store."""
        item = self.item(utterance)
        return self._read("energy", item.start, item.length).astype(np.float32)

    def _read(self, name: str, start: int, rows: int) -> npt.NDArray[Any]:
        """Rows of an array; UserError names the shard when its checksum or its file is wrong."""
        try:
            return np.asarray(self._group[name][start : start + rows])
        except (ValueError, RuntimeError, LookupError, OSError) as error:
            shard = start // self.header.shard_frames
            raise UserError(
                f"{self.path} is broken: shard {shard} of {name}: {error}. See `arlat data verify {self.path}`."
            ) from error

    def _require_finite(self, z: npt.NDArray[np.float32], where: str) -> None:
        # a shard that is lost after opening is read as the fill value
        if not np.isfinite(z).all():
            raise UserError(f"{self.path} is broken: {where} has no finite rows. See `arlat data verify {self.path}`.")

    @cached_property
    def _group(self) -> Any:
        return zarr.open_group(self.path, mode="r")

    @cached_property
    def moments(self) -> dict[str, npt.NDArray[np.float64]]:
        """mean [d] and covariance [d d] of the training frames, float64."""
        return load_file(check_file(self.path, self.header, "moments.safetensors"))

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
        if "truth.json" not in self.header.files:
            return None
        path = check_file(self.path, self.header, "truth.json")
        answers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return answers

    def load(self, split: str, device: str = "cpu") -> Split:
        """All frames of a split, read shard by shard into memory."""
        names = set(self.ids(split))
        wanted = [item for item in self.items if item.id in names]
        length = np.array([item.length for item in wanted], np.int64)
        start = np.cumsum(length) - length
        z = np.empty((int(length.sum()), self.spec.dim), np.float32)
        energy = np.empty(len(z), np.float32)
        at = 0
        for shard, some in itertools.groupby(wanted, lambda item: item.start // self.header.shard_frames):
            items = list(some)
            first, end = items[0].start, items[-1].start + items[-1].length
            block, loud = self._read("z", first, end - first), self._read("energy", first, end - first)
            began = at
            for item in items:
                here = slice(item.start - first, item.start - first + item.length)
                z[at : at + item.length], energy[at : at + item.length] = block[here], loud[here]
                at += item.length
            self._require_finite(z[began:at], f"shard {shard}")
        return Split(
            torch.from_numpy(z).to(device),
            torch.from_numpy(start),
            torch.from_numpy(length),
            [item.id for item in wanted],
            [item.speaker for item in wanted],
            torch.from_numpy(energy),
        )
