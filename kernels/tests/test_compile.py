"""What torch.compile makes of an op has the op's values and gradients, in either precision, inside a larger program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from arlat_kernels import OPS, Op
from arlat_kernels.testing import convert, evaluate
from torch import Tensor


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_compiled_op_has_its_gradients(op: Op[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARLAT_KERNELS", raising=False)
    torch.compiler.reset()  # one code object for all ops: the limit of recompilations counts them together
    inputs = op.make_inputs(**op.cases[1], generator=torch.Generator().manual_seed(0))
    run = partial(op, **op.settings(op.cases[1]))

    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-7)):
        inside = partial(cast_inside, run, dtype)
        programs = (inside, torch.compile(inside, backend="eager"))
        expected, got = (evaluate(one, inputs, 0, gradients=op.differentiable) for one in programs)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=name)


def cast_inside(run: Callable[..., Any], dtype: torch.dtype, *given: Tensor) -> Any:
    """The op of inputs that are no leaves of the program."""
    return run(*(convert(x, "cpu", dtype) for x in given))


def test_the_trap_is_still_there() -> None:
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.exp().to(x.dtype)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * ctx.saved_tensors[0].exp()

    x = torch.ones(3, requires_grad=True)
    function = torch.compile(lambda x: Exp.apply(2 * x).sum(), backend="eager")  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad(function(x), x)
    if float(gradient[0]) != 0:
        pytest.fail("torch.compile keeps the gradient of an aliased result now: vmf.Quantity need not copy it.")
