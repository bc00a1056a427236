"""The Triton twin of the vMF ops by the interpreter: float64 to the last digits, and where float32 would not do."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from arlat_kernels import Op, vmf_entropy, vmf_kl_uniform, vmf_log_norm, vmf_mean_resultant
from arlat_kernels.testing import check_op
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
pytest.importorskip("triton", reason="the package triton is not installed")

from arlat_kernels import vmf_triton
from arlat_kernels.vmf import DERIVATIVES, reference_value

OPS = (vmf_log_norm, vmf_mean_resultant, vmf_entropy, vmf_kl_uniform)
QUANTITIES = (*DERIVATIVES, "slope")
# Dimensions at and beside every switch: of terms (8, 32), of raised orders (14 in float32, 50 in float64).
DIMS = (2, 3, 7, 8, 13, 14, 31, 32, 49, 50, 257, 2048)


def wide_kappa(dim: int) -> Tensor:
    """float64 κ from 0 to 1e6, denser about the switches of κ at d/5, 12 and 24."""
    at = [torch.tensor([0.0, 1e-300, 1e-30]), torch.logspace(-6, 6, 60)]
    at += [torch.linspace(0.99 * switch, 1.01 * switch, 9) for switch in (dim / 5, 12.0, 24.0)]
    return torch.cat([part.double() for part in at])


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dim", DIMS)
def test_float64_agrees_everywhere(dim: int, quantity: str) -> None:
    kappa = wide_kappa(dim)
    expected = reference_value(kappa, dim, quantity)
    absolute = 1e-12 if quantity in ("log_norm", "scaled_log_norm", "entropy") else 0.0  # these may cross zero
    torch.testing.assert_close(vmf_triton.triton_value(kappa, dim, quantity), expected, rtol=1e-12, atol=absolute)


@pytest.mark.parametrize("name", ["UNIFORM", "NEAR_CONSTANT"])
def test_a_float32_literal_would_be_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kappa = wide_kappa(64)
    expected = reference_value(kappa, 64, "scaled_log_norm")
    exact = vmf_triton.constants

    def narrowed(*arguments: Any) -> dict[str, Any]:
        made = exact(*arguments)
        return {**made, name: float(torch.tensor(made[name], dtype=torch.float32))}

    monkeypatch.setattr(vmf_triton, "constants", narrowed)
    error = (vmf_triton.triton_value(kappa, 64, "scaled_log_norm") - expected).abs()
    assert float(error.max()) > 1e-7  # a hundred thousand times what the test above allows


def zero_of_the_log_norm(dim: int) -> float:
    """κ with log C_d(κ) = 0, by bisection in float64."""
    low, high = 0.0, 100.0 * dim
    for _ in range(100):
        middle = (low + high) / 2
        value = float(vmf_log_norm.reference(torch.tensor(middle, dtype=torch.float64), dim, scaled=False))
        low, high = (middle, high) if value > 0 else (low, middle)
    return low


def plain_float32_log_norm(kappa: Tensor, dim: int) -> Tensor:
    """log C_d(κ) with everything in float32, without the Debye series (which is below 1e-3 and would change nothing)."""
    nu = dim / 2 - 1
    s = torch.sqrt(kappa * kappa + nu * nu)
    main = nu * torch.log(nu + s) + 0.5 * torch.log(s) - nu * nu / (s + kappa)
    return main - (dim - 1) / 2 * torch.log(torch.tensor(2 * torch.pi)) - kappa


@pytest.mark.parametrize("dim", [32, 1024])
def test_float32_log_norm_where_it_crosses_zero(dim: int) -> None:
    zero = zero_of_the_log_norm(dim)
    assert zero > dim / 10
    kappa = torch.linspace(zero * (1 - 1e-4), zero * (1 + 1e-4), 101, dtype=torch.float32)
    exact = vmf_log_norm.reference(kappa.double(), dim, scaled=False)
    assert float(exact.abs().min()) < 1e-2
    assert bool(exact[0] > 0 > exact[-1])
    got = vmf_log_norm.implementation("triton")(kappa, dim, scaled=False)
    allowed = 1e-6 * exact.abs().clamp_min(1)
    assert bool(((got.double() - exact).abs() <= allowed).all())
    if dim == 1024:  # the trap is real: the same main terms in float32 miss it
        jitter = (plain_float32_log_norm(kappa, dim).double() - exact).diff().abs()
        assert float(jitter.max()) > 1e-5


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_float32_is_as_good_as_the_reference_up_to_a_million(op: Op[Any]) -> None:
    flags = [{}] if len(op.options) == 1 else [{op.options[1]: flag} for flag in (False, True)]
    cases = tuple({"n": 200, "dim": dim, "top": 1e6, **flag} for dim in (2, 13, 14, 1024) for flag in flags)
    check_op(op, "triton", cases=cases)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_shapes_zeros_and_the_far_end(op: Op[Any]) -> None:
    run = op.implementation("triton")
    assert run(torch.ones(2, 0, 3), 5).shape == (2, 0, 3)
    strided = torch.rand(3, 4, 10)[..., ::2].transpose(0, 1)
    torch.testing.assert_close(run(strided, 5), op.reference(strided, 5), rtol=1e-6, atol=1e-6)
    far = torch.tensor([0.0, 1e-40, 1e18, 3e38, torch.nan], requires_grad=True)
    value = run(far, 2)
    assert torch.isfinite(value).tolist() == [True, True, True, True, False]
    (slope,) = torch.autograd.grad(value[:4].sum(), far)
    assert bool(torch.isfinite(slope[:4]).all())


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_second_derivative_is_the_references(op: Op[Any]) -> None:
    kappa = torch.tensor([0.3, 11.0, 60.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda k: op.implementation("triton")(k, 6), (kappa,))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_custom_op_passes_opcheck(quantity: str) -> None:
    kappa = torch.tensor([0.3, 11.0, 60.0], requires_grad=True)
    torch.library.opcheck(vmf_triton.vmf_quantity, (kappa, 6, quantity))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_mistakes_are_named_by_the_twin_too(op: Op[Any]) -> None:
    run = op.implementation("triton")
    with pytest.raises(ValueError, match="dim is 1"):
        run(torch.ones(1), 1)
    with pytest.raises(ValueError, match="negative entry -2"):
        run(torch.tensor([1.0, -2.0]), 3)
