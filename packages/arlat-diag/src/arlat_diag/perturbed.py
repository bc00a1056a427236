"""Modes E and F of the injection diagnostic: true frames with noise on them, at every step anew (SPEC §12.5).

E puts noise of the size of the free rollout's error where that rollout's error was: what D does worse than E is due to
the structure of its error, not to its size. F puts noise of a given size on the whole context: the model's sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

import torch
from arlat_core.intervals import make_value
from arlat_core.types import Value
from arlat_dynamics.base import Dynamics
from torch import Tensor

from arlat_diag.injection import Curves, Starts, pieces, score

EPSILONS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of mode F, in median lengths of a true step


def noise_like(error: Tensor, starts: Starts, generator: torch.Generator) -> Tensor:
    """Noise [n w+k−1 d] of random direction: none on the context, ‖noise‖ = error [n k] on the frames entering the steps."""
    n, _, d = starts.sequence.shape
    direction = torch.nn.functional.normalize(torch.randn(n, error.shape[1], d, generator=generator), dim=-1)
    entering = direction * error.to(direction)[..., None]  # the first is 0: step 1 starts from the truth
    return torch.cat([torch.zeros(n, starts.width - 1, d), entering], 1)


def noise_of(size: float, starts: Starts, generator: torch.Generator) -> Tensor:
    """Gaussian noise [n w+k−1 d] with E‖noise‖² = size² on every frame."""
    n, frames, d = starts.sequence.shape
    noise: Tensor = torch.randn(n, frames - 1, d, generator=generator)
    return noise * (size / math.sqrt(d))


def perturbed(model: Dynamics, starts: Starts, noise: Tensor, device: str, block: int = 128) -> Curves:
    """Scores the deterministic step from true frames + noise [n w+k−1 d]; nothing that the model says is fed back."""
    parts = []
    with torch.no_grad():
        for part, added in zip(pieces(starts, block), torch.split(noise, block), strict=True):
            seen = part.sequence[:, :-1] + added
            _, law = model.unroll(seen.to(device))
            law = law.slice((slice(None), slice(part.width - 1, None)))
            log_prob = law.log_prob(part.displacement.to(device))
            parts.append(score(seen[:, part.width - 1 :], law.point(), log_prob, part))
    return Curves(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Curves)})


def sensitivity(
    model: Dynamics,
    starts: Starts,
    moving: Tensor,
    baseline: Tensor,
    step: float,
    generator: torch.Generator,
    device: str,
    seed: int,
) -> dict[str, Value]:
    """r1.F.{cosine,magnitude_ratio,dnll_b5,excess_nll}[ε], over all steps of all starts.

    Args:
        model: What is asked.
        starts: From where.
        moving: Frames that have a cosine, [n k].
        baseline: B5's NLL of the true displacements, [n k].
        step: Median ‖Δ‖, the unit of ε.
        generator: Of the noise.
        device: Where the model is.
        seed: Of the intervals.
    """
    clean = perturbed(model, starts, torch.zeros_like(starts.sequence[:, :-1]), device)
    steps = clean.nll.shape[1]
    speaker, utterance = (part.repeat_interleave(steps).numpy() for part in (starts.speaker, starts.utterance))
    length = starts.displacement.double().norm(dim=-1)

    def value(numbers: Tensor, below: Tensor | None = None, **known: float | str | None) -> Value:
        denominator = None if below is None else below.double().flatten().numpy()
        flat = numbers.double().flatten().numpy()
        return make_value(flat, speaker, utterance, denominator=denominator, seed=seed, **known)

    def of(curves: Curves) -> Mapping[str, Value]:
        return {
            "cosine": value(torch.where(moving, curves.cosine, 0.0), moving),
            "magnitude_ratio": value(curves.predicted_length, length, unit="true steps"),
            "dnll_b5": value(curves.nll - baseline, unit="nats/frame", floor=0.0),
            "excess_nll": value(curves.nll - clean.nll, unit="nats/frame", floor=0.0),
        }

    best = {name: found.value for name, found in of(clean).items()}
    out: dict[str, Value] = {}
    for epsilon in EPSILONS:
        found = of(perturbed(model, starts, noise_of(epsilon * step, starts, generator), device))
        for name, figure in found.items():
            ceiling = None if name == "excess_nll" else best[name]
            out[f"r1.F.{name}[{epsilon:g}]"] = figure.model_copy(update={"ceiling": ceiling})
    return out
