"""The von Mises–Fisher normaliser, mean resultant length, entropy and divergence: 398 true points, SciPy, differences."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from arlat_kernels import vmf_entropy, vmf_kl_uniform, vmf_log_norm, vmf_mean_resultant
from arlat_kernels.testing import check_op, evaluate
from arlat_kernels.vmf import vmf_log_norm_uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SHARED = pathlib.Path(os.environ.get("ARLAT_SHARED", pathlib.Path(__file__).resolve().parents[2].parent / "shared"))
DIMS = (2, 3, 8, 16, 32, 64, 128, 256, 512, 1024)
# Largest allowed error for κ in each dtype: (log C + κ, log C, entropy) against max(1, |·|); relative for
# (A, 1 − A, A′, KL). What the float32 law asks is 1e-6, 1e-6, 3e-6 and 1e-6, 2e-6, 3e-6, 6e-6.
ALLOWED = {
    torch.float32: ((1e-7, 1e-7, 6e-7), (2e-7, 5e-7, 1.5e-6, 5e-7)),
    torch.float64: ((2e-11, 2e-11, 2e-11), (2e-15, 2e-15, 1e-14, 1e-11)),
}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "log C + κ": vmf_log_norm,
    "log C": partial(vmf_log_norm, scaled=False),
    "A": vmf_mean_resultant,
    "1 − A": partial(vmf_mean_resultant, complement=True),
    "entropy": vmf_entropy,
    "KL": vmf_kl_uniform,
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
    ratios = {
        "A": length,
        "one_minus_A": vmf_mean_resultant(kappa, dim, complement=True),
        "dA": slope,
        "KL_to_uniform": vmf_kl_uniform(kappa, dim),
    }
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


@pytest.mark.parametrize("dim", [3, 8, 64])
def test_agrees_with_scipys_law(dim: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    pole = torch.eye(dim, dtype=torch.float64)[0].numpy()
    for each in (1.0, 7.5, 60.0, 1000.0):
        law, kappa = stats.vonmises_fisher(pole, each), torch.tensor(each, dtype=torch.float64)
        assert vmf_log_norm(kappa, dim).item() == pytest.approx(float(law.logpdf(pole)), rel=1e-10)
        assert vmf_entropy(kappa, dim).item() == pytest.approx(float(law.entropy()), rel=1e-10)
        divergence = -vmf_log_norm_uniform(dim) - float(law.entropy())
        assert vmf_kl_uniform(kappa, dim).item() == pytest.approx(divergence, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("dim", [2, 8, 64, 2048])
def test_finite_from_the_smallest_to_far_beyond_the_largest(dim: int, name: str) -> None:
    kappa = torch.tensor([0, 1e-40, 1e-30, 1e-6, 1.0, 1e6, 1e10, 1e18, 3e38], requires_grad=True)
    value = FUNCTIONS[name](kappa, dim)
    (gradient,) = torch.autograd.grad(value.sum(), kappa)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("dim", [2, 5, 16, 64])
def test_derivatives_by_finite_differences_twice(dim: int, name: str) -> None:
    kappa = torch.tensor([0.3, 2.0, 11.0, 23.9, 24.1, 60.0], dtype=torch.float64, requires_grad=True)
    function = partial(FUNCTIONS[name], dim=dim)
    assert torch.autograd.gradcheck(function, (kappa,))
    assert torch.autograd.gradgradcheck(function, (kappa,))


@pytest.mark.parametrize("dim", [2, 7, 64, 512])
def test_the_divergence_is_smooth_where_its_series_ends(dim: int) -> None:
    for dtype, most in ((torch.float32, 1e-6), (torch.float64, 1e-11)):
        kappa = torch.linspace(0.2 * dim * (1 - 1e-3), 0.2 * dim * (1 + 1e-3), 41, dtype=dtype)
        exact = vmf_kl_uniform(kappa.double(), dim)
        assert error(vmf_kl_uniform(kappa, dim), exact, 0.0) <= most
        steps = exact.diff() / kappa.double().diff()
        middle = (kappa.double()[1:] + kappa.double()[:-1]) / 2
        (slope,) = torch.autograd.grad(vmf_kl_uniform(middle.requires_grad_(), dim).sum(), middle)
        torch.testing.assert_close(steps, slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("dim", [2, 64])
def test_the_references_compile_without_a_graph_break(dim: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARLAT_KERNELS", raising=False)
    torch._dynamo.reset()  # one code object for all: the limit of recompilations counts them together
    function = partial(FUNCTIONS[name], dim=dim)
    whole = torch.compile(lambda kappa: function(kappa), fullgraph=True, backend="aot_eager")
    inputs = {"kappa": torch.tensor([0.0, 1e-3, 0.7, 11.0, 300.0])}
    got, expected = evaluate(whole, inputs, 0), evaluate(function, inputs, 0)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7, msg=key)


@pytest.mark.parametrize("op", [vmf_log_norm, vmf_mean_resultant, vmf_entropy, vmf_kl_uniform], ids=lambda op: op.name)
def test_float32_is_as_good_up_to_a_million(op: Any) -> None:
    check_op(op, cases=tuple({"n": 300, "dim": dim, "top": 1e6} for dim in (2, 3, 13, 14, 1024)))


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


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(2, 2048), low=st.floats(0, 1e6), step=st.floats(1e-3, 1e3))
def test_the_divergence_is_what_entropy_lost_and_grows(dim: int, low: float, step: float) -> None:
    kappa = torch.tensor([low, low + step], dtype=torch.float64)
    divergence = vmf_kl_uniform(kappa, dim)
    assert bool((divergence >= 0).all())
    assert bool((divergence.diff() > 0).all())
    lost = -vmf_log_norm_uniform(dim) - vmf_entropy(kappa, dim)
    torch.testing.assert_close(divergence, lost, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(2, 2048), kappa=st.floats(0, 1e6, width=32))
def test_float32_divergence_keeps_its_digits(dim: int, kappa: float) -> None:
    narrow = torch.tensor([kappa], dtype=torch.float32)
    exact = vmf_kl_uniform(narrow.double(), dim)
    got = vmf_kl_uniform(narrow, dim)
    assert bool((got >= 0).all())
    torch.testing.assert_close(got.double(), exact, rtol=6e-6, atol=1e-37)


def test_shapes_are_kept_and_narrow_dtypes_come_back_as_float32() -> None:
    kappa = torch.rand(2, 3, 0)
    wide = torch.rand(4, 10)[:, ::2]
    half = torch.tensor([0.5, 7.0, 600.0], dtype=torch.bfloat16)
    for function in FUNCTIONS.values():
        assert function(kappa, 8).shape == (2, 3, 0)
        assert torch.equal(function(wide, 8), function(wide.contiguous(), 8))
        assert torch.equal(function(half, 8), function(half.float(), 8))


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_many_entries_are_worked_on_in_parts(name: str) -> None:
    kappa = torch.logspace(-3, 5, 3 * 46_000).reshape(3, -1)
    whole = FUNCTIONS[name](kappa, 6)
    assert whole.shape == kappa.shape
    for row in range(3):
        torch.testing.assert_close(whole[row, ::1000], FUNCTIONS[name](kappa[row, ::1000], 6), rtol=1e-6, atol=1e-6)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="dim is 1"):
        vmf_log_norm(torch.ones(1), 1)
    with pytest.raises(ValueError, match="negative entry -2"):
        vmf_entropy(torch.tensor([1.0, -2.0]), 3)
    with pytest.raises(ValueError, match="negative entry -3"):
        vmf_kl_uniform(torch.tensor([torch.nan, -2.0, -3.0]), 3)
    with pytest.raises(TypeError, match="int64"):
        vmf_mean_resultant(torch.ones(1, dtype=torch.int64), 3)


def test_nan_stays_nan() -> None:
    for function in FUNCTIONS.values():
        assert torch.isnan(function(torch.tensor([1.0, torch.nan]), 3)).tolist() == [False, True]
