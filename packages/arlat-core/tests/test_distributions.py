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


def wide(make: Callable[[float], StepDistribution]) -> tuple[StepDistribution, ...]:
    return (make(1e-6), make(1e6))


@pytest.mark.parametrize("make", [diagonal, full, mixture, affine, polar])
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
