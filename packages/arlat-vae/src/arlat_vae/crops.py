"""Speech as one flat file of samples beside the run, and training crops each of which is a function of (seed, step, row, attempt).

Crops are loudness-safe: one that is nearly silent is drawn anew, and the random gain never takes a peak beyond full scale.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.files import sync_folder, write_json
from arlat_data.audio import read_audio, resample
from arlat_data.corpus import Utterance
from pydantic import Field
from torch import Tensor

FULL_SCALE = 32767
ATTEMPTS = 8  # draws of a crop before the loudest of them is taken
Stream = Literal["crops", "noise", "held_out", "ar", "predictor", "teacher"]
STREAMS: tuple[Stream, ...] = ("crops", "noise", "held_out", "ar", "predictor", "teacher")
Progress = Callable[[int, int], None]


class CropConfig(BaseConfig):
    """What a training crop is."""

    frames: int = Field(default=12, gt=0)
    """Length in latent frames."""
    min_level_db: float = -50.0
    """Root-mean-square level in dB of full scale below which a crop is drawn anew, at most 8 times."""
    gain_db: float = Field(default=6.0, ge=0)
    """Largest random gain, up or down; less where the peak would leave full scale."""


@dataclass(frozen=True)
class Clips:
    """Clips one after the other: 16-bit samples [N], and where each begins and how long it is [clips]."""

    samples: np.ndarray
    start: Tensor
    length: Tensor

    def read(self, clip: int, first: int, count: int) -> Tensor:
        """Samples first … first + count of a clip [count] in [-1, 1]; zeros stand after its end."""
        begin, end = first, min(first + count, int(self.length[clip]))
        offset = int(self.start[clip])
        found = torch.from_numpy(self.samples[offset + begin : offset + end].astype(np.float32) / FULL_SCALE)
        return torch.nn.functional.pad(found, (0, count - len(found)))


def prepare(
    utterances: list[Utterance], sample_rate: int, path: Path, progress: Progress = lambda done, planned: None
) -> Clips:
    """Reads `path`.npy, or decodes and resamples the utterances into it first; `path`.json is written last."""
    samples, index = path.with_suffix(".npy"), path.with_suffix(".json")
    if not index.is_file():
        lengths = [-(-utterance.samples * sample_rate // utterance.rate) for utterance in utterances]
        temporary = path.with_suffix(".tmp")
        flat = np.lib.format.open_memmap(temporary, "w+", np.int16, (sum(lengths),))  # type: ignore[no-untyped-call]
        start = 0
        for number, (utterance, length) in enumerate(zip(utterances, lengths, strict=True)):
            audio = read_audio(utterance.path)
            sound = resample(audio.samples, audio.rate, sample_rate)
            flat[start : start + length] = (sound * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE).numpy()
            start += length
            progress(number + 1, len(utterances))
        flat.flush()
        os.replace(temporary, samples)
        sync_folder(path.parent)
        write_json(index, {"length": lengths})
    known = torch.tensor(json.loads(index.read_text(encoding="utf-8"))["length"])
    return Clips(np.load(samples, mmap_mode="r"), known.cumsum(0) - known, known)


def counter(seed: int, step: int, stream: Stream, row: int = 0, attempt: int = 0) -> torch.Generator:
    """A generator for what `stream` draws for one row of a step, the same on any number of processes.

    `attempt` counts how often training has gone back, so that the steps after it meet other draws.
    """
    words = np.random.SeedSequence((seed, step, STREAMS.index(stream), row, attempt)).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def crop(clips: Clips, samples: int, config: CropConfig, generator: torch.Generator) -> Tensor:
    """One crop [samples]: every place of every clip is as likely as any other; short clips are filled with zeros."""
    places = (clips.length - samples).clamp(min=0) + 1
    ends = places.cumsum(0)
    best, best_level = torch.zeros(samples), -1.0
    for _ in range(ATTEMPTS):
        place = int(torch.randint(int(ends[-1]), (), generator=generator))
        clip = int(torch.searchsorted(ends, place, right=True))
        found = clips.read(clip, place - int(ends[clip] - places[clip]), samples)
        level = float(found.square().mean().sqrt())
        if level > best_level:
            best, best_level = found, level
        if best_level >= 10 ** (config.min_level_db / 20):
            break
    gain = 10 ** (config.gain_db / 20 * float(2 * torch.rand((), generator=generator) - 1))
    return best * min(gain, 1 / max(float(best.abs().max()), 1e-9))


def batch(clips: Clips, samples: int, config: CropConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """One crop for each generator [b samples]."""
    return torch.stack([crop(clips, samples, config, generator) for generator in generators])
