"""A model comes back as it was, for the latents that it was made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.types import LatentSpec
from arlat_data.windows import Windows
from arlat_dynamics import checkpoint
from arlat_dynamics.models.linear import LinearModel, fit_linear
from arlat_dynamics.models.mdn import ResidualMixture
from arlat_dynamics.train import split_speakers
from torch import Tensor

Ar1 = Callable[[float, int, int, int, int], Tensor]
Cut = Callable[..., Windows]


@pytest.fixture
def model(ar1: Ar1, cut_windows: Cut) -> ResidualMixture:
    windows = cut_windows(ar1(0.8, 20, 60, 3, 0))
    rows = split_speakers(windows, 0)
    linear = fit_linear(windows, *rows)
    return ResidualMixture.start(linear, windows, *rows, 3, torch.Generator().manual_seed(0), width=16)


def test_round_trip(model: ResidualMixture, spec: LatentSpec, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path / "m", spec)
    assert checkpoint.exists(tmp_path / "m")
    again = checkpoint.load(tmp_path / "m", spec, ResidualMixture)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.unroll(x)[1].log_prob(x), again.unroll(x)[1].log_prob(x))
    assert again.linear.order == model.linear.order
    assert again.linear.ridge == model.linear.ridge


def test_linear_round_trip(model: ResidualMixture, spec: LatentSpec, tmp_path: Path) -> None:
    checkpoint.save(model.linear, tmp_path, spec)
    assert torch.equal(checkpoint.load(tmp_path, spec, LinearModel).factor, model.linear.factor)
    with pytest.raises(UserError, match="ResidualMixture is needed"):
        checkpoint.load(tmp_path, spec, ResidualMixture)


def test_other_latents_are_refused(model: ResidualMixture, spec: LatentSpec, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path, spec)
    with pytest.raises(ValueError, match="frame_rate"):
        checkpoint.load(tmp_path, spec.model_copy(update={"frame_rate": 50.0}))


def test_flipped_bit_is_noticed(model: ResidualMixture, spec: LatentSpec, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path, spec)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="not the file that was written"):
        checkpoint.load(tmp_path, spec)


def test_half_a_model_is_none(model: ResidualMixture, spec: LatentSpec, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path, spec)
    (tmp_path / "model.json").unlink()
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(UserError, match="no finished model"):
        checkpoint.load(tmp_path, spec)
