"""P4 returns the closed forms of white noise, AR(1) and a rotation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from arlat_core.types import Value
from arlat_diag.diagnostics import p4


def split(dim: int, rho: float, utterances: int, frames: int, seed: int, scale: torch.Tensor | None = None) -> Any:
    """AR(1) frames of two utterances per speaker, with a NaN row after each utterance, as gaps in a store."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(utterances, frames + 1, dim, generator=generator)
    for t in range(1, frames):
        z[:, t] = rho * z[:, t - 1] + (1 - rho**2) ** 0.5 * z[:, t]
    z[:, frames] = torch.nan
    return SimpleNamespace(
        z=(z if scale is None else z * scale).reshape(-1, dim),
        start=torch.arange(utterances) * (frames + 1),
        length=torch.full((utterances,), frames),
        ids=[str(i) for i in range(utterances)],
        speakers=[str(i // 2) for i in range(utterances)],
    )


def store(dim: int, rho: float, scale: torch.Tensor | None = None, frames: int = 60, utterances: int = 60) -> Any:
    train, held_out = (split(dim, rho, utterances, frames, seed, scale) for seed in (1, 2))
    x = train.z[~train.z[:, 0].isnan()].double()
    return SimpleNamespace(
        load=lambda name: train if name == "train" else held_out,
        mean=x.mean(0),
        covariance=torch.cov(x.T, correction=0).reshape(dim, dim),
        spec=SimpleNamespace(dim=dim, frame_rate=50.0),
        truth={"values": {"p4.rho[1]": {"value": rho}}},
    )


def agrees(value: Value, truth: float, tolerance: float = 0.02) -> bool:
    assert value.low is not None
    assert value.high is not None
    assert value.value is not None
    return value.low <= truth <= value.high or abs(value.value - truth) <= tolerance * abs(truth)


@pytest.mark.parametrize("rho", [0.0, 0.25, 0.8])
def test_ar1_closed_forms(rho: float) -> None:
    dim = 32
    result = p4.run(store(dim, rho), p4.Config(queries=300, reference=1500), Path())
    values = result.values
    assert sum(agrees(values[f"p4.rho[{k}]"], rho**k) for k in range(1, 17)) >= 14
    assert agrees(values["p4.curvature"], -(1 - rho) / 2)
    assert agrees(values["p4.step_median"], (2 * (1 - rho) * dim) ** 0.5 * (1 - 1 / (9 * dim)) ** 1.5)
    assert agrees(values["p4.distance_median"], (2 * dim) ** 0.5 * (1 - 2 / (9 * dim)) ** 1.5)
    assert agrees(values["p4.effective_dim"], dim)
    window = np.hanning(33)[:32]
    blur = np.correlate(window, window, "full")[31:] / (window**2).sum()
    lag = np.arange(1, 32)
    for i in range(17):
        power = 1 + 2 * (blur[1:] * rho**lag * np.cos(2 * np.pi * i * lag / 32)).sum()
        assert abs((values[f"p4.spectrum[{i}]"].value or 0) / power - 1) < 0.05
    assert result.settings["spectrum_hz"][16] == 25.0
    assert values["p4.rho[1]"].truth == rho
    assert values["p4.rho[1]"].resampled == "speakers"


def test_effective_dimension_of_few_frames_is_not_biased() -> None:
    scale = torch.linspace(0.2, 2, 48)
    truth = float(scale.square().sum() ** 2 / scale.pow(4).sum())
    small = store(48, 0.9, scale, frames=20, utterances=50)
    found = p4.run(small, p4.Config(queries=50, reference=200), Path()).values
    plain = float(small.covariance.trace() ** 2 / small.covariance.square().sum())
    assert plain < 0.85 * truth
    assert agrees(found["p4.effective_dim"], truth)
    assert (found["p4.effective_dim"].value or 0) > 0.9 * truth
    for share in (90, 95, 99):
        known = found[f"p4.directions_{share}"]
        assert known.low is not None
        assert known.high is not None
        assert known.value is not None
        assert known.low <= known.value <= known.high <= known.low + 6


def test_lipschitz_tells_a_rotation_from_noise() -> None:
    noise = p4.run(store(4, 0.0), p4.Config(queries=300, reference=3000), Path()).values["p4.lipschitz.median"]
    assert agrees(noise, noise.floor or 0, 0.1)
    turning = store(2, 0.0)
    for name, phase in (("train", 0.0), ("eval", 0.3)):
        part = turning.load(name)
        angle = 0.5 * torch.arange(61) + phase + torch.arange(60)[:, None]
        part.z[:] = torch.stack([angle.cos(), angle.sin()], -1).reshape(-1, 2)
    found = p4.run(turning, p4.Config(queries=300, reference=3000), Path()).values
    assert found["p4.lipschitz.median"].value == pytest.approx(1, abs=0.02)
    assert (found["p4.lipschitz.median"].floor or 0) > 50
    assert found["p4.curvature"].value == pytest.approx(np.cos(0.5), abs=1e-3)
    assert found["p4.rho[3]"].value == pytest.approx(np.cos(1.5), abs=0.02)


def test_short_utterances_give_a_status_and_not_a_crash() -> None:
    values = p4.run(store(3, 0.5, frames=6), p4.Config(queries=50, reference=100), Path()).values
    assert values["p4.rho[5]"].value is not None
    assert values["p4.rho[6]"].value is None
    assert values["p4.rho[6]"].status == "no frames"
    assert values["p4.spectrum[0]"].status == "no frames"


def test_dead_dimensions_are_left_out_and_said() -> None:
    scale = torch.ones(5)
    scale[2] = 0
    result = p4.run(store(5, 0.5, scale), p4.Config(queries=50, reference=100), Path())
    assert agrees(result.values["p4.rho[1]"], 0.5)
    assert result.values["p4.directions_99"].value == 4
    assert "1 of 5 dimensions never vary" in result.notes[0]
