"""Faults of Triton 3.6's interpreter that the kernels and the pins step around: when one is mended, its test says so."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
triton = pytest.importorskip("triton", reason="the package triton is not installed")
tl = pytest.importorskip("triton.language", reason="the package triton is not installed")


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


@triton.jit
def count_kernel(out_ptr, steps):
    total = 0
    for step in range(steps):
        total += step
    tl.store(out_ptr, total)


@triton.jit
def narrow_kernel(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(tl.bfloat16).to(tl.float32))


def product(dtype: torch.dtype) -> float:
    """Largest error of a 16×16 product in the interpreter."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator).to(dtype) for _ in range(2))
    c = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, c, 16)
    return float((c - a.float() @ b.float()).abs().max())


def test_a_bfloat16_dot_multiplies_bit_patterns() -> None:
    assert product(torch.float16) < 1e-2
    assert product(torch.bfloat16) > 1e3, "the interpreter multiplies bfloat16 rightly now: kernels need no emulation"


def test_a_cast_to_bfloat16_truncates() -> None:
    x = torch.tensor([1.9999, -1.9999] * 8)
    out = torch.empty(16)
    narrow_kernel[(1,)](x, out, 16)
    assert torch.equal(x.bfloat16().float().abs(), torch.full((16,), 2.0))
    assert bool((out.abs() < 2).all()), "the interpreter rounds to bfloat16 now: its results may enter the suite"


def test_range_over_a_run_time_value_needs_the_pinned_numpy() -> None:
    assert np.lib.NumpyVersion(np.__version__) < "2.4.0", "the development pin on numpy is gone"
    out = torch.zeros(1, dtype=torch.int64)
    count_kernel[(1,)](out, 5)
    assert out.item() == 10
