"""Processes with known answers, as windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from arlat_core.distributions import FullGaussian
from arlat_core.types import LatentSpec
from arlat_data.windows import Windows
from arlat_dynamics import compiled
from arlat_dynamics.models.linear import Config, LinearModel
from torch import Tensor

torch.set_num_threads(1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_ar1(rho: float, utterances: int, frames: int, dim: int, seed: int) -> Tensor:
    """Stationary AR(1) with unit variance, [u t d]."""
    z = torch.randn(utterances, frames, dim, generator=seeded(seed))
    for t in range(1, frames):
        z[:, t] = rho * z[:, t - 1] + math.sqrt(1 - rho**2) * z[:, t]
    return z


def cut(z: Tensor, context: int = 8, horizon: int = 1, speakers: int = 20) -> Windows:
    """All windows of z [u t d]; utterance i is spoken by speaker i modulo `speakers`."""
    u, t, d = z.shape
    frame = torch.arange(context - 1, t - horizon)
    utterance = torch.arange(u).repeat_interleave(len(frame))
    frame = frame.repeat(u)
    return Windows(
        z=z.reshape(u * t, d),
        width=context,
        index=utterance * t + frame,
        step=horizon,
        kind="horizon",
        speaker=utterance % speakers,
        utterance=utterance,
        frame=frame,
    )


@pytest.fixture
def ar1() -> Callable[[float, int, int, int, int], Tensor]:
    return make_ar1


@pytest.fixture
def cut_windows() -> Callable[..., Windows]:
    return cut


@pytest.fixture
def exact_ar1() -> Callable[[float, int], LinearModel]:
    """The perfect model of AR(1): Δ ~ N((ρ − 1) z, (1 − ρ²) I)."""

    def make(rho: float, dim: int) -> LinearModel:
        model = LinearModel(Config(dim=dim, context=8, order=1, frames=1))
        model.weight.copy_((rho - 1) * torch.eye(dim))
        model.factor.copy_(math.sqrt(1 - rho**2) * torch.eye(dim))
        assert isinstance(model.distribution(torch.zeros(1, 8, dim)), FullGaussian)
        return model

    return make


@pytest.fixture
def spec() -> LatentSpec:
    return LatentSpec(codec="test", space="test", dim=3, frame_rate=12.5, sample_rate=0, fingerprint="0" * 16)


@pytest.fixture
def dynamo_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled steps are traced, and what was traced runs as it is: no compiler is waited for."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    programs = compiled.stepping
    programs.cache_clear()
    torch.compiler.reset()
    yield
    programs.cache_clear()
