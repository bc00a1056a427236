"""Utterances of each speaker dealt into halves, so that two independent means can be taken of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from arlat_data.windows import Windows


def rank(cut: Windows, seed: int) -> Tensor:
    """Each frame's utterance counted among those of its speaker from 0, in an order drawn by seed, [N]."""
    utterances, first = np.unique(cut.utterance.numpy(), return_index=True)
    order = torch.randperm(len(utterances), generator=torch.Generator().manual_seed(seed)).numpy()
    seen: dict[int, int] = {}
    place = np.zeros(int(utterances.max()) + 1, dtype=np.int64)
    for utterance, speaker in zip(utterances[order].tolist(), cut.speaker.numpy()[first[order]].tolist(), strict=True):
        place[utterance] = seen.get(speaker, 0)
        seen[speaker] = place[utterance] + 1
    return torch.from_numpy(place)[cut.utterance]


def halves(at: Tensor, speaker: Tensor) -> Tensor:
    """Two halves of the utterances from their ranks, a mask [N]: a, b, b, a for one speaker and b, a, a, b for the next.

    So the first two utterances of a speaker fall into different halves, and so do the first two of every other utterance.
    """
    return ((at + at // 2 + speaker) % 2).bool()
