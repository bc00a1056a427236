"""Every Triton twin on a CUDA device, against float64."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from arlat_kernels import OPS, Op, mixture_nll, residual_rollout_op
from arlat_kernels.testing import check_op, convert, evaluate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there is no CUDA device (torch.cuda.is_available() is False)"
    ),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: kernels are interpreted"),
]
TWINS = [op for op in OPS if "triton" in op.twins]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.name)
def test_twin_is_as_good_as_the_reference(op: Op[Any], dtype: torch.dtype) -> None:
    check_op(op, "triton", dtype=dtype, device="cuda")


@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.name)
def test_the_device_picks_the_twin(op: Op[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARLAT_KERNELS", raising=False)
    made = op.make_inputs(**op.cases[1], generator=torch.Generator().manual_seed(0))
    assert op.pick(*(tensor.cuda() for tensor in made.values()), **op.settings(op.cases[1])) == "triton"


def test_mixture_repeats_bitwise() -> None:
    made = mixture_nll.make_inputs(4096, 8, 64, generator=torch.Generator().manual_seed(0))
    leaves = [tensor.cuda().requires_grad_() for tensor in made.values()]
    runs = [torch.autograd.grad(mixture_nll(*leaves).sum(), leaves) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_mixture_needs_a_quarter_of_the_memory() -> None:
    made = mixture_nll.make_inputs(4096, 8, 512, generator=torch.Generator().manual_seed(0))
    inputs = [tensor.cuda() for tensor in made.values()]
    peaks = []
    for name in ("reference", "triton"):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        value = mixture_nll.implementation(name)(*leaves)
        peaks.append(torch.cuda.max_memory_allocated() - base)
        del value, leaves
    assert peaks[1] <= peaks[0] / 4


@pytest.mark.parametrize(
    "case", [{"d": 32, "s": 32}, {"d": 64, "s": 64}, {"d": 64, "s": 128}, {"d": 128, "s": 128}], ids=str
)
def test_rollout_with_bfloat16_operands(case: dict[str, int]) -> None:
    shape = {"m": 2, "b": 300, "k": 16, "w": 8, "h": 256, "layers": 3, **case}
    made = residual_rollout_op.make_inputs(**shape, generator=torch.Generator().manual_seed(0))
    given = {name: tensor.cuda() for name, tensor in made.items()}
    settings = {"operands": "bfloat16"}
    assert residual_rollout_op.pick(*given.values(), **settings) == "triton"
    exact = {name: convert(tensor, "cuda", torch.float64) for name, tensor in given.items()}
    truth = evaluate(residual_rollout_op.reference, exact, 0)
    reference = evaluate(residual_rollout_op.reference, given, 0, settings)
    first, again = (evaluate(residual_rollout_op.implementation("triton"), given, 0, settings) for _ in range(2))
    for name, true in truth.items():
        far, own = (float((each[name] - true).norm() / true.norm()) for each in (first, reference))
        assert far < 2 * own + 1e-3, name
        assert torch.equal(first[name], again[name]), name


def test_rollout_is_captured_in_a_graph() -> None:
    made = residual_rollout_op.make_inputs(1, 65, 4, 3, 32, 32, 64, 1, generator=torch.Generator().manual_seed(0))
    leaves = [tensor.cuda().requires_grad_(tensor.is_floating_point()) for tensor in made.values()]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]

    def once() -> list[torch.Tensor]:
        out = residual_rollout_op.implementation("triton")(*leaves)
        return [*out, *torch.autograd.grad(sum(field.sum() for field in out), wanted)]  # type: ignore[arg-type]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = once()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = once()
    graph.replay()
    torch.cuda.synchronize()
    for got, value in zip(captured, expected, strict=True):
        assert torch.equal(got, value)
