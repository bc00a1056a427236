"""check_op accepts the references and notices every planted fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from arlat_kernels import OPS, Op
from arlat_kernels.op import Inputs, Twin
from arlat_kernels.testing import check_op
from torch import Tensor


def make_inputs(n: int, *, generator: torch.Generator) -> Inputs:
    return {"x": torch.randn(n, 3, generator=generator)}


def reference(x: Tensor) -> Tensor:
    return x.exp().sum(-1)


OP = Op("exp_sum", reference, make_inputs, ({"n": 5}, {"n": 0}))


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return reference(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient: Tensor = grad.unsqueeze(-1) * x.exp() * (1 + 1e-5)
        return gradient


def dense_only(x: Tensor) -> Tensor:
    return x.as_strided((len(x), 3), (3, 1)).exp().sum(-1)


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "value": (lambda x: reference(x) * (1 + 1e-5), "value: error"),
    "gradient": (WrongGradient.apply, "grad_x: error"),
    "not finite": (lambda x: reference(x) + torch.where(x[..., 0] > 0, torch.nan, 0.0), "not finite"),
    "shape": (lambda x: reference(x).unsqueeze(-1), "shape"),
    "dtype": (lambda x: reference(x).double(), "dtype"),
    "strides": (dense_only, "strided"),
    "depends on grad mode": (lambda x: reference(x) + (0 if torch.is_grad_enabled() else 1), "no_grad changes"),
}


@pytest.mark.parametrize("each", OPS, ids=lambda each: each.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_reference_passes(each: Op, dtype: torch.dtype) -> None:
    check_op(each, dtype=dtype)


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_planted_fault_is_noticed(fault: str) -> None:
    run, message = FAULTS[fault]
    broken = replace(OP, twins={"broken": Twin(run=run, obstacle=lambda *_: None)})
    check_op(broken)
    with pytest.raises(AssertionError, match=message):
        check_op(broken, "broken")


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="narrower dtype"):
        check_op(OP, dtype=torch.float64)
