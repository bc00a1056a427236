"""Every Triton twin on the CPU, by Triton's interpreter, which must be chosen before the kernels are imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from arlat_kernels import OPS, Op
from arlat_kernels.testing import check_op, convert, evaluate, results

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
pytest.importorskip("triton", reason="the package triton is not installed")

TWINS = [op for op in OPS if "triton" in op.twins]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that a place which a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert bool(torch.isnan(torch.empty(1000)).all())
    yield
    torch.use_deterministic_algorithms(before)


# bfloat16 results are not here: the interpreter truncates where a device rounds.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.name)
def test_twin_is_as_good_as_the_reference(op: Op[Any], dtype: torch.dtype) -> None:
    check_op(op, "triton", dtype=dtype)


@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.name)
def test_bfloat16_inputs_are_upcast_exactly(op: Op[Any]) -> None:
    made = op.make_inputs(**op.cases[1], generator=torch.Generator().manual_seed(0))
    narrow = [convert(tensor, "cpu", torch.bfloat16) for tensor in made.values()]
    settings, run = op.settings(op.cases[1]), op.implementation("triton")
    wide = run(*(convert(tensor, "cpu", torch.float32) for tensor in narrow), **settings)
    for got, expected in zip(results(run(*narrow, **settings)).values(), results(wide).values(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.name)
def test_float64_agrees_and_passes_gradcheck(op: Op[Any]) -> None:
    made = op.make_inputs(**op.cases[1], generator=torch.Generator().manual_seed(0))
    inputs = [convert(tensor, "cpu", torch.float64) for tensor in made.values()]
    inputs = [tensor.requires_grad_(op.differentiable and tensor.is_floating_point()) for tensor in inputs]
    run = partial(op.implementation("triton"), **op.settings(op.cases[1]))
    expected = op.reference(*inputs, **op.settings(op.cases[1]))
    torch.testing.assert_close(run(*inputs), expected, rtol=1e-12, atol=1e-12)
    if op.differentiable and op.pathwise:
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.name)
def test_the_variable_forces_the_twin(op: Op[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = op.make_inputs(**op.cases[1], generator=torch.Generator().manual_seed(0))
    settings = op.settings(op.cases[1])
    monkeypatch.delenv("ARLAT_KERNELS", raising=False)
    assert op.pick(*made.values(), **settings) == "reference"
    monkeypatch.setenv("ARLAT_KERNELS", "triton")
    assert op.pick(*made.values(), **settings) == "triton"
    torch.testing.assert_close(op(*made.values(), **settings), op.reference(*made.values(), **settings))


@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.name)
def test_compiles_without_a_graph_break(op: Op[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARLAT_KERNELS", "triton")
    made = op.make_inputs(**op.cases[1], generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()  # one code object for all ops: the limit of recompilations counts them together
    eager = partial(op, **op.settings(op.cases[1]))
    whole = torch.compile(lambda *inputs: eager(*inputs), fullgraph=True, backend="aot_eager")
    got, expected = (evaluate(run, made, 0, gradients=op.differentiable) for run in (whole, eager))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, msg=name)


def test_mixture_has_no_gap_at_a_closed_component_or_a_chunked_head() -> None:
    from arlat_kernels import mixture_nll

    generator = torch.Generator().manual_seed(0)
    head = torch.randn(2, 5, 3, 40, generator=generator)
    mean, log_scale = head.chunk(2, -1)  # strides of a head's two halves
    logits = torch.randn(2, 5, 3, generator=generator)
    logits[..., 0] = -torch.inf
    x = torch.randn(2, 5, 20, generator=generator)
    results = []
    for name in ("reference", "triton"):
        leaves = [tensor.detach().requires_grad_() for tensor in (logits, mean, log_scale, x)]
        value = mixture_nll.implementation(name)(*leaves)
        value.sum().backward()  # type: ignore[no-untyped-call]
        results.append([value, *(leaf.grad for leaf in leaves)])
    for reference, twin in zip(*results, strict=True):
        torch.testing.assert_close(twin, reference, rtol=1e-5, atol=1e-5)


def test_mixture_passes_opcheck() -> None:
    from arlat_kernels import mixture_nll
    from arlat_kernels.mixture_triton import mixture_nll_forward

    made = mixture_nll.make_inputs(3, 2, 5, generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(mixture_nll_forward, tuple(tensor.requires_grad_() for tensor in made.values()))


def test_a_block_of_many_dimensions_is_walked() -> None:
    from arlat_kernels import mixture_nll

    check_op(mixture_nll, "triton", cases=({"n": 2, "m": 2, "d": 1031}, {"n": 2, "m": 33, "d": 3}))
