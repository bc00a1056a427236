"""Draws from the von Mises–Fisher law: exact in the cosine, uniform in the tangent, nothing special at the poles."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from arlat_kernels import vmf_draw, vmf_mean_resultant, vmf_sample
from arlat_kernels.vmf_sample import cosine_gap, make_inputs, masked_rounds, shrinking_rounds
from arlat_kernels.vmf_sample_gradient import gradients
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

module = importlib.import_module("arlat_kernels.vmf_sample")  # the package has a function of that name


def draw(
    dim: int, kappa: float, count: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Directions mu [n d] (a third e1, a third −e1, a third random, longer than 1) and samples x [n d]."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.zeros(count, dim, dtype=dtype)
    mu[0::3, 0], mu[1::3, 0] = 1, -1
    mu[2::3] = 3 * torch.randn(mu[2::3].shape, generator=generator, dtype=dtype)
    return mu, vmf_sample(mu, torch.tensor(kappa, dtype=dtype), generator=generator)


def exact_cdf(gap: Tensor, dim: int, kappa: float) -> Tensor:
    """P(1 − cos ≤ gap), by the trapezium rule in the angle, on [0, 12 standard deviations] where that is short of π."""
    end = min(math.pi, 12 * math.sqrt(max(dim - 1, 1) / kappa)) if kappa > 0 else math.pi
    angle = torch.linspace(0, end, 100_001, dtype=torch.float64)[1:-1]
    log_density = -2 * kappa * torch.sin(angle / 2).square() + (dim - 2) * torch.log(torch.sin(angle))
    mass = torch.cumsum(torch.exp(log_density - log_density.max()), 0)
    at = torch.searchsorted(angle, 2 * torch.asin(torch.sqrt(gap / 2))).clamp_max(len(angle) - 1)
    return mass[at] / mass[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [2, 3, 8, 64, 1024])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5])
def test_the_cosine_has_its_exact_law(dim: int, kappa: float, dtype: torch.dtype) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    mu, x = draw(dim, kappa, 20_000 if dim <= 8 else 2_000, seed=dim, dtype=dtype)
    unit = mu.double() / torch.linalg.vector_norm(mu.double(), dim=-1, keepdim=True)
    gap = 0.5 * (x.double() - unit).square().sum(-1)  # 1 − cos without cancellation
    assert stats.kstest(exact_cdf(gap, dim, kappa).numpy(), "uniform").pvalue > 1e-4
    allowed = 5e-7 if dtype == torch.float32 else 1e-14
    assert float((torch.linalg.vector_norm(x.double(), dim=-1) - 1).abs().max()) < allowed


@pytest.mark.parametrize("dim", [2, 3, 8, 1024])
@pytest.mark.parametrize("kappa", [0.5, 50.0, 1e6])
def test_the_mean_gap_is_one_minus_the_resultant_length(dim: int, kappa: float) -> None:
    each = torch.full((200_000,), kappa, dtype=torch.float64)
    gap, sine = cosine_gap(each, dim, torch.tensor([1]), torch.arange(len(each)))
    expected = float(vmf_mean_resultant(each[:1], dim, complement=True))
    assert abs(float(gap.mean()) - expected) < 5 * float(gap.std()) / math.sqrt(len(gap))
    torch.testing.assert_close(sine.square(), gap * (2 - gap), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_the_tangent_is_uniform(dim: int) -> None:
    mu, x = draw(dim, 5.0, 60_000)
    unit = mu / torch.linalg.vector_norm(mu, dim=-1, keepdim=True)
    tangent = x - (x * unit).sum(-1, keepdim=True) * unit
    tangent = tangent / torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    for third in range(3):
        rows = tangent[third::3]
        assert float(rows.mean(0).abs().max()) < 5 / math.sqrt(len(rows))
    covariance = tangent[0::3, 1:].T @ tangent[0::3, 1:] / len(tangent[0::3])  # at e1 the tangent space is the rest
    assert float((covariance - torch.eye(dim - 1) / (dim - 1)).abs().max()) < 5 / math.sqrt(len(tangent) / 3)


@pytest.mark.parametrize("dim", [2, 3, 9])
def test_the_tangent_is_independent_of_the_cosine(dim: int) -> None:
    count = 40_000
    pole = torch.eye(dim, dtype=torch.float64)[-1].expand(count, dim)
    x = vmf_draw(pole, torch.full((count,), 4.0, dtype=torch.float64), torch.tensor([3]))
    gap, tangent = 1 - x[:, -1], x[:, :-1] / torch.linalg.vector_norm(x[:, :-1], dim=-1, keepdim=True)
    for first in (gap, (gap - gap.median()).abs()):
        for second in (*tangent.T, *tangent.square().T):
            if float(second.std()) > 1e-6:  # in two dimensions the tangent's square is 1
                assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / math.sqrt(count)


def test_float32_directions_are_unit_and_reproducible() -> None:
    _, x = draw(256, 1e4, 300, dtype=torch.float32)
    _, again = draw(256, 1e4, 300, dtype=torch.float32)
    assert x.dtype == torch.float32
    assert torch.equal(x, again)
    assert float((torch.linalg.vector_norm(x, dim=-1) - 1).abs().max()) < 5e-7


def test_batch_axes_broadcast() -> None:
    generator = torch.Generator().manual_seed(0)
    assert vmf_sample(torch.eye(3)[0], torch.full((4, 5), 2.0), generator=generator).shape == (4, 5, 3)
    assert vmf_sample(torch.eye(3), torch.tensor(2.0), generator=generator).shape == (3, 3)
    assert vmf_sample(torch.zeros(0, 3), torch.zeros(0), generator=generator).shape == (0, 3)


def test_a_zero_direction_stands_for_the_first_axis() -> None:
    x = vmf_sample(torch.zeros(2000, 4), torch.tensor(100.0), generator=torch.Generator().manual_seed(0))
    assert float(x[:, 0].mean()) == pytest.approx(float(vmf_mean_resultant(torch.tensor(100.0), 4)), abs=1e-2)


def test_a_row_draws_by_its_number_and_the_seed_alone() -> None:
    made = make_inputs(3000, 64, 30.0, generator=torch.Generator().manual_seed(0))
    whole = vmf_draw(*made.values())
    part = vmf_draw(made["mu"][:7], made["kappa"][:7], made["seed"])
    assert torch.equal(whole[:7], part)
    leading = vmf_draw(made["mu"].reshape(30, 100, 64), made["kappa"].reshape(30, 100), made["seed"])
    assert torch.equal(whole, leading.reshape(3000, 64))
    changed = made["mu"].clone()
    changed[1:] = 1.0
    assert torch.equal(vmf_draw(changed, made["kappa"], made["seed"])[0], whole[0])
    assert not torch.equal(vmf_draw(made["mu"], made["kappa"], made["seed"] + 1), whole)


def test_float32_and_float64_draw_the_same() -> None:
    for dim, kappa in ((2, 1e4), (3, 10.0), (1024, 1e3)):
        made = make_inputs(2000, dim, kappa, generator=torch.Generator().manual_seed(dim))
        narrow = vmf_draw(*made.values())
        wide = vmf_draw(made["mu"].double(), made["kappa"].double(), made["seed"])
        assert float((narrow.double() - wide).abs().max()) < 2e-6


def test_rounds_by_masks_draw_what_shrinking_rows_draw() -> None:
    kappa = torch.tensor([0.0, 1.0, 30.0, 1e5], dtype=torch.float64).repeat(50)
    expected = shrinking_rounds(kappa, 5, torch.tensor([4]), torch.arange(len(kappa)))
    for got, true in zip(masked_rounds(kappa, 5, torch.tensor([4]), torch.arange(len(kappa))), expected, strict=True):
        assert torch.equal(got, true)
    assert bool(torch.isnan(masked_rounds(torch.tensor([torch.nan]), 5, torch.tensor([4]), torch.arange(1))[0]).all())


def test_the_reference_reads_nothing_on_the_host_beside_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 2)
    with FakeTensorMode(), torch.no_grad():  # a value that is read there is an error
        mu, kappa = torch.ones(6, 5, device="cuda"), torch.ones(6, device="cuda")
        seed = torch.zeros(1, dtype=torch.int64, device="cuda")
        x = vmf_draw.reference(mu, kappa, seed)
        gap, _ = cosine_gap(kappa.double(), 5, seed, torch.arange(len(kappa), device=kappa.device))
        grad_mu, grad_kappa = gradients(x, mu, kappa, x, gap, *module.normalised(mu))
        with pytest.raises(DataDependentOutputException):
            bool(x.sum() > 0)
    assert grad_mu.shape == (6, 5)
    assert grad_kappa.shape == (6,)


def test_wrong_shapes_and_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mu \(3, 4\) and kappa \(4,\) must be"):
        vmf_draw(torch.ones(3, 4), torch.ones(4), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"seed is torch.int64 \(2,\); give an int64 tensor"):
        vmf_draw(torch.ones(3, 4), torch.ones(3), torch.tensor([0, 1]))


def test_a_kappa_that_is_not_finite_ends_with_a_message() -> None:
    with pytest.raises(RuntimeError, match=r"1 of 2 rows.*must be finite"):
        vmf_sample(torch.eye(2), torch.tensor([1.0, torch.nan]), generator=torch.Generator())
