"""Speech to a latent store: lengths planned first, whole shards per task, the same bytes after any kill."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arlat_core.config import UserError, parse
from arlat_core.types import Codec
from pydantic import Field
from torch import Tensor

from arlat_data.audio import AudioError
from arlat_data.codecs._round_trip import require_round_trip
from arlat_data.corpus import Corpus, Speech, Utterance, left_out
from arlat_data.encode import Task, codec_of, one_thread, run_shards
from arlat_data.encode import load_audio as load_audio
from arlat_data.store import LatentStore
from arlat_data.store_layout import CHUNK_FRAMES, SHARD_FRAMES, WORK, DType, Item, Left, place
from arlat_data.store_writer import StoreWriter, claim, settle

SHARDS = 16  # a small corpus is cut into about so many, so that a kill costs little


class Config(Speech):
    """Settings of `arlat data extract`."""

    codec: str
    """NAME[:OPTION,…][=FOLDER], wrappers first: 'stack:8|mel', lyra=FOLDER. `arlat data codecs` lists names."""
    out: Path
    """The store to write; the same command goes on after a kill."""
    dtype: DType = "float16"
    """Type of the stored latents."""
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
    device = config.device.partition(":")[0]
    return chosen | {"corpus": corpus.hash, "fingerprint": codec.spec.fingerprint, "device": device}


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


def gate(corpus: Corpus, codec: Codec) -> dict[str, float]:
    """Measures encode-and-decode on up to 3 s of speech, and refuses a codec that does not give it back."""
    spec = codec.spec
    for utterance in sorted(corpus.utterances, key=lambda u: (-min(u.samples / u.rate, 3.0), u.id)):
        try:
            sound = load_audio(utterance.path, spec.sample_rate)[: 3 * spec.sample_rate]
        except AudioError:  # it is read again, and then listed with its reason
            continue
        if len(sound) and float(sound.square().mean()) > 1e-6:
            break
    else:
        raise UserError("No file is loud enough to try the codec on: all are below −60 dB. Check the folder.")
    with one_thread(), torch.inference_mode():
        check_shapes(codec, sound)
        found = require_round_trip(codec, sound[None])
    return {"agreement": round(found.agreement, 4), "distance_db": round(found.distance_db, 2)}


def check_shapes(codec: Codec, sound: Tensor) -> None:
    """Raises UserError when a codec's latents or audio have other shapes than it promises, or are not finite."""
    spec, frames = codec.spec, codec.frames(len(sound))
    latents = codec.encode(sound[None])
    if tuple(latents.shape) != (1, frames, spec.dim):
        raise UserError(f"{spec.codec} promised latents {(1, frames, spec.dim)} and gave {tuple(latents.shape)}.")
    decoded = codec.decode(latents)
    samples = round(frames * spec.sample_rate / spec.frame_rate)
    if tuple(decoded.shape) != (1, samples):
        raise UserError(f"{spec.codec} promised audio {(1, samples)} and gave {tuple(decoded.shape)}.")
    for what, value in (("latents", latents), ("audio", decoded)):
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{spec.codec} gave {what} that are not finite. Its weights may be damaged.")


def prepare(config: Config) -> tuple[Corpus, Codec]:
    """The corpus and the codec of a configuration."""
    return config.scan(), codec_of(config.codec, config.device)


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
        folder=config.audio,
    )


def extract(config: Config) -> Summary:
    """Extracts a folder of speech into the store `config.out`, or goes on with it; returns what was done.

    Raises UserError when another process writes the store, when it was begun with other settings, when the codec does
    not give back what it is given, or when the disk is full.
    """
    if (config.out / "store.json").exists():
        store = LatentStore.open(config.out)
        check_finished(store, settings_of(config, *prepare(config)))
        shutil.rmtree(config.out / WORK, ignore_errors=True)  # a kill right after the last write leaves it
    else:
        with claim(config.out):
            write(config)
        store = LatentStore.open(config.out)
    frames = sum(item.length for item in store.items)
    return Summary(len(store.items), frames, tuple((row["path"], row["reason"]) for row in store.skipped))


def write(config: Config) -> None:
    """Tries the codec, writes the shards that are missing and finishes the store."""
    corpus, codec = prepare(config)
    settings = settings_of(config, corpus, codec)
    trip = gate(corpus, codec)
    task = task_of(config, corpus, codec)
    settle(config.out, settings)
    writer = StoreWriter.create(config.out, codec.spec, task.items, config.dtype, task.shard_frames, settings)
    run_shards(task, [shard for shard in range(writer.shards) if not writer.done(shard)], config.workers)
    writer.finish(
        skipped=[Left(path=skip.path, reason=skip.reason) for skip in corpus.skipped],
        attributes={
            "settings": settings,
            "round_trip": trip,
            "notes": list(corpus.notes),
            "reading": file_notes(corpus.utterances),
        },
    )


def file_notes(utterances: Sequence[Utterance]) -> dict[str, str]:
    """What reading did to files that needed something done (downmixed, clipped, …)."""
    return {utterance.id: utterance.note for utterance in utterances if utterance.note}


def check_finished(store: LatentStore, settings: dict[str, Any]) -> None:
    """Refuses a finished store that was made with other settings."""
    made = store.attributes.get("settings", {})
    if made != settings:
        different = sorted(key for key in settings.keys() | made.keys() if settings.get(key) != made.get(key))
        lines = "\n".join(f"  {key}: was {made.get(key)!r}, is {settings.get(key)!r}" for key in different)
        raise UserError(
            f"{store.path} is a store made with other settings:\n{lines}\nChoose another --out, or remove it."
        )


def report(config: Config, summary: Summary) -> int:
    """Prints what was done and left out; the exit status."""
    print(f"{config.out}: {summary.utterances} utterances, {summary.frames} frames of {config.codec}.")
    print(left_out(summary.skipped), end="")
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
