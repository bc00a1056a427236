"""What a training leaves to read while it runs: RUN/metrics.jsonl, one JSON object a line; the same for TensorBoard; samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arlat_core.event_file import EventFile
from arlat_core.training_state import truncate_log
from torch import Tensor

from arlat_vae.samples import write_samples


class Record:
    """The record of the training under `out`, to which one process adds; the rows after `step`, where it goes on, are dropped."""

    def __init__(self, out: Path, step: int) -> None:
        self.out, self.path = out, out / "metrics.jsonl"
        truncate_log(self.path, step)
        self.events = EventFile(out / "tensorboard", step)

    def add(self, step: int, part: str, metrics: Mapping[str, float]) -> None:
        """Adds the figures of one step on one part of the data; what is not finite becomes null."""
        row = {"step": step, "part": part, **finite(metrics)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.events.add(step, {f"{part}/{name}": value for name, value in metrics.items()})

    def hear(self, step: int, audio: Tensor, decoded: Tensor, sample_rate: int) -> None:
        """Writes crops [b n], and what they are decoded to after `step` steps, under samples/."""
        write_samples(self.out / "samples" / f"{step:09d}", audio, decoded, sample_rate)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none where there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """None in place of what is not finite, which JSON has no word for."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
