"""Every Triton twin on a CUDA device, against float64."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from arlat_kernels import OPS, Op, mixture_nll
from arlat_kernels.testing import check_op

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
