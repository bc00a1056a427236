"""The von Mises–Fisher normaliser, mean resultant length and entropy against 398 true points, SciPy and differences."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest
import torch
from arlat_kernels import vmf_entropy, vmf_log_norm, vmf_mean_resultant
from arlat_kernels.vmf import vmf_log_norm_uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SHARED = pathlib.Path(os.environ.get("ARLAT_SHARED", pathlib.Path(__file__).resolve().parents[2].parent / "shared"))
DIMS = (2, 3, 8, 16, 32, 64, 128, 256, 512, 1024)
# Largest allowed error for κ in each dtype: (log C + κ, log C, entropy) against max(1, |·|); (A, 1 − A, A′) relative.
ALLOWED = {
    torch.float32: ((1e-7, 1e-7, 1e-7), (1e-7, 1e-7, 1e-7)),
    torch.float64: ((2e-11, 2e-11, 2e-11), (2e-15, 2e-15, 1e-14)),
}


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    path = SHARED / "reference" / "vmf_reference.json"
    if not path.exists():
        pytest.skip(f"{SHARED} is missing: the true points are not here")
    found: list[dict[str, Any]] = json.loads(path.read_text())["records"]
    assert len(found) == 398
    return found


def error(got: Tensor, true: Tensor, absolute_below: float) -> float:
    return float(((got.detach().double() - true).abs() / true.abs().clamp_min(absolute_below)).max())


@pytest.mark.parametrize("dtype", list(ALLOWED), ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_agrees_with_the_true_points(records: list[dict[str, Any]], dim: int, dtype: torch.dtype) -> None:
    rows = [record for record in records if record["d"] == dim]
    kappa = torch.tensor([float.fromhex(row["kappa_hex"]) for row in rows], dtype=dtype, requires_grad=True)

    def true(key: str) -> Tensor:
        return torch.tensor([float(row[key]) for row in rows], dtype=torch.float64)

    length = vmf_mean_resultant(kappa, dim)
    (slope,) = torch.autograd.grad(length.sum(), kappa)
    logs = {
        "log_C_plus_kappa": vmf_log_norm(kappa, dim),
        "log_C": vmf_log_norm(kappa, dim, scaled=False),
        "entropy": vmf_entropy(kappa, dim),
    }
    ratios = {"A": length, "one_minus_A": vmf_mean_resultant(kappa, dim, complement=True), "dA": slope}
    for found, allowed, floor in zip((logs, ratios), ALLOWED[dtype], (1.0, 0.0), strict=True):
        for (key, value), most in zip(found.items(), allowed, strict=True):
            assert value.dtype == dtype
            assert error(value, true(key), floor) <= most, key


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 14, 31, 47, 48, 50, 51, 64, 100])
def test_agrees_with_scipy_where_it_is_finite(dim: int) -> None:
    special = pytest.importorskip("scipy.special", reason="scipy is not installed")
    kappa = torch.logspace(-1, 4, 200, dtype=torch.float64)
    low = torch.from_numpy(special.ive(dim / 2 - 1, kappa.numpy()))
    high = torch.from_numpy(special.ive(dim / 2, kappa.numpy()))
    nu = dim / 2 - 1
    log_norm = nu * kappa.log() - dim / 2 * 1.8378770664093453 - low.log()
    assert bool(torch.isfinite(log_norm).all())
    torch.testing.assert_close(vmf_log_norm(kappa, dim), log_norm, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(vmf_mean_resultant(kappa, dim), high / low, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 16, 50, 1024, 2048])
def test_kappa_zero_is_the_uniform_law(dim: int) -> None:
    kappa = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    uniform = vmf_log_norm_uniform(dim)
    assert vmf_log_norm(kappa, dim).item() == pytest.approx(uniform, rel=1e-13)
    assert vmf_entropy(kappa, dim).item() == pytest.approx(-uniform, rel=1e-13)
    length = vmf_mean_resultant(kappa, dim)
    assert length.item() == 0
    assert float(torch.autograd.grad(length.sum(), kappa)[0]) == pytest.approx(1 / dim, rel=1e-13)


@pytest.mark.parametrize("dim", [2, 8, 64, 2048])
def test_finite_from_the_smallest_to_far_beyond_the_largest(dim: int) -> None:
    kappa = torch.tensor([0, 1e-40, 1e-30, 1e-6, 1.0, 1e6, 1e10, 1e18], requires_grad=True)
    for function in (vmf_log_norm, vmf_mean_resultant, vmf_entropy):
        value = function(kappa, dim)
        (gradient,) = torch.autograd.grad(value.sum(), kappa)
        assert bool(torch.isfinite(value).all())
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("dim", [2, 5, 16, 64])
def test_derivatives_by_finite_differences_twice(dim: int) -> None:
    kappa = torch.tensor([0.3, 2.0, 11.0, 23.9, 24.1, 60.0], dtype=torch.float64, requires_grad=True)
    functions = (
        lambda k: vmf_log_norm(k, dim),
        lambda k: vmf_log_norm(k, dim, scaled=False),
        lambda k: vmf_mean_resultant(k, dim),
        lambda k: vmf_mean_resultant(k, dim, complement=True),
        lambda k: vmf_entropy(k, dim),
    )
    for function in functions:
        assert torch.autograd.gradcheck(function, (kappa,))
        assert torch.autograd.gradgradcheck(function, (kappa,))


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(2, 2048), low=st.floats(0, 1e5), step=st.floats(1e-3, 1e3))
def test_length_grows_and_log_norm_is_concave(dim: int, low: float, step: float) -> None:
    kappa = torch.tensor([low, low + step, low + 2 * step], dtype=torch.float64)
    length = vmf_mean_resultant(kappa, dim)
    rest = vmf_mean_resultant(kappa, dim, complement=True)
    assert bool((rest.diff() < 0).all())
    assert bool(((length >= 0) & (length < 1)).all())
    log_norm = vmf_log_norm(kappa, dim)
    bend = float(log_norm[0] - 2 * log_norm[1] + log_norm[2])
    assert bend <= 1e-11 * max(1.0, float(log_norm.abs().max()))  # log C has A′ > 0 as minus its second derivative


def test_shapes_and_dtypes_are_kept() -> None:
    kappa = torch.rand(2, 3, 0)
    assert vmf_log_norm(kappa, 8).shape == (2, 3, 0)
    wide = torch.rand(4, 10)[:, ::2]
    assert torch.equal(vmf_mean_resultant(wide, 8), vmf_mean_resultant(wide.contiguous(), 8))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="dim is 1"):
        vmf_log_norm(torch.ones(1), 1)
    with pytest.raises(ValueError, match="negative entry -2"):
        vmf_entropy(torch.tensor([1.0, -2.0]), 3)
    with pytest.raises(TypeError, match="int64"):
        vmf_mean_resultant(torch.ones(1, dtype=torch.int64), 3)
