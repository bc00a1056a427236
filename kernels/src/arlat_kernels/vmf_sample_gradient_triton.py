"""The gradients of the Triton twin of `vmf_draw`: a row kernel for the quadrature, a tile kernel for the vectors."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from arlat_kernels.mixture_triton import on_device, rows_strided
from arlat_kernels.vmf_sample_gradient import CLOSED, NODES, QUADRATURE
from arlat_kernels.vmf_series import DOUBLE, terms

LANES = 32  # rows of one program of the row kernels: a single warp, one row per thread
TILE = 1024  # entries of [rows, columns] of one program of the tile kernels


@triton.jit
def load_pole(mu_ptr, row, col, mask, mu_row, ACC: tl.constexpr):
    """μ/|μ| (the first axis where μ is zero) and |μ| of a tile of whole rows."""
    mu = tl.load(mu_ptr + row[:, None] * mu_row + col[None, :], mask, 0).to(ACC)
    length = tl.sqrt(tl.sum(mu * mu, 1))
    axis = (col == 0).to(ACC)[None, :]
    none = (length == 0)[:, None]
    return tl.where(none, axis, mu / tl.where(length == 0, 1.0, length)[:, None]), length


@triton.jit
def slope_kernel(
    kappa_ptr,  # [n]
    gap_ptr,  # [n] float64
    slope_ptr,  # [n] float64: (dw/dκ)/(1 − w²)
    n,
    D: tl.constexpr,
    LANES: tl.constexpr,
    TERMS: tl.constexpr,
    NODES: tl.constexpr,
    QUADRATURE: tl.constexpr,
    FIRST: tl.constexpr,
    CLOSED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    alive = row < n
    kappa = tl.load(kappa_ptr + row, alive, 0).to(tl.float64)
    gap = tl.load(gap_ptr + row, alive, 1)
    f = tl.zeros([LANES], tl.float64)  # Perron's continued fraction for 1 − A
    for j in range(TERMS):
        f = -((D - 1) + 2 * (TERMS - j)) * kappa / (2.0 * kappa + (D + (TERMS - j)) + f)
    rest = (D + f) / (kappa + (D + f))
    up = gap < rest
    sign = tl.where(up, 1.0, -1.0).to(tl.float64)
    own = tl.where(up, gap, 2.0 - gap)
    total = tl.zeros([LANES], tl.float64)
    if D == 2:
        tail = tl.minimum(36.0 / (kappa * (2.0 - gap)), 1.0)
        reach = tl.where(up, 1.0, tail / (1.0 + tl.sqrt(1.0 - tail)))
        for j in tl.static_range(NODES):
            part = reach * tl.full([LANES], QUADRATURE[j][0], tl.float64)
            fall = part * (2.0 - part)
            side = tl.where(up, gap * (1.0 - fall), gap + own * fall)
            value = (rest - side) * tl.exp(sign * kappa * own * fall) / tl.sqrt(1.0 - own / 2.0 + own / 2.0 * fall)
            total += value * tl.full([LANES], QUADRATURE[j][1], tl.float64)
        total = total / tl.sqrt(1.0 - own / 2.0)
    else:
        a = own / 2.0
        b = tl.where(up, 2.0 - gap, gap) / 2.0
        double = gap * (2.0 - gap)
        first = tl.full([LANES], FIRST, tl.float64)
        reach = tl.minimum(16.0 / tl.abs((D - 1) * (1.0 - gap) - kappa * double), first)
        q = kappa * double / 2.0
        wide = 0.5 * tl.log(1.0 + 32.0 / q)
        narrow = tl.minimum(tl.sqrt(8.0 / q), tl.maximum(wide, tl.full([LANES], 0.63, tl.float64)))
        reach = tl.where((gap >= rest) & (kappa * (2.0 - gap) > 32.0), tl.minimum(reach, narrow), reach)
        for j in tl.static_range(NODES):
            distance = reach * tl.full([LANES], QUADRATURE[j][0], tl.float64)
            e = tl.exp(-2.0 * distance)
            m = 1.0 - e
            ratio = e + b * m
            side = 2.0 * tl.where(up, a * e, b) / ratio
            exponent = sign * (2.0 * kappa * a * b * m / ratio) - (D - 1) * (distance + tl.log(ratio))
            total += (rest - side) * tl.exp(exponent) * tl.full([LANES], QUADRATURE[j][1], tl.float64)
    h = sign * reach * total
    if D == 3:  # elementary there; at κ from CLOSED on nothing cancels
        share = (1.0 - tl.exp(-kappa * gap)) / (1.0 - tl.exp(-2.0 * kappa))
        closed = (gap - 2.0 * tl.exp(-kappa * (2.0 - gap)) * share) / (kappa * gap * (2.0 - gap))
        h = tl.where(kappa < CLOSED, h, closed)
    tl.store(slope_ptr + row, h, alive)


@triton.jit
def backward_kernel(
    grad_ptr,  # [n d]
    mu_ptr,  # [n d], row stride given, last one 1
    x_ptr,  # [n d]
    gap_ptr,  # [n] float64
    slope_ptr,  # [n] float64
    grad_mu_ptr,  # [n d]
    grad_kappa_ptr,  # [n]
    n,
    mu_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    alive = row < n
    mask = alive[:, None] & (col < D)[None, :]
    pole, length = load_pole(mu_ptr, row, col, mask, mu_row, ACC)
    grad = tl.load(grad_ptr + row[:, None] * D + col[None, :], mask, 0).to(ACC)
    x = tl.load(x_ptr + row[:, None] * D + col[None, :], mask, 0).to(ACC)
    t = tl.load(gap_ptr + row, alive, 0).to(ACC)[:, None]
    h = tl.load(slope_ptr + row, alive, 0).to(ACC)
    along = tl.sum(grad * pole, 1)[:, None]
    inverse = tl.where(length > 0, 1.0 / length, 0.0)[:, None]
    tl.store(grad_mu_ptr + row[:, None] * D + col[None, :], ((1.0 - t) * grad - along * x) * inverse, mask)
    # m − x first: m·g and w x·g agree to many digits at large κ.
    tl.store(grad_kappa_ptr + row, h * tl.sum(grad * (pole - x + t * x), 1), alive)


def tile(d: int) -> dict[str, int]:
    """Rows and columns of one program of the tile kernels; columns are whole rows, in quads."""
    block = max(4, triton.next_power_of_2(d))
    return {"ROWS": max(1, min(128, TILE // block)), "BLOCK": block}


def warps(d: int) -> int:
    """Warps of a tile kernel: at most 16 columns a thread, up to 16 warps."""
    return min(16, max(4, tile(d)["BLOCK"] // 512))


def gradient_constants(name: str, d: int, dtype: torch.dtype) -> dict[str, Any]:
    """Every compile-time constant of one launch of the kernel `name`, "slope" or "backward"."""
    if name == "backward":
        return {"D": d, **tile(d), "ACC": tl.float64 if dtype == torch.float64 else tl.float32}
    fixed = {"D": d, "LANES": LANES, "TERMS": terms(d, DOUBLE), "NODES": NODES, "QUADRATURE": QUADRATURE}
    return {**fixed, "FIRST": 16 / (d - 1) + (32 / (d - 1)) ** 0.5, "CLOSED": CLOSED}


@torch.library.custom_op("arlat::vmf_draw_backward", mutates_args=())
def vmf_draw_backward(grad: Tensor, mu: Tensor, kappa: Tensor, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of μ and κ for the gradient [n d] of the draws."""
    n, d = mu.shape
    grad_mu, grad_kappa, slope = mu.new_empty(mu.shape), kappa.new_empty(kappa.shape), torch.empty_like(gap)
    mu = rows_strided(mu)
    if n:
        with on_device(mu):
            slope_kernel[(triton.cdiv(n, LANES),)](
                kappa.contiguous(), gap, slope, n, **gradient_constants("slope", d, mu.dtype), num_warps=1
            )
            backward_kernel[(triton.cdiv(n, tile(d)["ROWS"]),)](
                grad.contiguous(), mu, x, gap, slope, grad_mu, grad_kappa, n, mu.stride(0),
                **gradient_constants("backward", d, mu.dtype), num_warps=warps(d),
            )  # fmt: skip
    return grad_mu, grad_kappa


@vmf_draw_backward.register_fake
def _(grad: Tensor, mu: Tensor, kappa: Tensor, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), kappa.new_empty(kappa.shape)
