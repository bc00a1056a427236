"""vMF laws by maximum likelihood, and the law of the cosine, against closed forms and draws."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_diag.directions import MOST, concentration, cosine_cdf, fit_directions
from arlat_kernels import vmf_mean_resultant, vmf_sample


@pytest.mark.parametrize("dim", [2, 3, 64, 2048])
@pytest.mark.parametrize("kappa", [0.5, 30.0, 5e4])
def test_concentration_inverts_the_mean_resultant(dim: int, kappa: float) -> None:
    resultant = float(vmf_mean_resultant(torch.tensor(kappa, dtype=torch.float64), dim))
    assert concentration(resultant, dim) == pytest.approx(kappa, rel=1e-6)


def test_concentration_at_its_ends() -> None:
    assert concentration(0.0, 8) == 0.0
    assert concentration(-0.2, 8) == 0.0
    assert concentration(1.0, 8) == MOST


def test_directions_are_fitted_and_scored_whatever_their_length() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.nn.functional.normalize(torch.arange(1.0, 17.0), dim=0)
    kappa = torch.tensor(40.0)
    some = vmf_sample(mean.expand(20_000, -1), kappa.expand(20_000), generator=generator)
    law = fit_directions(some * torch.rand(20_000, 1, generator=generator).add(0.1))
    assert law.kappa == pytest.approx(40, rel=0.02)
    assert float(torch.cosine_similarity(law.mean, mean.double(), dim=0)) > 0.9999
    further = law.nll(7 * some)
    assert torch.allclose(further, law.nll(some), atol=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 1e-3, 2.0, 1e3])
def test_the_law_of_the_cosine_in_three_dimensions(kappa: float) -> None:
    cosine = torch.linspace(-1, 1, 41, dtype=torch.float64)
    if kappa == 0:
        true = (cosine + 1) / 2
    else:
        true = (torch.exp(kappa * (cosine - 1)) - math.exp(-2 * kappa)) / -math.expm1(-2 * kappa)
    found = cosine_cdf(cosine, torch.full_like(cosine, kappa), 3)
    assert float((found - true).abs().max()) < 1e-9


@pytest.mark.parametrize(("dim", "kappa"), [(2, 0.0), (2, 5.0), (64, 100.0), (512, 800.0), (2048, 3000.0)])
def test_draws_are_uniform_under_their_own_law(dim: int, kappa: float) -> None:
    count = 4000
    mean = torch.zeros(dim)
    mean[0] = 1
    kappas = torch.full((count,), kappa)
    cosine = vmf_sample(mean.expand(count, -1), kappas, generator=torch.Generator().manual_seed(1))[:, 0]
    found = cosine_cdf(cosine, kappas, dim).sort().values
    assert float((found - torch.linspace(0, 1, count)).abs().max()) < 1.63 / math.sqrt(count)  # 1 in 100
