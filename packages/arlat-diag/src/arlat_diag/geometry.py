"""Frames of a split as points: which follow each other, how far apart they lie, which are nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from arlat_data.store import Split

NEIGHBOUR = 5  # the kNN distance is the distance to the fifth nearest frame


@dataclass(frozen=True)
class Frames:
    """The frames of a split, without the gaps between utterances: each [n], in the order of the split.

    Attributes:
        row: Row in the split's z.
        utterance: Index of the utterance.
        speaker: Index of the speaker among the split's sorted names.
        left: Frames that follow in the same utterance; 0 for its last frame.
    """

    row: Tensor
    utterance: Tensor
    speaker: Tensor
    left: Tensor

    def followed(self, lag: int) -> Frames:
        """The frames that have a frame `lag` rows later in their own utterance."""
        return self.take(self.left >= lag)

    def take(self, index: Tensor) -> Frames:
        """The frames at `index`, a mask or positions."""
        return Frames(self.row[index], self.utterance[index], self.speaker[index], self.left[index])

    def choose(self, at_most: int, generator: torch.Generator) -> Frames:
        """At most `at_most` of the frames, drawn without replacement and kept in order."""
        if len(self.row) <= at_most:
            return self
        return self.take(torch.randperm(len(self.row), generator=generator)[:at_most].sort().values)


def frames_of(split: Split) -> Frames:
    """Every frame of a split."""
    length, start = split.length.cpu(), split.start.cpu()
    utterance = torch.repeat_interleave(torch.arange(len(length)), length)
    within = torch.arange(len(utterance)) - torch.repeat_interleave(length.cumsum(0) - length, length)
    names = sorted(set(split.speakers))
    speaker = torch.tensor([names.index(name) for name in split.speakers], dtype=torch.int64)[utterance]
    return Frames(start[utterance] + within, utterance, speaker, length[utterance] - within - 1)


@dataclass(frozen=True)
class Scale:
    """Per-dimension standardisation with the training moments; dimensions that never vary are left out."""

    mean: Tensor
    std: Tensor
    kept: Tensor

    def apply(self, z: Tensor) -> Tensor:
        """z [... d] -> [... kept], float32."""
        return (z[..., self.kept] - self.mean) / self.std


def scale_of(mean: Tensor, covariance: Tensor) -> Scale:
    """The scale from moments mean [d] and covariance [d d]; raises ValueError where no dimension varies."""
    std = covariance.diagonal().clamp_min(0).sqrt()
    kept = (std > 1e-6 * std.max()).nonzero()[:, 0]
    if not len(kept):
        raise ValueError(
            "Every training frame of this store is the same: there is no dimension that varies, so nothing to measure."
        )
    return Scale(mean[kept].float(), std[kept].float(), kept)


def step_lengths(z: Tensor, frames: Frames) -> tuple[Tensor, Frames]:
    """‖z_{t+1} − z_t‖ [n] in raw units, and the frames t that have a successor."""
    at = frames.followed(1)
    return (z[at.row + 1] - z[at.row]).norm(dim=-1), at


def strangers(z: Tensor, frames: Frames, pairs: int, generator: torch.Generator) -> tuple[Tensor, Frames]:
    """Distances [n ≤ pairs] of random frames of different utterances, in raw units, and the first frame of each pair."""
    if not len(frames.row):
        return torch.zeros(0), frames
    one = torch.randint(len(frames.row), (pairs,), generator=generator)
    two = torch.randint(len(frames.row), (pairs,), generator=generator)
    apart = frames.utterance[one] != frames.utterance[two]
    first, second = frames.take(one[apart]), frames.take(two[apart])
    return (z[first.row] - z[second.row]).norm(dim=-1), first


def nearest(query: Tensor, reference: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances [q count] to the nearest rows of `reference` [r d] of each `query` [q d], and their indices.

    The search is in float32; the distances are then taken anew from the differences, since ‖a‖² + ‖b‖² − 2ab loses
    the digits of near pairs.
    """
    if len(reference) < count:
        raise ValueError(f"{count} neighbours were asked for among {len(reference)} frames: give more training frames.")
    distances, indices = [], []
    square = reference.square().sum(-1)
    block = max(1, int(2e7 // len(reference)))
    for part in torch.split(query, block):
        index = (square - 2 * part @ reference.mT).topk(count, dim=-1, largest=False).indices
        distance = torch.stack([(part - reference[index[:, k]]).norm(dim=-1) for k in range(count)], -1)
        order = distance.argsort(dim=-1)
        distances.append(distance.gather(-1, order))
        indices.append(index.gather(-1, order))
    if not distances:
        return query.new_zeros(0, count), torch.zeros(0, count, dtype=torch.int64, device=query.device)
    return torch.cat(distances), torch.cat(indices)
