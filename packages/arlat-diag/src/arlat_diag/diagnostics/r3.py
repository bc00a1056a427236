"""R3: what can be reached? Forecasts that no network makes, beside the rollouts of R1 (SPEC §5).

From R1's kind of starts, K steps ahead, by step s = 1 … K; the state entering step 1 is known to all.

| key | definition |
| --- | --- |
| r3.persistence.state_error[s] | ‖z_t − z_{t+s−1}‖: nothing moves |
| r3.climatology.state_error[s] | ‖mean − z_{t+s−1}‖ from s = 2 on: the training mean, whatever was seen |
| r3.analog.{state_error,cosine,magnitude_ratio}[s] | the mean of what followed the k training windows that are nearest to the context (in standardised frames), plus β_s times z_t's difference from their mean frame; β_s is fitted on training windows |

The linear VAR rolled out alike is `r1.var.D`; on a synthetic store `truth` of `r1.D` is the perfect model's curve.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.intervals import make_curve
from arlat_core.types import Count, Result, Value
from arlat_data.windows import Windows, windows
from pydantic import Field
from torch import Tensor

from arlat_diag.injection import Starts, choose_starts, cosine

if TYPE_CHECKING:
    from arlat_data.store import LatentStore

BLOCK = 2048  # training windows compared at a time
QUERIES = 500  # training windows behind the slopes β


class Config(BaseConfig):
    """Settings of R3."""

    context: int = Field(8, gt=0)
    """Frames that the analog sees."""
    steps: int = Field(16, gt=1)
    """K, steps ahead."""
    starts_per_utterance: int = Field(4, gt=0)
    """Random starts in each held-out utterance, where its length allows."""
    neighbours: int = Field(10, gt=0)
    """k, training windows behind one analog forecast."""
    seed: int = 0
    """Seed of the starts; R1 with the same seed and settings has the same ones."""


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs R3 on a store; nothing is trained."""
    progress("R3 ceilings")
    train, held_out = store.load("train"), store.load("eval")
    generator = torch.Generator().manual_seed(config.seed)
    starts = choose_starts(held_out, config.context, config.steps, config.starts_per_utterance, generator)
    past = windows(train, config.context, config.steps)
    settings = config.model_dump(mode="json")
    notes = [
        f"R3: {len(starts)} starts, {len(past)} training windows with {config.steps} frames after them; "
        f"{starts.too_short} of {len(held_out.ids)} held-out utterances are shorter than {config.context} + {config.steps} frames."
    ]
    if not len(starts) or not len(past):
        none = Value(
            value=None,
            n=Count(speakers=0, utterances=0, frames=0),
            status=f"not run: no utterance has {config.context} + {config.steps} frames",
        )
        return Result(values={"r3.persistence.state_error[1]": none}, notes=notes, settings=settings)
    mean = torch.as_tensor(store.mean, dtype=torch.float64)
    scale = torch.as_tensor(store.covariance, dtype=torch.float64).diagonal().clamp_min(1e-12).sqrt()
    found = analog(past, starts, mean, scale, min(config.neighbours, len(past)), device)
    values = states(starts, mean, config.seed) | steps_of(found, starts, config.seed)
    return Result(values=values, notes=notes, settings=settings)


def states(starts: Starts, mean: Tensor, seed: int) -> dict[str, Value]:
    """State errors of persistence and climatology."""
    entering = starts.entering.double()
    still = (entering[:, :1] - entering).norm(dim=-1)
    average = (mean - entering).norm(dim=-1)
    average[:, 0] = 0.0  # the state entering step 1 is known
    return curve("r3.persistence.state_error", still, starts, seed) | curve(
        "r3.climatology.state_error", average, starts, seed
    )


def steps_of(found: Tensor, starts: Starts, seed: int) -> dict[str, Value]:
    """The figures of forecast states found [n k d], which enter steps 2 … K and follow step K."""
    before = torch.cat([starts.entering[:, :1].double(), found[:, :-1]], 1)
    step, true = found - before, starts.displacement.double()
    length = true.norm(dim=-1)
    moving = length > 0.05 * length.median()
    error = (before - starts.entering.double()).norm(dim=-1)
    toward = torch.where(moving, cosine(step, true), 0.0)
    out = curve("r3.analog.state_error", error, starts, seed)
    out |= curve("r3.analog.cosine", toward, starts, seed, moving.double())
    return out | curve("r3.analog.magnitude_ratio", step.norm(dim=-1), starts, seed, length, "true steps")


def curve(
    key: str, numbers: Tensor, starts: Starts, seed: int, below: Tensor | None = None, unit: str = ""
) -> dict[str, Value]:
    """`key`[1 … K] of numbers [n k] with intervals."""
    values = make_curve(
        numbers.numpy(),
        starts.speaker.numpy(),
        starts.utterance.numpy(),
        denominator=None if below is None else below.numpy(),
        unit=unit,
        seed=seed,
    )
    return {f"{key}[{s}]": value for s, value in enumerate(values, 1)}


def analog(past: Windows, starts: Starts, mean: Tensor, scale: Tensor, count: int, device: str) -> Tensor:
    """Forecast states [n k d], float64: what followed the `count` nearest windows, and what is left of the difference.

    The mean of their frames s later, plus β_s times the start's difference from their mean frame; β_s in [0, 1] is the
    least-squares slope over training windows, each with its neighbours of other speakers.
    """
    steps = starts.truth.shape[1]

    def features(context: Tensor) -> Tensor:
        return ((context.double() - mean) / scale).flatten(1).float().to(device)

    some = torch.linspace(0, len(past) - 1, min(QUERIES, len(past))).round().long()
    own = nearest(past, features(past.gather(some).context), features, count, past.speaker[some])
    at, found = past.index[some], nearest(past, features(starts.prefix), features, count)
    apart = past.z[at].double() - mean_after(past, own, 0)
    apart_now = starts.entering[:, 0].double() - mean_after(past, found, 0)
    out = []
    for s in range(1, steps + 1):
        later = past.z[at + s].double() - mean_after(past, own, s)
        slope = float(((later * apart).sum() / apart.square().sum().clamp_min(1e-300)).clamp(0, 1))
        out.append(mean_after(past, found, s) + slope * apart_now)
    return torch.stack(out, 1)


def mean_after(past: Windows, rows: Tensor, steps: int) -> Tensor:
    """Mean of the frames `steps` after the windows at `rows` [n count], [n d] float64."""
    return past.z[past.index[rows] + steps].double().mean(1)


def nearest(
    past: Windows, wanted: Tensor, features: Callable[[Tensor], Tensor], count: int, speaker: Tensor | None = None
) -> Tensor:
    """Positions [n count] of the windows nearest to wanted [n q], those of `speaker` [n] apart; in blocks."""
    best = torch.full((len(wanted), count), torch.inf, device=wanted.device)
    rows = torch.zeros(len(wanted), count, dtype=torch.int64, device=wanted.device)
    for first in range(0, len(past), BLOCK):
        block = torch.arange(first, min(first + BLOCK, len(past)))
        distance = torch.cdist(wanted, features(past.gather(block).context))  # [n block]
        if speaker is not None:
            same = speaker[:, None] == past.speaker[block]
            distance = distance.masked_fill(same.to(distance.device), torch.inf)
        best, order = torch.cat([best, distance], 1).topk(count, dim=1, largest=False)
        rows = torch.cat([rows, block.to(rows.device).expand(len(wanted), -1)], 1).gather(1, order)
    return rows.cpu()
