"""A few figures of a trained model on held-out rollouts: what a sweep's table compares (the battery's R2 measures more)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from arlat_core.intervals import make_curve
from arlat_core.types import Value
from arlat_data.windows import windows
from torch import Tensor

from arlat_dynamics.objectives import reached
from arlat_dynamics.rollout import Rollout, injections, rollout
from arlat_dynamics.train import spaced

if TYPE_CHECKING:
    from arlat_data.store import LatentStore

    from arlat_dynamics.base import Dynamics

DRAWS = 16
ROWS = 512  # held-out sequences at most
BLOCK = 128


def rollout_figures(
    model: Dynamics, store: LatentStore, context: int, steps: int, longest: float | None, seed: int
) -> dict[str, Value]:
    """Figures on held-out sequences of `context` + `steps` frames, with intervals over speakers.

    ratio[s] = Σ‖Δ̂_s‖/Σ‖Δ_s‖, cosine[s] and nll[s] (nats/frame) of the mean rollout (D); teacher.* of the same model at true
    windows (A); energy[s]: energy score of 16 sampled rollouts; the fractions of steps shortened to the length `longest` and of
    saturated parameters.
    """
    cut = windows(store.load("eval"), context, steps)
    if len(cut) == 0:
        return {}
    rows = spaced(len(cut), ROWS)
    first = cut.index[rows] - (context - 1)
    frames = cut.z[first[:, None] + torch.arange(context + steps)]
    device = next(iter(model.buffers())).device
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for at, part in enumerate(torch.split(frames, BLOCK)):
            for name, numbers in scores(model, part.to(device), context, longest, seed + at).items():
                parts.setdefault(name, []).append(numbers.double().cpu())
    every = {name: torch.cat(pieces) for name, pieces in parts.items()}
    where = (cut.speaker[rows].numpy(), cut.utterance[rows].numpy())
    out: dict[str, Value] = {}
    for name, below in RATIOS.items():
        divisor = None if below is None else every[below].numpy()
        values = make_curve(every[name].numpy(), *where, denominator=divisor, seed=seed)
        out |= {f"{name}[{s}]": value for s, value in enumerate(values, 1)}
    return out


RATIOS: dict[str, str | None] = {
    "ratio": "length",
    "cosine": None,
    "nll": None,
    "energy": None,
    "teacher.ratio": "length",
    "teacher.cosine": None,
    "teacher.nll": None,
    "clipped": None,
    "saturated": None,
}


def scores(model: Dynamics, frames: Tensor, context: int, longest: float | None, seed: int) -> dict[str, Tensor]:
    """Numbers per sequence and step, [n k], of frames [n w+k d]."""
    prefix, truth = frames[:, :context], frames[:, context:]
    steps = truth.shape[1]
    true_step = torch.cat([truth[:, :1] - prefix[:, -1:], truth.diff(dim=1)], 1)
    free = rollout(model, prefix, truth, injections("D", steps), longest=longest)
    taught = rollout(model, prefix, truth, injections("A", steps), longest=longest)
    out = {"length": true_step.norm(dim=-1), "clipped": free.clipped.float()}
    out |= along("", free, true_step) | along("teacher.", taught, true_step)
    drawn = rollout(
        model,
        prefix.repeat_interleave(DRAWS, 0),
        truth.repeat_interleave(DRAWS, 0),
        injections("S", steps),
        sample=True,
        generator=torch.Generator().manual_seed(seed),
        longest=longest,
        scored=False,
    )
    state = reached(drawn).view(len(frames), DRAWS, steps, -1).transpose(1, 2)  # [n k draws d]
    apart = torch.cdist(state, state).sum((-1, -2)) / (2 * DRAWS * (DRAWS - 1))
    out["energy"] = (state - truth[:, :, None]).norm(dim=-1).mean(-1) - apart
    saturated = torch.tensor([model.saturated_fraction(one[None]) for one in prefix])
    return out | {"saturated": saturated[:, None].expand(-1, steps)}


def along(prefix: str, rolled: Rollout, true_step: Tensor) -> dict[str, Tensor]:
    """Length, cosine and NLL of every step, each [n k]."""
    cosine = torch.cosine_similarity(rolled.step, true_step, dim=-1, eps=1e-30)
    return {
        f"{prefix}ratio": rolled.step.norm(dim=-1),
        f"{prefix}cosine": cosine,
        f"{prefix}nll": -rolled.log_prob,
    }
