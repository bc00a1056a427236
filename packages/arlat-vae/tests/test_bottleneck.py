"""The KL against its closed form and against draws, its conversions, and what each law does."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_vae.bottleneck import (
    BottleneckConfig,
    GaussianPosterior,
    PointPosterior,
    active_units,
    build_bottleneck,
    kl_report,
)
from torch import Tensor
from torch.distributions import Normal, kl_divergence


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_kl_is_the_closed_form() -> None:
    mean, sigma = noise(2, 5, 3), noise(2, 5, 3).exp()
    expected = kl_divergence(Normal(mean, sigma), Normal(torch.zeros(3), torch.ones(3)))
    torch.testing.assert_close(GaussianPosterior(mean, sigma).kl(), expected)
    standard = GaussianPosterior(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    assert float(standard.kl()) == 0.0


def test_kl_is_the_mean_of_log_ratios_of_draws() -> None:
    mean, sigma = torch.full((1, 200_000, 1), 0.7), torch.full((1, 200_000, 1), 0.3)
    law = GaussianPosterior(mean, sigma)
    z = law.sample(torch.Generator().manual_seed(0))
    ratio = Normal(mean, sigma).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    assert float(ratio.mean()) == pytest.approx(float(law.kl().mean()), abs=4 * float(ratio.std()) / math.sqrt(2e5))
    assert float(z.mean()) == pytest.approx(0.7, abs=4 * 0.3 / math.sqrt(2e5))
    assert float(z.std()) == pytest.approx(0.3, rel=0.01)


def test_draws_honour_the_generator_and_have_gradients() -> None:
    mean, sigma = noise(1, 4, 2).requires_grad_(), torch.full((1, 4, 2), 0.5, requires_grad=True)
    law = GaussianPosterior(mean, sigma)
    first, second = (law.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    first.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))  # type: ignore[arg-type]
    torch.testing.assert_close(sigma.grad, ((first - mean) / sigma).detach())


@pytest.mark.parametrize("raw", [-200.0, -30.0, 0.0, 200.0])
def test_sigma_is_positive_and_the_kl_finite_at_the_extremes(raw: float) -> None:
    bottleneck = build_bottleneck(4, BottleneckConfig(dim=2))
    with torch.no_grad():
        bottleneck.raw_sigma.bias.fill_(raw)  # type: ignore[union-attr]
    law = bottleneck(torch.zeros(1, 3, 4))
    assert (law.sigma >= 1e-4 * 0.999).all()
    law.kl().mean().backward()
    assert all(torch.isfinite(value.grad).all() for value in bottleneck.parameters())


@pytest.mark.parametrize("kind", ["gaussian", "sigma"])
def test_sigma_starts_where_it_is_told(kind: str) -> None:
    bottleneck = build_bottleneck(4, BottleneckConfig(kind=kind, dim=2, sigma=0.3))
    torch.testing.assert_close(bottleneck(torch.zeros(1, 3, 4)).sigma, torch.full((1, 3, 2), 0.3))


def test_a_single_sigma_is_one_number_fixed_or_learned() -> None:
    fixed = build_bottleneck(4, BottleneckConfig(kind="sigma", dim=2))
    learned = build_bottleneck(4, BottleneckConfig(kind="sigma", dim=2, learn_sigma=True))
    assert fixed(noise(2, 3, 4)).sigma.unique().numel() == 1
    assert {name for name, value in fixed.named_parameters() if value.requires_grad} == {"mean.weight", "mean.bias"}
    learned(noise(2, 3, 4)).kl().mean().backward()
    assert learned.raw_sigma.grad != 0


def test_a_plain_autoencoder_draws_its_mean_and_has_no_kl() -> None:
    law = build_bottleneck(4, BottleneckConfig(kind="plain", dim=2))(noise(2, 3, 4))
    assert isinstance(law, PointPosterior)
    assert torch.equal(law.sample(torch.Generator()), law.mean)
    assert float(law.kl().detach().sum()) == 0.0


def test_report_in_every_unit() -> None:
    mean, sigma = torch.full((2, 7, 4), 0.5), torch.full((2, 7, 4), 0.1)
    mean[0, :, 1] = 0.9  # varies: (0.4/2)² = 0.04 > 0.01
    mean[0, :, 2] = 0.6  # varies by 0.0025: not active
    law = GaussianPosterior(mean, sigma)
    report = kl_report(law, 12.5)
    per_frame = float(law.kl().sum(-1).mean())
    assert report["kl"] == pytest.approx(per_frame / 4)
    assert report["kl_nats_per_frame"] == pytest.approx(per_frame)
    assert report["kl_nats_per_second"] == pytest.approx(12.5 * per_frame)
    there = (mean**2 + sigma**2 - (sigma**2).log() - 1).sum(-1).mean()
    assert report["kl_stable_audio"] == pytest.approx(float(there))
    clip = (0.5 * (mean**2 + sigma**2 - 1 - (sigma**2).log())).sum((1, 2)).mean()
    assert report["kl_latent_diffusion"] == pytest.approx(float(clip))
    assert report["active_units"] == 1.0 == active_units(mean)
