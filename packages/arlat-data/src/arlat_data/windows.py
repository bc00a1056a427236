"""Windows: what a predictor sees, and the displacement that it is asked for.

With a the last frame of the context, the *horizon* form asks for Δ^(h) = z_{a+h} − z_a, and the *lag* form for the one
step z_{a+k} − z_{a+k−1} (frames up to z_{t−k}, for t = a + k). Horizon 1 and lag 1 are the same windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from arlat_core.config import UserError
from torch import Tensor

if TYPE_CHECKING:
    from arlat_data.store import Split

Kind = Literal["horizon", "lag"]
Slice = Literal["all", "high_energy", "medial"]
MEDIAL_PERCENT = 10  # of an utterance's frames are cut at each end, and never fewer than the context


@dataclass(frozen=True)
class Batch:
    """Gathered windows: context [n w d], target [n d], now [n d] (the last context frame), future [n d] (the last frame of the target)."""

    context: Tensor
    target: Tensor
    now: Tensor
    future: Tensor


@dataclass(frozen=True)
class Windows:
    """Windows as rows of a split, gathered only when asked for, so that memory is bounded by the caller.

    Attributes:
        z: All latents of the split, [T d].
        width: Frames w of the context.
        index: Row in `z` of the last context frame, [N] int64.
        step: Frames from there to the end of the target: the horizon h, or the lag k.
        kind: "horizon" or "lag".
        speaker: Position of the speaker among the split's sorted distinct speakers, [N] int64.
        utterance: Position of the utterance in the split, [N] int64.
        frame: Frame number of the last context frame within its utterance, [N] int64.
    """

    z: Tensor
    width: int
    index: Tensor
    step: int
    kind: Kind
    speaker: Tensor
    utterance: Tensor
    frame: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, rows: Tensor) -> Batch:
        """Copies the windows `rows` [n] (int64 positions, or a mask [N])."""
        at = self.index[rows]
        now, future = self.z[at], self.z[at + self.step]
        base = now if self.kind == "horizon" else self.z[at + self.step - 1]
        back = torch.arange(1 - self.width, 1, device=at.device)
        return Batch(self.z[at[:, None] + back], future - base, now, future)

    def all(self) -> Batch:
        """Copies every window: N·(w+3)·d numbers."""
        return self.gather(torch.arange(len(self), device=self.index.device))

    @property
    def context(self) -> Tensor:
        """[N w d], copied."""
        return self.all().context

    @property
    def target(self) -> Tensor:
        """Δ^(h), or the one step k frames ahead, [N d], copied."""
        base = self.index if self.kind == "horizon" else self.index + self.step - 1
        return self.z[self.index + self.step] - self.z[base]

    @property
    def now(self) -> Tensor:
        """The last context frame, [N d], copied."""
        return self.z[self.index]

    @property
    def future(self) -> Tensor:
        """The last frame of the target, [N d], copied."""
        return self.z[self.index + self.step]


def windows(
    split: Split,
    context: int,
    horizon: int,
    kind: Kind = "horizon",
    slice: Slice = "all",
    threshold: float | None = None,
) -> Windows:
    """Cuts a split into all its windows, in order of utterance and frame; none crosses an utterance.

    Args:
        split: The frames.
        context: Frames w that the predictor sees.
        horizon: h of the horizon form, or k of the lag form.
        kind: Which form.
        slice: "all"; "high_energy": the last context frame's energy is above `threshold`; "medial": the last context
            frame and the end of the target lie off the first and the last 10 % of the utterance, and w frames at least.
        threshold: Energy in dB that "high_energy" asks for; by default this split's median (`median_energy`). Give the
            training split's for one bar on both splits.

    Raises:
        UserError: For a size below 1, or high-energy windows of a store that has no energies.
    """
    if context < 1 or horizon < 1:
        raise UserError(f"A window needs context >= 1 and {kind} >= 1, but got {context} and {horizon}.")
    start, length = split.start.long(), split.length.long()
    cut = torch.full_like(length, context - 1)  # frames before the first one that may end a context
    end = length - horizon  # one past the last frame that may end a context
    if slice == "medial":
        off = torch.maximum((length * MEDIAL_PERCENT + 99) // 100, torch.full_like(length, context))
        cut, end = off, end - off
    count = (end - cut).clamp(min=0)
    utterance = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    first = count.cumsum(0) - count
    frame = torch.arange(len(utterance), device=count.device) - first[utterance] + cut[utterance]
    if slice == "high_energy":
        bar = median_energy(split) if threshold is None else threshold
        loud = split.energy[start[utterance] + frame] > bar
        utterance, frame = utterance[loud], frame[loud]
    place = {name: position for position, name in enumerate(sorted(set(split.speakers)))}
    speaker = torch.tensor([place[name] for name in split.speakers], dtype=torch.int64, device=count.device)
    return Windows(split.z, context, start[utterance] + frame, horizon, kind, speaker[utterance], utterance, frame)


def median_energy(split: Split) -> float:
    """Median energy in dB over the split's frames; raises UserError where it has none (a synthetic store)."""
    finite = split.energy[torch.isfinite(split.energy)]
    if len(finite) == 0:
        raise UserError(
            "This store has no frame energies, as synthetic ones have not: take the slice 'all' or 'medial' instead of 'high_energy'."
        )
    return float(finite.median())
