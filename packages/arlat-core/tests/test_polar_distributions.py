"""The power-spherical law and the mixture of polar laws keep the contract and have their known normaliser and means."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_core.distributions import PolarMixture, PowerSphericalLogNormal, UniformLogNormal, VonMisesLogNormal
from arlat_core.testing import check_step_distribution
from torch import Tensor, tensor


def power(scale: float, dim: int, kappa: float = 6.0) -> PowerSphericalLogNormal:
    direction = torch.linspace(1.0, -2.0, dim)
    return PowerSphericalLogNormal(direction, tensor(kappa), tensor(math.log(scale)), tensor(-0.7))


def polar_mixture(scale: float) -> PolarMixture:
    direction = tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0], [-3.0, 0.0, 0.2]])
    mu = math.log(scale) + tensor([0.0, -0.3, 0.2])
    return PolarMixture(tensor([0.3, 0.0, -0.5]), direction, tensor([6.0, 2.0, 4.0]), mu, tensor([-0.7, -0.5, -0.6]))


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 6])
def test_power_spherical_keeps_the_contract(dim: int) -> None:
    extremes = (power(1e-6, dim), power(1e6, dim), power(1.0, dim, 0.0), power(1.0, dim, 1e6))
    check_step_distribution(lambda scale: power(scale, dim), extremes)


def test_polar_mixture_keeps_the_contract() -> None:
    check_step_distribution(polar_mixture, (polar_mixture(1e-6), polar_mixture(1e6)))


@pytest.mark.parametrize("kappa", [0.0, 0.5, 30.0, 1e4])
def test_normaliser_is_the_quadrature(kappa: float) -> None:
    law = PowerSphericalLogNormal(tensor([1.0, 0.0]), tensor(kappa), tensor(0.0), tensor(0.0))
    angle = torch.linspace(0, math.pi, 400_001, dtype=torch.float64)
    shape = torch.exp(2 * kappa * torch.cos(0.5 * angle).clamp_min(1e-300).log())  # ((1 + cos)/2)^κ
    circle = 2 * torch.trapezoid(shape, angle)
    sphere = 2 * math.pi * torch.trapezoid(shape * angle.sin(), angle)
    assert float(law._log_norm() + circle.log()) == pytest.approx(0, abs=1e-6)
    law = PowerSphericalLogNormal(tensor([1.0, 0.0, 0.0]), tensor(kappa), tensor(0.0), tensor(0.0))
    assert float(law._log_norm() + sphere.log()) == pytest.approx(0, abs=1e-6)


def test_no_concentration_is_the_uniform_direction() -> None:
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    law = power(1.3, 5, 0.0)
    torch.testing.assert_close(law.log_prob(x), UniformLogNormal(law.mu, law.log_sigma, 5).log_prob(x))
    assert float(law.mean().norm()) == 0


@pytest.mark.parametrize(("dim", "kappa"), [(2, 1e6), (512, 800.0), (2048, 0.0)])
def test_draws_have_the_closed_form_cosine_and_finite_gradients(dim: int, kappa: float) -> None:
    count = 400
    law = PowerSphericalLogNormal(
        *(part.clone().requires_grad_() for part in (torch.ones(count, dim), torch.full((count,), kappa))),
        torch.zeros(count),
        torch.full((count,), -2.0),
    )
    x = law.sample(torch.Generator().manual_seed(0))
    cosine = (x / x.norm(dim=-1, keepdim=True)).sum(-1).detach() / math.sqrt(dim)
    assert float(cosine.mean()) == pytest.approx(kappa / (kappa + dim - 1), abs=5 * float(cosine.std()) / 20 + 1e-5)
    value = law.log_prob(x.detach()).sum() + x.square().sum()
    slopes: tuple[Tensor, ...] = torch.autograd.grad(value, [law.direction, law.kappa])
    assert torch.isfinite(value)
    assert all(torch.isfinite(slope).all() for slope in slopes)


def test_a_mixture_of_one_is_its_component() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    parts = (tensor([[1.0, 2.0, -2.0]]), tensor([40.0]), tensor([1.0]), tensor([-1.0]))
    one, alone = PolarMixture(tensor([0.7]), *parts), VonMisesLogNormal(*(part[0] for part in parts))
    torch.testing.assert_close(one.log_prob(x), alone.log_prob(x))
    torch.testing.assert_close(one.mean(), alone.mean())
    torch.testing.assert_close(one.point(), alone.point())


def test_the_point_is_that_of_the_likeliest_component() -> None:
    law = polar_mixture(2.0)
    torch.testing.assert_close(
        law.point(), VonMisesLogNormal(law.direction[0], law.kappa[0], law.mu[0], law.log_sigma[0]).point()
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="d ≥ 2"):
        PowerSphericalLogNormal(torch.ones(1), tensor(1.0), tensor(0.0), tensor(0.0))
    with pytest.raises(ValueError, match="logits"):
        PolarMixture(torch.zeros(2), torch.ones(3, 4), torch.ones(3), torch.zeros(3), torch.zeros(3))
