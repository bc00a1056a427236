"""The VAR recovers what is there and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from arlat_core.testing import check_dynamics
from arlat_data.windows import Windows
from arlat_dynamics.covariance import ledoit_wolf
from arlat_dynamics.models.linear import LinearModel, fit_linear
from arlat_dynamics.train import split_speakers
from torch import Tensor

Ar1 = Callable[[float, int, int, int, int], Tensor]
Cut = Callable[..., Windows]


def excess(model: LinearModel, held_out: Windows, rho: float) -> float:
    """NLL above the true law's, in nats per frame, on held-out AR(1) windows of horizon 1."""
    batch = held_out.all()
    noise = (batch.future - rho * batch.now).square().sum(-1) / (1 - rho**2)
    dim = batch.now.shape[-1]
    true = 0.5 * dim * math.log(2 * math.pi * (1 - rho**2)) + 0.5 * float(noise.mean())
    return -float(model.distribution(batch.context).log_prob(batch.target).mean()) - true


@pytest.mark.parametrize("dim", [4, 64])
def test_white_noise_has_order_0(ar1: Ar1, cut_windows: Cut, dim: int) -> None:
    windows = cut_windows(ar1(0.0, 40, 150, dim, 0))
    model = fit_linear(windows, *split_speakers(windows, 0))
    assert model.order == 0
    assert abs(excess(model, cut_windows(ar1(0.0, 20, 150, dim, 1)), 0.0)) < 0.02
    assert torch.allclose(model.weight, -torch.eye(dim), atol=0.01)  # the next frame is the mean, whatever this one is


@pytest.mark.parametrize(("rho", "dim"), [(0.25, 64), (0.8, 8)])
def test_ar1_is_recovered(ar1: Ar1, cut_windows: Cut, rho: float, dim: int) -> None:
    windows = cut_windows(ar1(rho, 40, 150, dim, 0))
    model = fit_linear(windows, *split_speakers(windows, 0))
    newest = torch.diagonal(model.weight[:dim]) + 1
    assert float(newest.mean()) == pytest.approx(rho, abs=0.02)
    assert float(excess(model, cut_windows(ar1(rho, 20, 150, dim, 1)), rho)) < 0.03


def test_horizon_4_of_ar1(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 40, 150, 8, 0), horizon=4)
    model = fit_linear(windows, *split_speakers(windows, 0))
    assert torch.diagonal(model.factor).square().mean().item() == pytest.approx(1 - 0.8**8, abs=0.03)


def test_coupled_dimensions_and_odd_units_are_recovered(cut_windows: Cut) -> None:
    generator = torch.Generator().manual_seed(0)
    turn = 0.9 * torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    z = torch.randn(30, 150, 3, generator=generator)
    for t in range(1, 150):
        z[:, t] = z[:, t - 1] @ turn.mT + 0.3 * z[:, t]
    unit = torch.tensor([1e-3, 1.0, 1e3])
    windows = cut_windows(z * unit + torch.tensor([5.0, -100.0, 1e4]))
    model = fit_linear(windows, *split_speakers(windows, 0))
    fitted = (model.weight[:3] / unit * unit[:, None]).mT + torch.eye(3)
    assert torch.allclose(fitted, turn, atol=0.03)
    assert torch.allclose(torch.diagonal(model.factor) / unit, torch.full((3,), 0.3), atol=0.02)


def stacked(ar1: Ar1, utterances: int, seed: int) -> Tensor:
    """Eight channels of AR(1), ρ = 0.98, eight of their frames to a frame: neighbours move together, [u 40 64]."""
    return ar1(0.98, utterances, 320, 8, seed).reshape(utterances, 40, 64)


def stacked_nll(now: Tensor, future: Tensor, rho: float = 0.98, horizon: int = 4) -> Tensor:
    """NLL [n] of the true law of a stacked frame, `horizon` frames after a stacked frame."""
    last, ahead = now.reshape(-1, 8, 8)[:, -1], future.reshape(-1, 8, 8)
    before = torch.cat([last[:, None], ahead[:, :-1]], 1)
    power = torch.tensor([rho ** (8 * horizon - 7)] + [rho] * 7)[:, None]
    variance = 1 - power**2
    return 0.5 * ((ahead - power * before).square() / variance + (2 * math.pi * variance).log()).sum((-1, -2))


def test_few_windows_of_stacked_frames_are_shrunk_towards_their_mean(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(stacked(ar1, 60, 0), horizon=4)
    model = fit_linear(windows, *split_speakers(windows, 0))
    batch = cut_windows(stacked(ar1, 60, 5), horizon=4).all()
    nll = -model.distribution(batch.context).log_prob(batch.target)
    # A ridge towards each dimension's own past alone is 2.4 nats from the true law.
    assert float((nll - stacked_nll(batch.now, batch.future)).mean()) < 1.9


def test_constant_dimension_does_no_harm(ar1: Ar1, cut_windows: Cut) -> None:
    z = ar1(0.8, 20, 100, 4, 0)
    z[..., 2] = 7.0
    windows = cut_windows(z)
    model = fit_linear(windows, *split_speakers(windows, 0))
    batch = windows.all()
    assert torch.isfinite(model.distribution(batch.context).log_prob(batch.target)).all()


def test_fewer_frames_than_parameters(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 6, 20, 64, 0), speakers=3)
    model = fit_linear(windows, *split_speakers(windows, 0))
    assert excess(model, cut_windows(ar1(0.8, 20, 50, 64, 1)), 0.8) < 0.15 * 64


def test_ledoit_wolf_matches_its_definition() -> None:
    x = torch.randn(60, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 40)
    covariance = ledoit_wolf(x)
    centred = x.double() - x.double().mean(0)
    assert torch.allclose(covariance.diagonal(), centred.square().mean(0))
    sample = centred.mT @ centred / 60
    off = ~torch.eye(40, dtype=torch.bool)
    ratio = (covariance / sample)[off]
    assert ratio.std() < 1e-6
    assert 0 <= float(ratio.mean()) < 0.3  # independent dimensions: nearly all of the rest is noise


def test_contract(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 20, 100, 4, 0))
    check_dynamics(fit_linear(windows, *split_speakers(windows, 0), orders=(2,)))


def test_too_few_windows_are_refused(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 2, 20, 4, 0))
    with pytest.raises(ValueError, match="at least 2 windows"):
        fit_linear(windows, torch.arange(1), torch.arange(5))
