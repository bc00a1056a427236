"""Every step distribution keeps the contract, and known densities come out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from arlat_core.distributions import (
    Affine,
    DiagonalGaussian,
    FullGaussian,
    GaussianMixture,
    StepDistribution,
    UniformLogNormal,
    VonMisesLogNormal,
)
from arlat_core.testing import check_step_distribution
from torch import Tensor, tensor

FACTOR = tensor([[1.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.3, 0.2, 0.8]])


def diagonal(scale: float) -> StepDistribution:
    return DiagonalGaussian(scale * tensor([0.5, -0.2, 0.1]), math.log(scale) + tensor([0.0, -0.5, 0.3]))


def full(scale: float) -> StepDistribution:
    return FullGaussian(scale * tensor([0.5, -0.2, 0.1]), scale * FACTOR)


def mixture(scale: float) -> StepDistribution:
    loc = scale * tensor([[1.0, 0.0, 0.5], [-1.0, 0.3, 0.0], [0.0, -1.0, 0.2]])
    log_scale = math.log(scale) + tensor([[-0.5, 0.0, -0.3], [-0.2, -0.7, 0.1], [0.0, 0.0, 0.0]])
    return GaussianMixture(tensor([0.3, 0.0, -0.5]), loc, log_scale)


def affine(scale: float) -> StepDistribution:
    return Affine(mixture(1.0), scale * tensor([0.1, 0.2, -0.3]), scale * FACTOR)


def polar(scale: float) -> StepDistribution:
    return UniformLogNormal(tensor(math.log(scale)), tensor(-0.7), 4)


def polar_towards(scale: float) -> StepDistribution:
    return VonMisesLogNormal(tensor([1.0, -2.0, 0.5, 0.3]), tensor(6.0), tensor(math.log(scale)), tensor(-0.7))


def wide(make: Callable[[float], StepDistribution]) -> tuple[StepDistribution, ...]:
    return (make(1e-6), make(1e6))


@pytest.mark.parametrize("make", [diagonal, full, mixture, affine, polar, polar_towards])
def test_contract(make: Callable[[float], StepDistribution]) -> None:
    check_step_distribution(make, wide(make))


class ForgottenJacobian(UniformLogNormal):
    """Polar density that leaves out −(D−1) log m."""

    def log_prob(self, dx: Tensor) -> Tensor:
        return super().log_prob(dx) + (self.dim - 1) * dx.norm(dim=-1).log()


def test_contract_sees_a_forgotten_jacobian() -> None:
    with pytest.raises(AssertionError, match=r"scale 0\.1"):
        check_step_distribution(lambda scale: ForgottenJacobian(tensor(math.log(scale)), tensor(-0.7), 4))


class GlobalDraws(DiagonalGaussian):
    """A law that draws from the global generator."""

    def sample(self, generator: torch.Generator) -> Tensor:
        return self.loc + self.log_scale.exp() * torch.randn(self.loc.shape)

    def expand(self, count: int) -> GlobalDraws:
        return GlobalDraws(self.loc.expand(count, -1), self.log_scale.expand(count, -1))


def test_contract_sees_global_draws() -> None:
    with pytest.raises(AssertionError, match="global generator"):
        check_step_distribution(lambda scale: GlobalDraws(torch.full((3,), 0.1), torch.full((3,), math.log(scale))))


def test_gaussians_match_torch() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    law = full(1.3)
    assert isinstance(law, FullGaussian)
    expected = torch.distributions.MultivariateNormal(law.loc, scale_tril=law.factor).log_prob(x)
    torch.testing.assert_close(law.log_prob(x), expected)
    one = DiagonalGaussian(law.loc, torch.zeros(3))
    torch.testing.assert_close(one.log_prob(x), torch.distributions.Normal(law.loc, 1.0).log_prob(x).sum(-1))


def test_affine_of_a_gaussian_is_the_full_gaussian() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    law = Affine(DiagonalGaussian(torch.zeros(3), torch.zeros(3)), tensor([0.1, 0.2, 0.3]), FACTOR)
    torch.testing.assert_close(law.log_prob(x), FullGaussian(tensor([0.1, 0.2, 0.3]), FACTOR).log_prob(x))


def test_mixture_matches_torch_as_one_law_and_as_a_batch() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    law = mixture(1.0)
    assert isinstance(law, GaussianMixture)
    parts = torch.distributions.Independent(torch.distributions.Normal(law.loc, law.log_scale.exp()), 1)
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=law.logits), parts)
    torch.testing.assert_close(law.log_prob(x), expected.log_prob(x))
    torch.testing.assert_close(law.expand(7).log_prob(x), expected.log_prob(x))
    torch.testing.assert_close(law.mean(), expected.mean)
    torch.testing.assert_close(law.point(), law.loc[0])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="log_scale"):
        DiagonalGaussian(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="shift"):
        Affine(mixture(1.0), torch.zeros(5, 3), FACTOR)


def test_a_direction_of_no_concentration_is_uniform() -> None:
    mu, log_sigma = tensor(0.3), tensor(-0.4)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    blind = VonMisesLogNormal(tensor([0.0, 3.0, 0.0, 0.0]), tensor(0.0), mu, log_sigma)
    torch.testing.assert_close(blind.log_prob(x), UniformLogNormal(mu, log_sigma, 4).log_prob(x))
    assert float(blind.mean().norm()) == 0


def test_a_sure_direction_has_its_closed_form_mean_and_median_length() -> None:
    toward = torch.nn.functional.normalize(tensor([1.0, 2.0, -2.0]), dim=-1)
    law = VonMisesLogNormal(5 * toward, tensor(40.0), tensor(1.0), tensor(-1.0))
    length = 1 / math.tanh(40.0) - 1 / 40  # A of the sphere in three dimensions
    torch.testing.assert_close(law.mean(), toward * length * math.exp(1 + 0.5 * math.exp(-2)))
    torch.testing.assert_close(law.point(), toward * math.e)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 1e6), (512, 800.0), (2048, 0.0)])
def test_polar_laws_have_finite_densities_and_gradients_by_every_parameter(dim: int, kappa: float) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(7, dim, generator=generator), torch.full((7,), kappa), torch.zeros(7), torch.zeros(7)]
    leaves = [part.requires_grad_() for part in parts]
    law = VonMisesLogNormal(*leaves)
    x = torch.cat([law.sample(generator).detach()[:5], law.point().detach()[5:6], -law.point().detach()[6:]])
    value = law.log_prob(x)
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(value.sum(), leaves))
    drawn = law.sample(generator)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(drawn.square().sum(), leaves))
