"""True sequences that rollouts are trained on: a context and the K frames after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from arlat_core.config import UserError
from arlat_data.windows import Windows, windows
from torch import Tensor

from arlat_dynamics.train import spaced, split_speakers

if TYPE_CHECKING:
    from arlat_data.store import LatentStore, Split

    from arlat_dynamics.rollout_config import RolloutTrainConfig


@dataclass(frozen=True)
class Sequences:
    """True sequences of w + K frames: those to fit on, and those of other speakers to judge by."""

    windows: Windows
    fit_rows: Tensor
    validation_rows: Tensor
    length: int

    def frames(self, rows: Tensor) -> Tensor:
        """The sequences [n w+K d] at `rows`."""
        first = self.windows.index[rows] - (self.windows.width - 1)
        return self.windows.z[first[:, None] + torch.arange(self.length)]


def cut(store: LatentStore, config: RolloutTrainConfig, split: Split | None = None) -> Sequences:
    """Cuts the training split, which may be given, into sequences; raises UserError where there are too few."""
    found = windows(store.load("train") if split is None else split, config.context, config.steps)
    fit_rows, validation_rows = (
        split_speakers(found, config.seed) if len(found) > 1 else (torch.arange(0), torch.arange(0))
    )
    if min(len(fit_rows), len(validation_rows)) < 2:
        raise UserError(
            f"{store.path} has {len(found)} sequences of {config.context} + {config.steps} frames to train on. "
            "Give a store with more or longer utterances, or fewer steps."
        )
    kept = validation_rows[spaced(len(validation_rows), config.validation_rows)]
    return Sequences(found, fit_rows, kept, config.context + config.steps)
