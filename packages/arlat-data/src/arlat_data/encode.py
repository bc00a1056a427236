"""Encoding the shards of a plan, in one process or in several: audio in, whole shards out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from arlat_core.config import UserError
from arlat_core.types import Codec
from torch import Tensor

from arlat_data.audio import AudioError, read_audio, resample
from arlat_data.codecs import build_codec
from arlat_data.store_layout import DType, Failed, Item
from arlat_data.store_writer import FloatArray, StoreWriter
from arlat_data.tree import printable

SILENCE_DB = -120.0


@dataclass(frozen=True)
class Task:
    """Everything a process needs to write shards: the plan and where the audio is."""

    path: Path
    codec: str
    device: str
    dtype: DType
    shard_frames: int
    batch_seconds: float
    items: tuple[Item, ...]
    files: dict[str, Path]
    folder: Path

    @cached_property
    def writer(self) -> StoreWriter:
        """The writer of the planned store."""
        spec = codec_of(self.codec, self.device).spec
        return StoreWriter(self.path, spec, self.items, self.dtype, self.shard_frames)


def load_audio(path: Path, rate: int) -> Tensor:
    """Mono samples [n] at `rate`; AudioError when the file cannot be read rightly."""
    audio = read_audio(path)
    return resample(audio.samples, audio.rate, rate)


def frame_energy(samples: Tensor, frames: int, hop: float) -> npt.NDArray[np.float32]:
    """Mean power of each frame in dB relative to full scale, [t]; digital silence is −120."""
    edges = np.minimum(np.round(np.arange(frames + 1) * hop).astype(np.int64), len(samples))
    power = np.concatenate([[0.0], np.cumsum(samples.double().square().numpy())])
    width = np.maximum(edges[1:] - edges[:-1], 1)
    mean = np.maximum(power[edges[1:]] - power[edges[:-1]], 0.0) / width
    level: npt.NDArray[np.float32] = np.maximum(10 * np.log10(np.maximum(mean, 1e-12)), SILENCE_DB).astype(np.float32)
    return level


@cache
def codec_of(text: str, device: str) -> Codec:
    """One codec per process."""
    return build_codec(text, device)


def batches(items: Sequence[Item], codec: Codec, seconds: float) -> Iterator[list[Item]]:
    """Utterances to encode together: of like length and only for a causal codec, where padding changes nothing before it."""
    if seconds <= 0 or not codec.spec.causal:
        yield from ([item] for item in items)
        return
    batch: list[Item] = []
    for item in sorted(items, key=lambda item: (item.samples, item.id)):
        if batch and (len(batch) + 1) * item.samples > seconds * codec.spec.sample_rate:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def encode_shard(task: Task, shard: int) -> int:
    """Encodes and writes one shard; what fails is listed in its manifest. Returns the number of utterances planned."""
    codec = codec_of(task.codec, task.device)
    rows: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    failed: list[Failed] = []

    def lose(item: Item, reason: str) -> None:
        shown = printable(os.path.relpath(task.files[item.id], task.folder))
        failed.append(Failed(id=item.id, path=shown, reason=reason))

    items = task.writer.of_shard(shard)
    with one_thread():
        for batch in batches(items, codec, task.batch_seconds):
            sounds = {}
            for item in batch:
                try:
                    sounds[item.id] = planned_audio(task.files[item.id], item, codec.spec.sample_rate)
                except AudioError as error:
                    lose(item, str(error))
            used = [item for item in batch if item.id in sounds]
            for item, z in zip(used, encode(codec, [sounds[item.id] for item in used], task.device), strict=True):
                z = z[: item.length]
                if not np.isfinite(z).all():
                    lose(item, f"the codec gave {int((~np.isfinite(z)).sum())} latents that are not finite")
                    continue
                hop = codec.spec.sample_rate / codec.spec.frame_rate
                rows[item.id] = (z, frame_energy(sounds[item.id], item.length, hop))
        task.writer.write_shard(shard, rows, failed)
    return len(items)


def encode(codec: Codec, sounds: Sequence[Tensor], device: str) -> npt.NDArray[np.float32]:
    """Latents [b t d] of sounds, padded with silence at their ends to the longest."""
    if not sounds:
        return np.zeros((0, 0, codec.spec.dim), np.float32)
    padded = torch.nn.utils.rnn.pad_sequence(list(sounds), batch_first=True)
    with torch.inference_mode():
        latents: npt.NDArray[np.float32] = codec.encode(padded.to(device)).float().cpu().numpy()
    return latents


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: the order of its sums, and so the bytes, then depend on no number of cores or workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def planned_audio(path: Path, item: Item, rate: int) -> Tensor:
    """The audio of an utterance, which must be as long as when it was planned."""
    sound = load_audio(path, rate)
    if len(sound) != item.samples:
        raise AudioError(f"it has {len(sound)} samples, and had {item.samples} when the lengths were planned")
    return sound


def run_shards(task: Task, shards: Sequence[int], workers: int) -> None:
    """Writes the shards, in this process or in several, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if workers == 1 or len(shards) < 2:
        for shard in track(shards, f"extracting {task.codec}", console=console, transient=True):
            encode_shard(task, shard)
        return
    with ProcessPoolExecutor(min(workers, len(shards)), get_context("spawn"), initializer=follow_parent) as pool:
        try:
            waiting = [
                pool.submit(encode_shard, part(task, shard, number), shard) for number, shard in enumerate(shards)
            ]
            for done in track(waiting, f"extracting {task.codec}", console=console, transient=True):
                done.result()
        except BrokenProcessPool as error:
            raise UserError("A worker was killed. Run the same command again; it goes on from here.") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def follow_parent() -> None:
    """Ends this worker when the process that started it ends, however that happens."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def part(task: Task, shard: int, number: int) -> Task:
    """What a worker needs for one shard; plain `cuda` is spread over the visible devices by `number`."""
    items = tuple(task.writer.of_shard(shard))
    count = torch.cuda.device_count() if task.device == "cuda" else 0
    return replace(
        task,
        items=items,
        files={item.id: task.files[item.id] for item in items},
        device=f"cuda:{number % count}" if count > 1 else task.device,
    )
