"""Gradients of vMF draws: right in the mean, right draw by draw in the quantile, and not those of the proposal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arlat_kernels import vmf_draw, vmf_mean_resultant
from arlat_kernels.vmf_sample_gradient import CLOSED, slope
from torch import Tensor

NODE, WEIGHT = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(400))


def log_mass(low: Tensor, high: Tensor, dim: int, kappa: Tensor) -> Tensor:
    """log ∫ sin^{d−2}θ·e^{κ(cos θ − 1)} dθ from `low` to `high` [n], by Gauss and Legendre's rule."""
    angle = low[:, None] + (high - low)[:, None] * (NODE + 1) / 2
    log_density = (dim - 2) * torch.log(torch.sin(angle)) - 2 * kappa[:, None] * torch.sin(angle / 2).square()
    return torch.logsumexp(log_density + torch.log(WEIGHT), 1) + torch.log((high - low) / 2)


def log_odds(angle: Tensor, dim: int, kappa: Tensor) -> Tensor:
    """log P(θ ≤ angle)/P(θ > angle), [n]."""
    mode = torch.atan2(torch.sqrt(torch.tensor(max(dim - 2, 0) + 1.0)), kappa.sqrt())
    width = 1 / torch.sqrt(kappa + dim)
    low = (torch.minimum(angle, mode) - 14 * width).clamp_min(0)
    high = (torch.maximum(angle, mode) + 14 * width).clamp_max(math.pi)
    return log_mass(low, angle, dim, kappa) - log_mass(angle, high, dim, kappa)


def quantile(odds: Tensor, dim: int, kappa: Tensor) -> Tensor:
    """The angle [n] of given log odds, by bisection."""
    low, high = torch.zeros_like(odds) + 1e-9, torch.full_like(odds, math.pi - 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        below = log_odds(middle, dim, kappa) < odds
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 64, 1024])
@pytest.mark.parametrize("kappa", [0.01, 2.0, 8.0, 50.0, 3e4])
def test_the_slope_is_that_of_the_exact_quantile(dim: int, kappa: float) -> None:
    odds = torch.tensor([-9.0, -3.0, -0.5, 0.2, 2.0, 9.0], dtype=torch.float64)
    each = torch.full_like(odds, kappa)
    angle, step = quantile(odds, dim, each), 1e-3
    above, under = (quantile(odds, dim, each * (1 + sign * step)) for sign in (1, -1))
    # The difference of two cosines as a product, which keeps its digits where both are near 1.
    numerical = -2 * torch.sin((above + under) / 2) * torch.sin((above - under) / 2) / (2 * step * each)
    gap = 2 * torch.sin(angle / 2).square()
    torch.testing.assert_close(slope(gap, each, dim) * gap * (2 - gap), numerical, rtol=1e-3, atol=0)


def test_dim_three_has_no_step_where_its_closed_form_begins() -> None:
    gap = torch.tensor([1e-6, 1e-3, 0.1, 0.5, 1.0, 1.5, 1.9, 1.999], dtype=torch.float64)
    below, above = (slope(gap, torch.full_like(gap, kappa), 3) for kappa in (CLOSED - 1e-9, CLOSED))
    torch.testing.assert_close(below, above, rtol=1e-6, atol=0)


def drawn(dim: int, kappa: float, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """μ (e1 throughout), κ, seed and the draws, float64, with a graph."""
    mu = torch.eye(dim, dtype=torch.float64)[0].expand(count, dim).clone().requires_grad_()
    each = torch.full((count,), kappa, dtype=torch.float64, requires_grad=True)
    seed = torch.tensor([11])
    return mu, each, seed, vmf_draw.reference(mu, each, seed)


def resultant_slope(kappa: float, dim: int) -> float:
    """A′(κ)."""
    each = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    rest = vmf_mean_resultant(each, dim, complement=True)
    return -float(torch.autograd.grad(rest, each)[0])


@pytest.mark.parametrize(
    ("dim", "kappa"),
    [(2, 1.0), (2, 300.0), (3, 2.0), (3, 1e4), (5, 2.0), (8, 0.0), (8, 5.0), (64, 50.0), (256, 1e3), (256, 1e5)],
)
def test_the_mean_slope_of_the_cosine_is_that_of_the_resultant_length(dim: int, kappa: float) -> None:
    _, each, _, x = drawn(dim, kappa, 100_000 if dim <= 8 else 20_000)
    (found,) = torch.autograd.grad(x[:, 0].sum(), each)
    error = float(found.mean()) - resultant_slope(kappa, dim)
    assert abs(error) < 5 * float(found.std()) / math.sqrt(len(found))


def test_the_biased_form_is_not_what_is_computed() -> None:
    """Differentiating through the accepted proposal gives x0′·A/x0 in the mean, 13.4 % too little at (5, 2)."""
    dim, kappa = 5, 2.0
    _, each, _, x = drawn(dim, kappa, 200_000)
    (found,) = torch.autograd.grad(x[:, 0].sum(), each)
    k = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    root = torch.sqrt(4 * k * k + (dim - 1) ** 2)
    b = (dim - 1) / (2 * k + root)
    x0 = (1 - b) / (1 + b)
    biased = float(torch.autograd.grad(x0, k)[0] / (x0 * vmf_mean_resultant(k, dim).reciprocal()).detach())
    true = resultant_slope(kappa, dim)
    assert biased / true - 1 == pytest.approx(-0.134, abs=5e-4)
    assert abs(float(found.mean()) / true - 1) < 0.02
    assert abs(float(found.mean()) - biased) > 20 * float(found.std()) / math.sqrt(len(found))


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (3, 1.0), (6, 20.0)])
def test_the_mean_gradient_of_a_quadratic_is_exact_in_both(dim: int, kappa: float) -> None:
    """E xxᵀ = q·1 + (1 − dq)·mmᵀ with q = A/κ, hence E(aᵀx)²; a and μ at an angle, |μ| = 3."""
    generator = torch.Generator().manual_seed(1)
    direction, a = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    count = 200_000
    mu = (3 * direction / direction.norm()).expand(count, dim).clone().requires_grad_()
    each = torch.full((count,), kappa, dtype=torch.float64, requires_grad=True)
    value = (vmf_draw.reference(mu, each, torch.tensor([2])) @ a).square()
    found_mu, found_kappa = torch.autograd.grad(value.sum(), (mu, each))
    m = (3 * direction / direction.norm()).requires_grad_()
    k = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    q = vmf_mean_resultant(k, dim) / k
    law = q * a.dot(a) + (1 - dim * q) * (a.dot(m) / m.norm()).square()
    true_mu, true_kappa = torch.autograd.grad(law, (m, k))
    for found, true in ((found_mu, true_mu), (found_kappa, true_kappa)):
        assert bool(((found.mean(0) - true).abs() < 5 * found.std(0) / math.sqrt(count)).all())
    assert abs(float(value.detach().mean()) - float(law.detach())) < 5 * float(value.detach().std()) / math.sqrt(count)


def test_a_turn_of_the_direction_turns_the_draw() -> None:
    """d f(Rx)/dε for R = 1 + ε(vμᵀ − μvᵀ) is g_μ·v for every tangent v."""
    generator = torch.Generator().manual_seed(0)
    made = vmf_draw.make_inputs(20, 6, 9.0, generator=generator)
    mu = made["mu"].double().requires_grad_()
    x = vmf_draw.reference(mu, made["kappa"].double(), made["seed"])
    weight = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    (found,) = torch.autograd.grad((x * weight).sum(), mu)
    with torch.no_grad():
        length = torch.linalg.vector_norm(mu, dim=-1, keepdim=True)
        m = mu / length
        v = torch.randn(20, 6, generator=generator, dtype=torch.float64)
        v = v - torch.linalg.vecdot(v, m).unsqueeze(-1) * m
        generators = v.unsqueeze(-1) * m.unsqueeze(-2) - m.unsqueeze(-1) * v.unsqueeze(-2)
        step = 1e-6
        turns = [torch.matrix_exp(sign * step * generators) for sign in (1, -1)]
        turned = [(turn @ x.unsqueeze(-1)).squeeze(-1) for turn in turns]
        numerical = ((turned[0] - turned[1]) * weight).sum(-1) / (2 * step)
        torch.testing.assert_close(torch.linalg.vecdot(found * length, v), numerical, rtol=1e-7, atol=1e-9)
        assert float(torch.linalg.vecdot(found, m).abs().max()) < 1e-12  # the length of μ means nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [2, 3, 17])
def test_gradients_are_finite_at_the_ends(dim: int, dtype: torch.dtype) -> None:
    axis = torch.eye(dim, dtype=dtype)[0]
    mu = torch.stack([axis, -axis, axis * 0, axis * 1e-6, axis]).repeat(3, 1).requires_grad_()
    kappa = torch.tensor([0.0, 1.0, 1e6], dtype=dtype).repeat_interleave(5).requires_grad_()
    x = vmf_draw.reference(mu, kappa, torch.tensor([5]))
    grad_mu, grad_kappa = torch.autograd.grad((x * torch.randn_like(x)).sum(), (mu, kappa))
    assert bool(torch.isfinite(grad_mu).all())
    assert bool(torch.isfinite(grad_kappa).all())
    assert bool((grad_mu[2::5] == 0).all())
    assert bool((grad_mu[0::5].abs().sum(-1) > 0).all())
    assert bool((grad_kappa != 0).all())
