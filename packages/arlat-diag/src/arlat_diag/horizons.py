"""Horizons (SPEC §12.4): the first step at which a rollout is lost, by five meanings of lost.

Each is a first step in 1 … K, or "> K". A state's error at step s is that of the state entering step s.
Per start: median, quartiles. Per report (`curve_horizon`): read off a curve and its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from arlat_core.intervals import make_value
from arlat_core.types import Value
from torch import Tensor

from arlat_diag.geometry import NEIGHBOUR, Frames, Scale, nearest

PERCENTILE = 0.99  # of held-out truth's kNN distance: beyond it a state counts as off the manifold
QUARTILES = {"": 0.5, ".q25": 0.25, ".q75": 0.75}


def first_step(beyond: Tensor) -> Tensor:
    """First step (1 … K) at which `beyond` [n k] holds, K + 1 where it never does, [n] float64."""
    steps = beyond.shape[1]
    order = torch.arange(1, steps + 1, device=beyond.device).expand_as(beyond)
    return torch.where(beyond, order, steps + 1).amin(1).double()


def horizon_values(key: str, beyond: Tensor, speaker: Tensor, utterance: Tensor, seed: int) -> dict[str, Value]:
    """`key` (median over starts), `key`.q25 and `key`.q75 of the first step at which `beyond` [n k] holds.

    Where more than the share of starts never gets there the value is None with status "> K"; an end of the interval
    beyond K is None too.
    """
    steps = beyond.shape[1]
    found = first_step(beyond).numpy()
    return {
        key + suffix: censor(
            make_value(found, speaker.numpy(), utterance.numpy(), statistic=level, seed=seed, unit="steps"), steps
        )
        for suffix, level in QUARTILES.items()
    }


def censor(value: Value, steps: int) -> Value:
    """Turns "K + 1", which stands for never, into no number and the status "> K"."""
    kept = {
        name: None if number is None or number > steps else number
        for name, number in (("value", value.value), ("low", value.low), ("high", value.high))
    }
    beyond = value.value is not None and kept["value"] is None
    return value.model_copy(update={**kept, "status": f"> {steps}" if beyond else value.status})


def curve_horizon(curve: Sequence[Value], bar: float, falling: bool) -> Value:
    """First step at which a curve's interval reaches `bar`: from above when `falling`, else from below.

    One figure per report, not per start. Its interval runs from that step to the first at which the whole interval is
    past the bar: in between, the curve cannot be told from the bar.
    """
    steps = len(curve)

    def reached(value: Value, end: float | None) -> bool:
        return value.value is None or end is None or (end <= bar if falling else end >= bar)

    near = [reached(v, v.low if falling else v.high) for v in curve]
    far = [reached(v, v.high if falling else v.low) for v in curve]
    first = near.index(True) + 1 if any(near) else steps + 1
    last = far.index(True) + 1 if any(far) else steps + 1
    whole = Value(value=first, low=first, high=last, n=curve[0].n, unit="steps", resampled=curve[0].resampled)
    return censor(whole, steps)


@dataclass(frozen=True)
class Manifold:
    """Where true frames lie: standardised training frames [r d] and the kNN distance that 1 % of held-out frames exceed."""

    reference: Tensor
    scale: Scale
    bar: float

    def distance(self, z: Tensor) -> Tensor:
        """Standardised distance to the fifth nearest training frame, [...] for z [... d]; infinite for a state that is not finite."""
        x = self.scale.apply(z.cpu()).flatten(0, -2).float().to(self.reference.device)
        fine = torch.isfinite(x).all(-1)
        found = torch.full((len(x),), torch.inf, device=x.device)
        found[fine] = nearest(x[fine], self.reference, NEIGHBOUR)[0][:, -1]
        return found.view(z.shape[:-1]).cpu()

    def beyond(self, z: Tensor) -> Tensor:
        """Whether states [... d] are off the manifold, [...]."""
        return self.distance(z) > self.bar


def fit_manifold(
    train: Tensor,
    train_frames: Frames,
    held_out: Tensor,
    frames: Frames,
    scale: Scale,
    generator: torch.Generator,
    device: str,
    at_most: int = 20_000,
    queries: int = 2000,
) -> Manifold:
    """The manifold from frames z [T d] of both splits: at most `at_most` training frames, a bar from `queries` held-out ones."""
    reference = scale.apply(train[train_frames.choose(at_most, generator).row]).to(device)
    loose = Manifold(reference, scale, float("inf"))
    known = loose.distance(held_out[frames.choose(queries, generator).row])
    return Manifold(reference, scale, float(known.double().quantile(PERCENTILE)))
