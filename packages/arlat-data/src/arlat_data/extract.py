"""Speech to a latent store: lengths planned first, whole shards per task, the same bytes after any kill."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.run import run_directory
from arlat_core.types import Codec
from pydantic import Field
from torch import Tensor

from arlat_data.audio import read_audio, resample
from arlat_data.codecs import build_codec
from arlat_data.codecs._round_trip import require_round_trip
from arlat_data.containers import AudioError
from arlat_data.corpus import Corpus, Utterance, scan
from arlat_data.store import LatentStore
from arlat_data.store_writer import CHUNK_FRAMES, SHARD_FRAMES, Item, StoreWriter, place

SHARDS = 16  # a small corpus is cut into about so many, so that a kill costs little
SILENCE_DB = -120.0


class Config(BaseConfig):
    """Settings of `arlat data extract`."""

    audio: Path
    """Folder of speech: SPEAKER/…/file, or any folder with --speaker-pattern."""
    codec: str
    """NAME[:OPTION,…][=FOLDER], wrappers first: 'stack:8|mel', lyra=FOLDER. `arlat data codecs` lists names."""
    out: Path
    """The store to write; the same command goes on after a kill."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the stored latents."""
    seed: int = Field(0, ge=0)
    """Seed of the speaker split."""
    eval_fraction: float = Field(0.15, gt=0, lt=1)
    """Part of the speakers held out, where the folder has no train.txt and eval.txt."""
    speaker_pattern: str | None = None
    """Regular expression with a group `speaker`, searched in the relative path."""
    max_speakers: int | None = Field(None, gt=1)
    """Use so many speakers only."""
    min_seconds: float = Field(0.1, gt=0)
    """Shorter files are listed, not used."""
    batch_seconds: float = Field(0.0, ge=0)
    """Seconds of audio per batch, for causal codecs on a GPU; 0 encodes one file at a time."""
    workers: int = Field(1, gt=0)
    """Processes; each writes whole shards."""
    device: str = "cpu"
    """Where the codec runs; with several workers, `cuda` is spread over the visible devices."""
    max_bad: float = Field(0.1, ge=0, le=1)
    """Exit status 2 when a larger part of the files could not be used."""


@dataclass(frozen=True)
class Summary:
    """What an extraction did: files used and frames written, and what was left out with its reason."""

    utterances: int
    frames: int
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Task:
    """Everything a process needs to write shards: the plan and where the audio is."""

    path: Path
    codec: str
    device: str
    dtype: Literal["float16", "float32"]
    shard_frames: int
    batch_seconds: float
    items: tuple[Item, ...]
    files: dict[str, Path]


def settings_of(config: Config, corpus: Corpus, codec: Codec) -> dict[str, Any]:
    """What decides the bytes of the store; a run with other settings does not resume this one."""
    kept = (
        "codec",
        "dtype",
        "seed",
        "eval_fraction",
        "speaker_pattern",
        "max_speakers",
        "min_seconds",
        "batch_seconds",
    )
    chosen = config.model_dump(mode="json", include=set(kept))
    return chosen | {"corpus": corpus.hash, "fingerprint": codec.spec.fingerprint}


def plan(corpus: Corpus, codec: Codec) -> tuple[list[Item], int]:
    """Rows of every utterance from its length alone, and the shard size; both are functions of the corpus."""
    wanted = []
    for utterance in corpus.utterances:
        samples = resampled(utterance.samples, utterance.rate, codec.spec.sample_rate)
        wanted.append((utterance.id, utterance.speaker, utterance.split, codec.frames(samples), samples))
    total, longest = sum(row[3] for row in wanted), max(row[3] for row in wanted)
    size = max(math.ceil(total / SHARDS), longest, 4 * CHUNK_FRAMES)
    size = math.ceil(size / CHUNK_FRAMES) * CHUNK_FRAMES
    shard_frames = max(min(size, SHARD_FRAMES), math.ceil(longest / CHUNK_FRAMES) * CHUNK_FRAMES)
    return place(wanted, shard_frames), shard_frames


def resampled(samples: int, rate: int, to: int) -> int:
    """Samples after resampling, ceil(n · to / rate).

    >>> resampled(100, 48000, 16000)
    34
    """
    return -(-samples * to // rate)


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
    """Encodes and writes one shard; what fails is listed in its manifest. Returns the number of utterances done."""
    codec = codec_of(task.codec, task.device)
    writer = StoreWriter(task.path, task.items, codec.spec.dim, task.dtype, task.shard_frames)
    rows: dict[str, tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]] | None]] = {}
    failed = []
    items = writer.of_shard(shard)
    for batch in batches(items, codec, task.batch_seconds):
        sounds = {}
        for item in batch:
            try:
                sounds[item.id] = planned_audio(task.files[item.id], item, codec.spec.sample_rate)
            except AudioError as error:
                failed.append({"id": item.id, "path": str(task.files[item.id].name), "reason": str(error)})
        used = [item for item in batch if item.id in sounds]
        if not used:
            continue
        padded = torch.nn.utils.rnn.pad_sequence([sounds[item.id] for item in used], batch_first=True)
        with torch.inference_mode():
            latents = codec.encode(padded.to(task.device)).float().cpu().numpy()
        for item, z in zip(used, latents, strict=True):
            z = z[: item.length]
            if not np.isfinite(z).all():
                reason = f"the codec gave {int((~np.isfinite(z)).sum())} latents that are not finite"
                failed.append({"id": item.id, "path": str(task.files[item.id].name), "reason": reason})
                continue
            energy = frame_energy(sounds[item.id], item.length, codec.spec.sample_rate / codec.spec.frame_rate)
            rows[item.id] = (z, energy)
    writer.write_shard(shard, rows, failed)
    return len(items)


def planned_audio(path: Path, item: Item, rate: int) -> Tensor:
    """The audio of an utterance, which must be as long as when it was planned."""
    sound = load_audio(path, rate)
    if len(sound) != item.samples:
        raise AudioError(f"it has {len(sound)} samples, and had {item.samples} when the lengths were planned")
    return sound


def gate(corpus: Corpus, codec: Codec) -> dict[str, float]:
    """Measures encode-and-decode on a clip of speech, and refuses a codec that does not give it back."""
    spec = codec.spec
    for utterance in sorted(corpus.utterances, key=lambda u: -min(u.samples / u.rate, 3.0)):
        sound = load_audio(utterance.path, spec.sample_rate)[: 3 * spec.sample_rate]
        if float(sound.square().mean()) > 1e-6:
            break
    else:
        raise UserError("No file is loud enough to try the codec on: all are below −60 dB. Check the folder.")
    found = require_round_trip(codec, sound[None])
    return {"agreement": round(found.agreement, 4), "distance_db": round(found.distance_db, 2)}


def prepare(config: Config) -> tuple[Corpus, Codec]:
    """The corpus and the codec of a configuration."""
    corpus = scan(
        config.audio,
        config.speaker_pattern,
        config.seed,
        eval_fraction=config.eval_fraction,
        min_seconds=config.min_seconds,
        max_speakers=config.max_speakers,
        progress=sys.stderr.isatty(),
    )
    return corpus, codec_of(config.codec, config.device)


def task_of(config: Config, corpus: Corpus, codec: Codec) -> Task:
    """The plan of an extraction, a function of the corpus and the codec."""
    items, shard_frames = plan(corpus, codec)
    return Task(
        path=config.out,
        codec=config.codec,
        device=config.device,
        dtype=config.dtype,
        shard_frames=shard_frames,
        batch_seconds=config.batch_seconds,
        items=tuple(items),
        files={utterance.id: utterance.path for utterance in corpus.utterances},
    )


def remove_work(path: Path) -> None:
    """Removes the lock and the settings of a finished extraction."""
    shutil.rmtree(path / ".work")


def extract(config: Config) -> Summary:
    """Extracts a folder of speech into the store `config.out`, or goes on with it; returns what was done.

    Raises UserError when another process writes the store, or when it was begun with other settings.
    """
    corpus, codec = prepare(config)
    settings = settings_of(config, corpus, codec)
    if (config.out / "store.json").exists():
        check_finished(config.out, settings)
    else:
        with run_directory(config.out / ".work", settings):
            write(config, corpus, codec, settings)
    if (config.out / ".work").exists():  # a kill right after the last write leaves it
        remove_work(config.out)
    store = LatentStore.open(config.out)
    ids = [*store.ids("train"), *store.ids("eval")]
    skipped = tuple((row["path"], row["reason"]) for row in store.skipped)
    return Summary(len(ids), sum(store.length(name) for name in ids), skipped)


def write(config: Config, corpus: Corpus, codec: Codec, settings: dict[str, Any]) -> None:
    """Tries the codec, writes the shards that are missing and finishes the store."""
    trip = gate(corpus, codec)
    task = task_of(config, corpus, codec)
    writer = StoreWriter.create(config.out, task.items, codec.spec.dim, config.dtype, task.shard_frames)
    run_shards(task, [shard for shard in range(writer.shards) if not writer.done(shard)], config.workers)
    sweep(config.out)
    writer.finish(
        codec.spec,
        skipped=[{"path": skip.path, "reason": skip.reason} for skip in corpus.skipped],
        attributes={
            "settings": settings,
            "round_trip": trip,
            "notes": list(corpus.notes),
            "reading": file_notes(corpus.utterances),
        },
    )


def sweep(path: Path) -> None:
    """Removes what killed writers left: files that were never renamed to their final name."""
    for left in [*path.rglob("*.partial"), *path.rglob(".*.tmp")]:
        left.unlink()


def file_notes(utterances: Sequence[Utterance]) -> dict[str, str]:
    """What reading did to files that needed something done (downmixed, clipped, …)."""
    return {utterance.id: utterance.note for utterance in utterances if utterance.note}


def check_finished(path: Path, settings: dict[str, Any]) -> None:
    """Refuses a finished store that was made with other settings."""
    import json

    made = json.loads((path / "store.json").read_text(encoding="utf-8"))["attributes"].get("settings", {})
    if made != settings:
        different = sorted(key for key in settings.keys() | made.keys() if settings.get(key) != made.get(key))
        lines = "\n".join(f"  {key}: was {made.get(key)!r}, is {settings.get(key)!r}" for key in different)
        raise UserError(f"{path} is a store made with other settings:\n{lines}\nChoose another --out, or remove it.")


def run_shards(task: Task, shards: Sequence[int], workers: int) -> None:
    """Writes the shards, in this process or in several, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if workers == 1 or len(shards) < 2:
        for shard in track(shards, f"extracting {task.codec}", console=console, transient=True):
            encode_shard(task, shard)
        return
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=get_context("spawn")) as pool:
        tasks = [(spread(task, number), shard) for number, shard in enumerate(shards)]
        try:
            for done in track(
                [pool.submit(encode_shard, *pair) for pair in tasks],
                f"extracting {task.codec}",
                console=console,
                transient=True,
            ):
                done.result()
        except BrokenProcessPool as error:
            raise UserError("A worker was killed. Run the same command again; it goes on from here.") from error


def spread(task: Task, number: int) -> Task:
    """The task on the `number`-th visible CUDA device, where the device is plain `cuda`."""
    count = torch.cuda.device_count() if task.device == "cuda" else 0
    if count < 2:
        return task
    return Task(**(task.__dict__ | {"device": f"cuda:{number % count}"}))


def report(config: Config, summary: Summary) -> int:
    """Prints what was done and left out; the exit status."""
    print(f"{config.out}: {summary.utterances} utterances, {summary.frames} frames of {config.codec}.")
    if summary.skipped:
        print(f"{len(summary.skipped)} files were left out:")
        for path, reason in summary.skipped:
            print(f"  {path}: {reason}")
    share = len(summary.skipped) / max(1, len(summary.skipped) + summary.utterances)
    if share > config.max_bad:
        print(
            f"{100 * share:.0f} % of the files could not be used; --max-bad allows {100 * config.max_bad:.0f} %.",
            file=sys.stderr,
        )
        return 2
    return 0


def main(arguments: list[str], prog: str) -> int:
    """`arlat data extract --audio DIR --codec NAME[=FOLDER] --out STORE`."""
    config = parse(Config, arguments, prog, "Extracts latents of a folder of speech into a store.")
    return report(config, extract(config))
