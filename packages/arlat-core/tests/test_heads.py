"""Heads start at the data's scale, keep their slopes, and recover a known concentration."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.distributions import VonMisesLogNormal
from arlat_core.heads import HEADS, build_head
from arlat_kernels import vmf_kl_uniform, vmf_mean_resultant, vmf_nll, vmf_sample
from torch import Tensor, tensor


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_an_untrained_head_is_at_the_scale_of_the_data(name: str, scale: float) -> None:
    torch.manual_seed(0)
    head = build_head(name, 16, 8)
    head.calibrate(scale, 0.5)
    hidden = torch.randn(3, 500, 8, generator=torch.Generator().manual_seed(0))
    law = head(hidden)
    assert law.batch_shape == (3, 500)
    assert law.dim == 16
    length = law.sample(torch.Generator().manual_seed(1)).norm(dim=-1).detach().median()
    assert 0.6 < float(length) / scale < 1.7
    assert head.saturated_fraction(hidden) == 0


@pytest.mark.parametrize("name", sorted(HEADS))
def test_slopes_live_far_out_and_the_counter_sees_it(name: str) -> None:
    torch.manual_seed(0)
    head = build_head(name, 4, 8)
    hidden = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.linear.bias.fill_(-50.0)
    head(hidden).log_prob(torch.ones(20, 4)).sum().backward()
    slope = head.linear.bias.grad
    assert slope is not None
    assert torch.isfinite(slope).all()
    assert float(slope[-4:].abs().max()) > 0
    assert head.saturated_fraction(hidden) == 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="vmf_mixture"):
        build_head("vfm", 4, 8)
    with pytest.raises(UserError, match="no components, but 4"):
        build_head("vmf", 4, 8, 4)
    with pytest.raises(ValueError, match="scale 0"):
        build_head("vmf_mixture", 4, 8, 4).calibrate(0.0, 1.0)


def draws(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Slowly turning mean directions [n 512], and steps around them: κ = 800, lengths LogNormal(1, 0.5)."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    toward = torch.zeros(count, 512)
    toward[:, 0], toward[:, 1] = angle.cos(), angle.sin()
    length = torch.exp(1 + 0.5 * torch.randn(count, generator=generator))
    return toward, length[:, None] * vmf_sample(toward, torch.full((count,), 800.0), generator=generator)


def test_a_trained_head_recovers_a_known_concentration() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    steps, batch = 500, 128
    unit = math.sqrt(512)  # features of unit size, as a network's last norm gives
    toward, dx = draws(8192, generator)
    head = build_head("vmf", 512, 512)
    head.calibrate(float(dx.norm(dim=-1).median()), float(dx.norm(dim=-1).log().std()))
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(dx), (batch,), generator=generator)
        loss = -head(unit * toward[rows]).log_prob(dx[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    toward, dx = draws(4000, generator)
    with torch.no_grad():
        law = head(unit * toward)
    assert isinstance(law, VonMisesLogNormal)
    kappa = tensor(800.0, dtype=torch.float64)
    assert float(law.kappa.mean()) == pytest.approx(800, rel=0.03)
    cosine = torch.cosine_similarity(law.point(), dx, dim=-1).mean()
    assert float(cosine) == pytest.approx(float(vmf_mean_resultant(kappa, 512)), abs=0.01)
    blind = vmf_nll(law.direction, torch.zeros_like(law.kappa), dx)
    gain = (blind - vmf_nll(law.direction, law.kappa, dx)).mean()
    assert float(gain) == pytest.approx(float(vmf_kl_uniform(kappa, 512)), rel=0.02)
    assert float(law.mu.mean()) == pytest.approx(1, abs=0.05)
    assert head.saturated_fraction(unit * toward) < 0.01
