"""The von Mises–Fisher NLL against SciPy, by quadrature over the sphere, at its edges, and by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_kernels import vmf_log_norm, vmf_mean_resultant, vmf_nll, vmf_nll_natural, vmf_nll_polar
from torch import Tensor

DIMS = [2, 3, 8, 64, 512, 2048]
KAPPAS = [0.0, 1e-6, 0.1, 1.0, 30.0, 1e3, 1e5, 1e6]


def near(n: int, d: int, kappa: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 unit directions and targets about 1/√κ away, as a caller has them."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=-1)
    x = mu + torch.randn(n, d, generator=generator) / (kappa + 1.0) ** 0.5
    return mu, torch.nn.functional.normalize(x, dim=-1)


def pieces(mu: Tensor, kappa: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """κ(1 − cos) and log C + κ in float64, the cosine's gap from the angle by atan2."""
    mu, x = mu.double(), x.double()
    lengths = mu.norm(dim=-1, keepdim=True), x.norm(dim=-1, keepdim=True)
    across = (mu * lengths[1] - x * lengths[0]).norm(dim=-1)
    along = (mu * lengths[1] + x * lengths[0]).norm(dim=-1)
    gap = 2 * torch.sin(torch.atan2(across, along)) ** 2  # half the angle between them
    return kappa.double() * gap, vmf_log_norm(kappa.double(), x.shape[-1])


def bound(distance: Tensor, log_norm: Tensor) -> Tensor:
    loss = distance - log_norm
    return 1e-6 * loss.abs().clamp_min(1) + 1e-7 * (log_norm.abs() + distance)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("d", DIMS)
def test_float32_is_within_the_tolerance_of_float64(d: int, kappa: float) -> None:
    mu, x = near(20, d, kappa)
    k = torch.full((20,), kappa)
    for target in (x, mu, -mu, near(20, d, 0.0, 1)[1]):
        distance, log_norm = pieces(mu, k, target)
        assert bool(((vmf_nll(mu, k, target) - (distance - log_norm)).abs() <= bound(distance, log_norm)).all())
        mean = kappa * mu
        distance, log_norm = pieces(mean, mean.double().norm(dim=-1), target)
        assert bool(((vmf_nll(mean, target) - (distance - log_norm)).abs() <= bound(distance, log_norm)).all())


@pytest.mark.parametrize("d", [3, 16])
def test_where_the_normaliser_crosses_zero_nothing_is_lost(d: int) -> None:
    low, high = torch.tensor(1e-3).double(), torch.tensor(1e6).double()
    for _ in range(60):
        middle = (low * high).sqrt()
        low, high = (middle, high) if float(vmf_log_norm(middle, d)) < 0 else (low, middle)
    mean = low.float() * near(50, d, 1.0)[0]
    truth = -vmf_log_norm(mean.double().norm(dim=-1), d)  # the loss at x = μ
    assert float(truth.abs().max()) < 1e-5
    assert float((vmf_nll(mean, mean).double() - truth).abs().max()) < 1e-9


@pytest.mark.parametrize(("d", "kappa"), [(2, 0.5), (3, 20.0), (3, 1e4), (16, 5.0), (64, 300.0)])
def test_agrees_with_scipy(d: int, kappa: float) -> None:
    mu, x = near(6, d, kappa)
    mu, x = (torch.nn.functional.normalize(tensor.double(), dim=-1) for tensor in (mu, x))
    vonmises_fisher = pytest.importorskip("scipy.stats", reason="scipy is not installed").vonmises_fisher
    law = [vonmises_fisher(row.numpy(), kappa) for row in mu]
    expected = torch.tensor([-float(one.logpdf(row.numpy())) for one, row in zip(law, x, strict=True)])
    torch.testing.assert_close(vmf_nll(kappa * mu, x), expected.double(), rtol=1e-6, atol=1e-6)
    k = torch.full((6,), kappa, dtype=torch.float64)
    torch.testing.assert_close(vmf_nll(mu, k, x), vmf_nll(kappa * mu, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kappa", [0.0, 0.7, 12.0, 200.0])
def test_the_density_integrates_to_one(kappa: float) -> None:
    steps = 4096
    angle = (torch.arange(steps, dtype=torch.float64) + 0.5) * (2 * math.pi / steps)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    mean = kappa * torch.tensor([0.6, -0.8], dtype=torch.float64)
    total = torch.exp(-vmf_nll(mean, circle)).sum() * (2 * math.pi / steps)
    assert float(total) == pytest.approx(1, abs=1e-10)
    # On the sphere the height z is uniform. A midpoint sum of exp(κz) at steps h is short by (κh/2)/sinh(κh/2) exactly.
    height = (torch.arange(steps, dtype=torch.float64) + 0.5) * (2 / steps) - 1
    sphere = torch.stack([(1 - height * height).sqrt(), torch.zeros_like(height), height], -1)
    pole = kappa * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    total = torch.exp(-vmf_nll(pole, sphere)).sum() * (2 / steps) * 2 * math.pi
    half = kappa / steps
    assert float(total) == pytest.approx(half / math.sinh(half) if half else 1, abs=1e-10)


@pytest.mark.parametrize("d", DIMS)
def test_kappa_zero_is_uniform_with_the_right_limit(d: int) -> None:
    mu, x = near(4, d, 0.0)
    area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    mean = torch.zeros(4, d, requires_grad=True)
    value = vmf_nll(mean, x)
    torch.testing.assert_close(value, torch.full((4,), area), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), mean)
    torch.testing.assert_close(slope, -x, rtol=1e-6, atol=1e-7)
    kappa = torch.zeros(4, requires_grad=True)
    (slope,) = torch.autograd.grad(vmf_nll(mu, kappa, x).sum(), kappa)
    torch.testing.assert_close(slope, -(mu * x).sum(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("d", DIMS)
def test_gradients_are_the_closed_form_and_finite(d: int, kappa: float) -> None:
    mu, x = near(3, d, kappa)
    x = torch.cat([x, mu, -mu])
    mu = torch.cat([mu, mu, mu])
    leaves = [(1.7 * mu).requires_grad_(), torch.full((9,), kappa, requires_grad=True), (0.3 * x).requires_grad_()]
    grad_mu, grad_kappa, grad_x = torch.autograd.grad(vmf_nll(*leaves).sum(), leaves)
    m, k, y = (leaf.detach().double() for leaf in leaves)
    lengths = m.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
    m, y = m / lengths[0], y / lengths[1]
    gap = 0.5 * (m - y).square().sum(-1)
    slope = vmf_mean_resultant(k, d, complement=True)
    sideways = k[:, None] * (m - y + gap[:, None] * y)
    torch.testing.assert_close(grad_x.double(), -sideways / lengths[1], rtol=1e-6, atol=1e-6 * (1 + kappa * 1e-6))
    sideways = k[:, None] * (y - m + gap[:, None] * m)
    torch.testing.assert_close(grad_mu.double(), -sideways / lengths[0], rtol=1e-6, atol=1e-6 * (1 + kappa * 1e-6))
    torch.testing.assert_close(grad_kappa.double(), gap - slope, rtol=1e-6, atol=1e-7)
    mean, x = (kappa * mu).requires_grad_(), x.requires_grad_()
    grad_mean, grad_x = torch.autograd.grad(vmf_nll(mean, x).sum(), (mean, x))
    k = mean.detach().double().norm(dim=-1, keepdim=True)
    m, y = torch.nan_to_num(mean.detach().double() / k), x.detach().double() / x.detach().double().norm(dim=-1)[:, None]
    expected = (m - y) - vmf_mean_resultant(k, d, complement=True) * m
    torch.testing.assert_close(grad_mean.double(), expected, rtol=1e-6, atol=1e-7)
    assert bool(torch.isfinite(grad_x).all())


def test_a_vector_of_length_zero_has_no_direction() -> None:
    mu, x = near(2, 5, 1.0)
    kappa = torch.tensor([3.0, 0.5])
    expected = kappa - vmf_log_norm(kappa, 5)  # the cosine is 0
    for given in ((0 * mu, kappa, x), (mu, kappa, 0 * x)):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        value = vmf_nll(*leaves)
        torch.testing.assert_close(value, expected)
        for slope in torch.autograd.grad(value.sum(), (leaves[0], leaves[2])):
            assert bool((slope == 0).all())


def test_gradients_by_finite_differences_twice() -> None:
    mu, x = near(3, 4, 2.0)
    kappa = torch.tensor([0.5, 4.0, 60.0], dtype=torch.float64, requires_grad=True)
    mu, x = mu.double().mul(2).requires_grad_(), x.double().mul(0.7).requires_grad_()
    polar, natural = vmf_nll_polar.reference, vmf_nll_natural.reference
    assert torch.autograd.gradcheck(polar, (mu, kappa, x))
    assert torch.autograd.gradcheck(natural, (mu, x))
    assert torch.autograd.gradgradcheck(polar, (mu, kappa, x))
    assert torch.autograd.gradgradcheck(natural, (mu, x))


def test_leading_axes_broadcast() -> None:
    mu, x = near(6, 4, 2.0)
    kappa = torch.tensor(3.0)
    table = vmf_nll(mu[:, None], kappa, x[None])
    assert table.shape == (6, 6)
    torch.testing.assert_close(table.diagonal(), vmf_nll(mu, kappa.expand(6), x), rtol=0, atol=0)
    torch.testing.assert_close(table, vmf_nll(3 * mu[:, None], x), rtol=1e-5, atol=1e-5)
    assert vmf_nll(mu[0], x[0]).shape == ()
    assert vmf_nll(mu[:0], x[:0]).shape == (0,)
    assert vmf_nll(mu[:0], kappa, x[:0]).shape == (0,)


def test_dtypes_and_lengths_are_free() -> None:
    mu, x = near(5, 8, 10.0)
    kappa = torch.full((5,), 10.0)
    expected = vmf_nll(mu, kappa, x)
    torch.testing.assert_close(vmf_nll(100 * mu, kappa, 0.01 * x), expected)
    assert vmf_nll(mu.double(), kappa, x).dtype == torch.float64
    narrow = [tensor.bfloat16() for tensor in (mu, kappa, x)]
    assert torch.equal(vmf_nll(*narrow), vmf_nll(*(tensor.float() for tensor in narrow)))
    assert torch.equal(vmf_nll(narrow[0], kappa, x), vmf_nll(narrow[0].float(), kappa, x))


def test_wrong_calls_say_what_came() -> None:
    mu, x = near(5, 8, 10.0)
    with pytest.raises(TypeError, match=r"vmf_nll got 1 tensors; give \(mean, x\)"):
        vmf_nll(mu)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"mean \(5, 8\), x \(5, 7\) must be .* d ≥ 2 and leading axes that broadcast"):
        vmf_nll(mu, x[:, :-1])
    with pytest.raises(ValueError, match=r"mu \(5, 8\), kappa \(4,\), x \(5, 8\)"):
        vmf_nll(mu, torch.ones(4), x)
    with pytest.raises(ValueError, match=r"axes that are the same"):
        vmf_nll_natural(mu, x[:1])
    with pytest.raises(ValueError, match="negative"):
        vmf_nll(mu, -torch.ones(5), x)
