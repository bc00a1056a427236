"""Whether sampled trajectories look like true ones: nearest neighbours, Fréchet distance, spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from arlat_core.intervals import clusters
from arlat_core.types import Value
from torch import Tensor

from arlat_diag.ensemble import power
from arlat_diag.frechet import FRAMES_PER_DIMENSION, decibel, equal_halves, frechet, jackknife, speaker_halves

if TYPE_CHECKING:
    from arlat_diag.anatomy import Config, Reference

SPLITS = 4  # random halvings of the speakers


def likeness(prefix: str, some: Tensor, line: Tensor, reference: Reference, config: Config) -> dict[str, Value]:
    """The figures of a few draws [n draws k d] of each start, and of the mean power [n f] of all its draws."""
    truth = reference.starts.truth.double()
    out = neighbours(prefix, some, truth, reference)
    true_line = power((truth - reference.mean) / reference.std.clamp_min(1e-12))
    found = reference.curve(f"{prefix}.spectrum", line, true_line)
    out |= {key: decibels(value) for key, value in found.items()}
    return out | by_halves(prefix, some @ reference.axes, truth @ reference.axes, line, true_line, reference, config)


def neighbours(prefix: str, some: Tensor, truth: Tensor, reference: Reference) -> dict[str, Value]:
    """Distance to the fifth nearest training frame, of samples beside that of the true frames of the same step."""
    own = reference.manifold.distance(some).double().mean(1)
    true = reference.manifold.distance(truth).double()
    best = [value.value for value in reference.curve("truth", true).values()]
    out = reference.curve(f"{prefix}.knn", own, ceiling=best)
    return out | reference.curve(f"{prefix}.knn_ratio", own, true, ceiling=1.0)


def decibels(value: Value) -> Value:
    """A ratio of powers in dB; 0 is what a perfect model would show."""
    if value.value is None:
        return value.model_copy(update={"unit": "dB"})
    numbers = {name: getattr(value, name) for name in ("value", "low", "high")}
    told = {
        name: None if number is None or number <= 0 else float(decibel(torch.tensor(number), torch.tensor(1.0)))
        for name, number in numbers.items()
    }
    return value.model_copy(update=told | {"unit": "dB", "ceiling": 0.0})


def by_halves(
    prefix: str, some: Tensor, truth: Tensor, line: Tensor, true_line: Tensor, reference: Reference, config: Config
) -> dict[str, Value]:
    """What compares sets of frames: samples from one half of the speakers with true frames of the other, true with true.

    Draws [n draws k p] and truth [n k p] on principal axes; power [n f] of draws and truth.
    """
    starts, steps = reference.starts, truth.shape[1]
    unit = starts.speaker if int(starts.speaker.min()) < int(starts.speaker.max()) else starts.utterance
    splits = [speaker_halves(unit, torch.Generator().manual_seed(config.seed + 8 + i)) for i in range(SPLITS)]
    enough = FRAMES_PER_DIMENSION * truth.shape[-1] // 2 + 2
    fine = torch.isfinite(some).all(-1).all(1).all(0)  # [k]
    safe = torch.where(torch.isfinite(some), some, 0.0)

    def statistic(rows: Tensor) -> Tensor:
        found = []
        for first in splits:
            halves = equal_halves(rows, first, enough)
            if halves is None:
                return torch.full((3 * steps + 3,), torch.nan, dtype=torch.float64)
            one, two = halves
            crossed = ((one, two), (two, one))
            draws = [frechet(safe[a, i], truth[b]) for i in range(some.shape[1]) for a, b in crossed]
            lines = [decibel(line[a].mean(0), true_line[b].mean(0)) for a, b in crossed]
            real = frechet(truth[one], truth[two])
            apart = decibel(true_line[one].mean(0), true_line[two].mean(0))
            rms = torch.stack([torch.stack(lines).square().mean().sqrt(), apart.square().mean().sqrt()])
            found.append(torch.cat([torch.stack(draws).mean(0), real, rms]))
        own, real, rms = torch.split(torch.stack(found).mean(0), [steps, steps, 2])
        own = torch.where(fine, own, torch.nan)
        return torch.cat([own, real, own / real, real.mean()[None], rms])

    group = clusters(starts.speaker.numpy(), starts.utterance.numpy())
    parts = jackknife(statistic, torch.from_numpy(group.index))
    keys = [f"{prefix}.{name}[{s}]" for name in ("frechet", "truth", "frechet_ratio") for s in range(1, steps + 1)]
    keys += [f"{prefix}.{name}" for name in ("frechet_halves", "spectral_distance", "spectral_halves")]
    value, low, high = (part.clamp_min(0).tolist() for part in parts)  # none of them can be below 0
    out = {}
    for i, key in enumerate(keys):
        numbers = {name: x[i] if x[i] == x[i] else None for name, x in (("value", value), ("low", low), ("high", high))}
        status = "ok" if numbers["value"] is not None else "not finite, or too few starts for two halves"
        out[key] = Value(**numbers, n=group.n, resampled=group.resampled, status=status)
    for s in range(1, steps + 1):
        real = out.pop(f"{prefix}.truth[{s}]").value
        out[f"{prefix}.frechet[{s}]"] = out[f"{prefix}.frechet[{s}]"].model_copy(update={"ceiling": real})
        out[f"{prefix}.frechet_ratio[{s}]"] = out[f"{prefix}.frechet_ratio[{s}]"].model_copy(update={"ceiling": 1.0})
    halves = {"unit": "dB", "ceiling": out[f"{prefix}.spectral_halves"].value}
    out[f"{prefix}.spectral_distance"] = out[f"{prefix}.spectral_distance"].model_copy(update=halves)
    return out
