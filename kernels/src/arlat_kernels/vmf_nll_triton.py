"""The Triton twin of the von Mises–Fisher NLL: two lengths and a distance per row, then row functions, then gradients.

Imported only where Triton is installed. One kernel reads mean (or mu) and x once and writes ‖mean‖, ‖x‖ and
g = 1 − cosine per row; the normaliser and its slope are the row functions `vmf_log_norm` and `vmf_mean_resultant` on [n];
one kernel reads both again and writes their gradients. Evaluated inside a [rows, dimensions] tile, every thread of a
row would repeat the Bessel series. All sums are in float64, as in the reference: about five operations for eight bytes,
which hide behind the loads on devices whose float64 runs at half rate.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.mixture_triton import on_device, rows_strided
from arlat_kernels.vmf import vmf_log_norm, vmf_mean_resultant
from arlat_kernels.vmf_nll import SHORTEST, check_shapes, result_dtype

TILE = 1024  # entries of [rows, dimensions] held at once by four warps
BLOCK_MAX = 2048
ROWS_MAX = 64  # rows of few dimensions: each thread keeps the sums of every row that it holds a part of


@triton.jit
def load_wide(pointer, row, stride, col, mask):
    """Entries [rows, block] of a [n d] array, in float64."""
    return tl.load(pointer + row[:, None] * stride + col[None, :], mask, 0).to(tl.float64)


@triton.jit
def inverse(length, SHORTEST: tl.constexpr):
    """1/length, or 0 below SHORTEST."""
    inside = length > SHORTEST
    return tl.where(inside, 1.0 / tl.where(inside, length, 1.0), 0.0)


@triton.jit
def reduce_kernel(
    mean_ptr,  # [n d], row stride given, last one 1
    x_ptr,  # [n d], likewise
    rows_ptr,  # [3 n] float64: ‖mean‖, ‖x‖, 1 − cosine
    n,
    mean_row,
    x_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHORTEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    mean_square = tl.zeros([ROWS], tl.float64)
    x_square = tl.zeros([ROWS], tl.float64)
    for c in range(BLOCKS):
        col = c * BLOCK + tl.arange(0, BLOCK)
        mask = alive[:, None] & (col < D)[None, :]
        m = load_wide(mean_ptr, row, mean_row, col, mask)
        x = load_wide(x_ptr, row, x_row, col, mask)
        mean_square += tl.sum(m * m, 1)
        x_square += tl.sum(x * x, 1)
    mean_length = tl.sqrt(mean_square)
    x_length = tl.sqrt(x_square)
    mean_inverse = inverse(mean_length, SHORTEST)
    x_inverse = inverse(x_length, SHORTEST)
    distance = tl.zeros([ROWS], tl.float64)
    for c in range(BLOCKS):  # with one block the compiler keeps the entries in registers
        col = c * BLOCK + tl.arange(0, BLOCK)
        mask = alive[:, None] & (col < D)[None, :]
        m = load_wide(mean_ptr, row, mean_row, col, mask)
        x = load_wide(x_ptr, row, x_row, col, mask)
        away = m * mean_inverse[:, None] - x * x_inverse[:, None]
        distance += tl.sum(away * away, 1)
    both = (mean_inverse > 0) & (x_inverse > 0)
    at = rows_ptr + row
    tl.store(at, mean_length, alive)
    tl.store(at + n, x_length, alive)
    tl.store(at + 2 * n, tl.where(both, 0.5 * distance, 1.0), alive)


@triton.jit
def backward_kernel(
    mean_ptr,  # [n d], row stride given, last one 1
    x_ptr,  # [n d], likewise
    kappa_ptr,  # [n]: the concentration where mean is a direction, unread otherwise
    rows_ptr,  # [3 n] of the forward pass
    slope_ptr,  # [n] float64: 1 − A(κ)
    grad_ptr,  # [n] gradient of the value
    grad_mean_ptr,  # [n d]
    grad_kappa_ptr,  # [n], unwritten where mean is the natural parameter
    grad_x_ptr,  # [n d]
    n,
    mean_row,
    x_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHORTEST: tl.constexpr,
    POLAR: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    grad = tl.load(grad_ptr + row, alive, 0).to(tl.float64)
    slope = tl.load(slope_ptr + row, alive, 0)
    mean_length = tl.load(rows_ptr + row, alive, 0)
    x_length = tl.load(rows_ptr + n + row, alive, 0)
    distance = tl.load(rows_ptr + 2 * n + row, alive, 0)
    mean_inverse = inverse(mean_length, SHORTEST)
    x_inverse = inverse(x_length, SHORTEST)
    if POLAR:
        kappa = tl.load(kappa_ptr + row, alive, 0).to(tl.float64)
        tl.store(grad_kappa_ptr + row, grad * (distance - slope), alive)
        pull = tl.where(x_inverse > 0, grad * kappa * mean_inverse, 0.0)
        along = pull * distance  # the gradient of mu is pull·(μ − x) − pull·g·μ, tangential
    else:
        kappa = mean_length
        pull = grad
        along = grad * slope
    push = grad * kappa * x_inverse
    for c in range(BLOCKS):
        col = c * BLOCK + tl.arange(0, BLOCK)
        mask = alive[:, None] & (col < D)[None, :]
        mu = load_wide(mean_ptr, row, mean_row, col, mask) * mean_inverse[:, None]
        x = load_wide(x_ptr, row, x_row, col, mask) * x_inverse[:, None]
        away = mu - x
        at = row[:, None] * D + col[None, :]
        tl.store(grad_mean_ptr + at, pull[:, None] * away - along[:, None] * mu, mask)
        tl.store(grad_x_ptr + at, -push[:, None] * (away + distance[:, None] * x), mask)


def tile(d: int) -> dict[str, int]:
    """Rows, block of dimensions and number of blocks of one program."""
    block = min(triton.next_power_of_2(d), BLOCK_MAX)
    return {"ROWS": max(1, min(ROWS_MAX, TILE // block)), "BLOCK": block, "BLOCKS": triton.cdiv(d, block)}


def warps(d: int) -> int:
    """Four warps for TILE entries, eight for a block of twice as many."""
    return 4 if d <= TILE else 8


def constants(d: int) -> dict[str, Any]:
    """Every compile-time constant of one launch but POLAR; what ahead-of-time builds compile is made here too."""
    return {"D": d, **tile(d), "SHORTEST": SHORTEST}


@torch.library.custom_op("arlat::vmf_nll", mutates_args=())
def vmf_nll_forward(mean: Tensor, kappa: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """The value [n] and ‖mean‖, ‖x‖, 1 − cosine [3 n] in float64; mean is the natural parameter where kappa is None."""
    n, d = mean.shape
    rows = mean.new_empty(3, n, dtype=torch.float64)
    if n == 0:
        return mean.new_empty(0, dtype=result_dtype(mean)), rows
    mean, x, fixed = rows_strided(mean), rows_strided(x), constants(d)
    with on_device(mean):
        reduce_kernel[(triton.cdiv(n, fixed["ROWS"]),)](
            mean, x, rows, n, mean.stride(0), x.stride(0), **fixed, num_warps=warps(d)
        )
    concentration = rows[0] if kappa is None else kappa.double()
    value = concentration * rows[2] - vmf_log_norm(concentration, d)
    return value.to(result_dtype(mean)), rows


@vmf_nll_forward.register_fake
def _(mean: Tensor, kappa: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    n = mean.shape[0]
    return mean.new_empty(n, dtype=result_dtype(mean)), mean.new_empty(3, n, dtype=torch.float64)


@torch.library.custom_op("arlat::vmf_nll_backward", mutates_args=())
def vmf_nll_backward(
    grad: Tensor, mean: Tensor, kappa: Tensor | None, x: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of mean, kappa (empty where there is none) and x for the gradient [n] of the value."""
    n, d = mean.shape
    grad_mean, grad_kappa, grad_x = empty_gradients(mean, kappa, x)
    if n == 0:
        return grad_mean, grad_kappa, grad_x
    mean, x, fixed = rows_strided(mean), rows_strided(x), constants(d)
    concentration = rows[0] if kappa is None else kappa.contiguous()
    slope = vmf_mean_resultant(concentration.double(), d, complement=True)
    with on_device(mean):
        backward_kernel[(triton.cdiv(n, fixed["ROWS"]),)](
            mean, x, concentration, rows, slope, grad.contiguous(), grad_mean, grad_kappa, grad_x,
            n, mean.stride(0), x.stride(0), **fixed, POLAR=kappa is not None, num_warps=warps(d),
        )  # fmt: skip
    return grad_mean, grad_kappa, grad_x


def empty_gradients(mean: Tensor, kappa: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dense tensors for the gradients of mean, kappa and x."""
    grad_kappa = mean.new_empty(0) if kappa is None else kappa.new_empty(kappa.shape)
    return mean.new_empty(mean.shape), grad_kappa, x.new_empty(x.shape)


@vmf_nll_backward.register_fake
def _(grad: Tensor, mean: Tensor, kappa: Tensor | None, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(mean, kappa, x)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor], output: tuple[Tensor, Tensor]) -> None:
    mean, kappa, x = inputs
    ctx.polar = kappa is not None
    ctx.save_for_backward(mean, *(() if kappa is None else (kappa,)), x, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    mean, *kappa, x, rows = ctx.saved_tensors
    grad_mean, grad_kappa, grad_x = vmf_nll_backward(grad, mean, kappa[0] if ctx.polar else None, x, rows)
    return grad_mean, grad_kappa if ctx.polar else None, grad_x


vmf_nll_forward.register_autograd(_gradients, setup_context=_save)


def vmf_nll_triton(mean: Tensor, kappa: Tensor | None, x: Tensor) -> Tensor:
    """What the reference gives for (mean, x), or for (mu, kappa, x), leading axes of any number; once differentiable."""
    check_shapes(mean, *(() if kappa is None else (kappa,)), x)
    lead, d = mean.shape[:-1], mean.shape[-1]
    value: Tensor
    value, _ = vmf_nll_forward(mean.reshape(-1, d), None if kappa is None else kappa.reshape(-1), x.reshape(-1, d))
    return value.reshape(lead)


SHIPPED: tuple[tuple[int, torch.dtype], ...] = (
    (8, torch.float32),
    (64, torch.float32),
    (512, torch.float32),
    (512, torch.bfloat16),
    (1024, torch.float32),
)


def builds(polar: bool) -> tuple[Build, ...]:
    """What is compiled ahead of time: the gradients of one form, and with the natural one the shared reduction."""
    result = []
    kernels = ((("backward_polar", backward_kernel),) if polar else
               (("reduce", reduce_kernel), ("backward_natural", backward_kernel)))  # fmt: skip
    for d, dtype in SHIPPED:
        narrow = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
        types = {"rows_ptr": "*fp64", "slope_ptr": "*fp64", "grad_ptr": "*fp32"}
        if not polar:
            types["kappa_ptr"] = "*fp64"  # the row of lengths stands in for it
        for name, kernel in kernels:
            fixed = constants(d) if kernel is reduce_kernel else {**constants(d), "POLAR": polar}
            result.append(
                Build(
                    name=f"vmf_nll/{name}/d{d}_{narrow.removeprefix('*')}",
                    kernel=kernel,
                    constants=fixed,
                    types={p: types.get(p, narrow) for p in kernel.arg_names if p.endswith("_ptr")},
                    aligned=d % 16 == 0,
                    warps=warps(d),
                )
            )
    return tuple(result)
