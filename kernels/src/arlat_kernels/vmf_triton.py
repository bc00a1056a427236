"""The Triton twin of the vMF ops: one elementwise kernel, one concentration a thread, switched at compile time.

Imported only where Triton is installed. The series are those of `vmf_series`: continued fraction and Debye polynomial
in the dtype of κ (float32 or float64), the main terms of the normaliser in float64, where fusing a multiplication
with an addition can do no harm. Constants that float32 does not hold are made by `tl.full` in the right dtype: a
literal that meets no float64 value (both branches of a `where`) is float32. No libdevice: the interpreter has none.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.mixture_triton import on_device
from arlat_kernels.vmf import derivative, slope_value
from arlat_kernels.vmf_series import (
    DEBYE,
    DOUBLE,
    SINGLE,
    debye_at_zero,
    divergence_series,
    far_constant,
    near_constant,
    raised_order,
    rows,
    terms,
    vmf_log_norm_uniform,
)

COEFFICIENTS = tl.constexpr(tuple(coefficient for row in DEBYE for coefficient in row))  # row n begins at n(n+3)/2
BLOCK = 128
WARPS = 4


@triton.jit
def perron(k, D: tl.constexpr, TERMS: tl.constexpr):
    """g with A = κ/(κ+g), in the dtype of κ."""
    base = 2 * k + D
    f = tl.zeros_like(k)
    for i in range(TERMS):
        n = TERMS - i
        f = -(D + 2 * n - 1) * (k / (base + n + f))
    return D + f


@triton.jit
def slope(k, D: tl.constexpr, TERMS: tl.constexpr):
    """A′ in the dtype of κ."""
    base = 2 * k + D
    f = tl.zeros_like(k)
    u = tl.zeros_like(k)
    for i in range(TERMS):
        n = TERMS - i
        r = 1 / (base + n + f)
        m = (D + 2 * n - 1) * (k * r)
        u = -m * r * (2 * k + (f - u))
        f = -m
    scale = 1 / (k + (D + f))
    return (D + u) * scale * scale


@triton.jit
def log1p(x):
    """log(1 + x) for float64 x ≥ 0."""
    one = 1 + x
    step = one - 1  # what of x arrived in `one`
    exact = step == 0
    return tl.where(exact, x, tl.log(one) * (x / tl.where(exact, 1.0, step)))


@triton.jit
def debye_row(t, ROW: tl.constexpr):
    """Σ_j c_j t^j of one row, in the dtype of t."""
    inner = tl.full(t.shape, COEFFICIENTS[ROW * (ROW + 3) // 2 + ROW + 1], t.dtype)
    for j in tl.static_range(ROW + 1):
        inner = inner * t + tl.full(t.shape, COEFFICIENTS[ROW * (ROW + 3) // 2 + ROW - j], t.dtype)
    return inner


@triton.jit
def debye(s, nu, COUNT: tl.constexpr):
    """The first rows of the Debye series, in the dtype of s."""
    w = 1 / s
    t = (w * nu) * (w * nu)
    total = tl.zeros_like(w)
    for i in tl.static_range(COUNT):
        total = (total + debye_row(t, COUNT - 1 - i)) * w
    return total


@triton.jit
def lowering(k, ABOVE: tl.constexpr, TERMS: tl.constexpr, NU: tl.constexpr, STEPS: tl.constexpr):
    """log ₀F₁ at the order NU less that at NU + STEPS, float64."""
    wide = k.to(tl.float64)
    q = ABOVE / (k + perron(k, ABOVE, TERMS)).to(tl.float64)
    quarter = wide * wide * 0.25
    product = tl.zeros_like(wide)
    for i in range(STEPS):
        j = STEPS - 1 - i
        z = quarter * q / ((NU + j + 1) * (NU + j + 2))
        q = 1 / (1 + z)
        product = product + z * (1 + product)
    return log1p(product)


@triton.jit
def excess(
    k,
    NU: tl.constexpr,
    STEPS: tl.constexpr,  # by which the order is raised below FAR
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    RAISED: tl.constexpr,
    RAISED_TERMS: tl.constexpr,
    NEAR_CONSTANT: tl.constexpr,
    FAR_CONSTANT: tl.constexpr,
):
    """log C + κ − log C(0), float64; half-integers and their squares are exact as literals."""
    wide = k.to(tl.float64)
    constant = tl.full(k.shape, NEAR_CONSTANT, tl.float64)
    if STEPS == 0:
        s = tl.sqrt(wide * wide + NU * NU)
        x = wide * wide / ((s + NU) * (2 * NU))
        value = NU * log1p(x) + 0.5 * log1p(2 * x) - NU * NU / (s + wide)
        return value + constant - debye(s.to(k.dtype), NU, ROWS).to(tl.float64)
    else:
        near = k < FAR
        order = tl.where(near, tl.full(k.shape, NU + STEPS, tl.float64), tl.full(k.shape, NU, tl.float64))
        s = tl.sqrt(wide * wide + order * order)
        value = order * tl.log(order + s) + 0.5 * tl.log(s) - order * order / (s + wide)
        value += tl.where(near, constant, tl.full(k.shape, FAR_CONSTANT, tl.float64))
        value -= debye(s.to(k.dtype), order.to(k.dtype), ROWS).to(tl.float64)
        back = lowering(tl.where(near, k, FAR), RAISED, RAISED_TERMS, NU, STEPS)
        return value - tl.where(near, back, 0.0)


@triton.jit
def value_kernel(
    kappa_ptr,  # [n] float32 or float64
    value_ptr,  # [n] of the same dtype
    n,
    QUANTITY: tl.constexpr,  # of DERIVATIVES, or "slope"
    D: tl.constexpr,
    TERMS: tl.constexpr,
    TOP: tl.constexpr,
    NU: tl.constexpr,
    STEPS: tl.constexpr,
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    RAISED: tl.constexpr,  # 2ν′ + 2
    RAISED_TERMS: tl.constexpr,
    NEAR_CONSTANT: tl.constexpr,
    FAR_CONSTANT: tl.constexpr,
    UNIFORM: tl.constexpr,  # log C(0)
    SERIES: tl.constexpr,  # of the divergence about κ = 0
    POWERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    alive = at < n
    k = tl.load(kappa_ptr + at, alive, 1.0)
    low = tl.where(k > TOP, TOP, k)
    if QUANTITY == "slope":
        value = slope(low, D, TERMS)
    elif QUANTITY == "resultant":
        value = low / (low + perron(low, D, TERMS))
    elif QUANTITY == "complement":
        g = perron(low, D, TERMS)
        value = g / (low + g)
    else:
        wide = k.to(tl.float64)
        over = excess(k, NU, STEPS, FAR, ROWS, RAISED, RAISED_TERMS, NEAR_CONSTANT, FAR_CONSTANT)
        main = over + tl.full(k.shape, UNIFORM, tl.float64)
        if QUANTITY == "log_norm":
            main = main - wide
        elif QUANTITY == "entropy":
            main = shortfall(low, wide, D, TERMS) - main
        elif QUANTITY == "divergence":
            main = about_zero(wide, over - shortfall(low, wide, D, TERMS), D, SERIES, POWERS)
        value = main.to(k.dtype)
    tl.store(value_ptr + at, value, alive)


@triton.jit
def shortfall(low, wide, D: tl.constexpr, TERMS: tl.constexpr):
    """κ(1 − A) in float64."""
    g = perron(low, D, TERMS).to(tl.float64)
    return wide * g / (wide + g)


@triton.jit
def about_zero(wide, far, D: tl.constexpr, SERIES: tl.constexpr, POWERS: tl.constexpr):
    """The divergence: its series in (κ/d)² where 5κ < d, else `far`."""
    near = 5 * wide < D
    ratio = tl.where(near, wide, 0.0) / D
    square = ratio * ratio
    total = tl.zeros_like(wide)
    for j in tl.static_range(POWERS):
        total = (total + tl.full(wide.shape, SERIES[POWERS - 1 - j], tl.float64)) * square
    return tl.where(near, total, far)


def constants(dim: int, quantity: str, dtype: torch.dtype) -> dict[str, Any]:
    """Every compile-time constant of one launch; what ahead-of-time builds compile is made here too."""
    how = DOUBLE if dtype == torch.float64 else SINGLE
    nu = dim / 2 - 1
    raised = max(nu, raised_order(nu, how))
    count = rows(max(nu, how.order), how)
    direct = raised == nu
    return {
        "QUANTITY": quantity,
        "D": dim,
        "TERMS": terms(dim, how),
        "TOP": how.top,
        "NU": nu,
        "STEPS": round(raised - nu),
        "FAR": how.far,
        "ROWS": count,
        "RAISED": round(2 * raised + 2),
        "RAISED_TERMS": terms(2 * raised + 2, how),
        "NEAR_CONSTANT": nu + debye_at_zero(nu, count) if direct else near_constant(raised, count),
        "FAR_CONSTANT": far_constant(nu),
        "UNIFORM": vmf_log_norm_uniform(dim),
        "SERIES": divergence_series(dim, how.powers),
        "POWERS": how.powers,
        "BLOCK": BLOCK,
    }


@torch.library.custom_op("arlat::vmf_quantity", mutates_args=())
def vmf_quantity(kappa: Tensor, dim: int, quantity: str) -> Tensor:
    """A quantity of DERIVATIVES, or "slope", at κ [...] of float32 or float64."""
    value = torch.empty(kappa.shape, dtype=kappa.dtype, device=kappa.device)
    n = kappa.numel()
    if n:
        with on_device(kappa):
            value_kernel[(triton.cdiv(n, BLOCK),)](
                kappa.contiguous(), value, n, **constants(dim, quantity, kappa.dtype), num_warps=WARPS
            )
    return value


@vmf_quantity.register_fake
def _(kappa: Tensor, dim: int, quantity: str) -> Tensor:
    return kappa.new_empty(kappa.shape)


def _save(ctx: Any, inputs: tuple[Tensor, int, str], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.dim, ctx.quantity = inputs[1:]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (kappa,) = ctx.saved_tensors
    if ctx.quantity == "slope":  # A″: only where a second derivative is asked for
        return grad * bend(kappa, ctx.dim), None, None
    return grad * derivative(triton_value, kappa, ctx.dim, ctx.quantity), None, None


vmf_quantity.register_autograd(_gradient, setup_context=_save)


def bend(kappa: Tensor, dim: int) -> Tensor:
    """A″ by autograd through the reference's A′."""
    with torch.enable_grad():
        leaf = kappa.detach().requires_grad_()
        (second,) = torch.autograd.grad(slope_value(leaf, dim).sum(), leaf)
    return second


def triton_value(kappa: Tensor, dim: int, quantity: str) -> Tensor:
    """What `vmf.reference_value` gives; the first derivative by the same kernel, the second by the reference's A′."""
    value: Tensor = vmf_quantity(kappa, dim, quantity)
    return value


SHIPPED_DIMS = (2, 8, 64, 512)


def builds(name: str, quantities: tuple[str, ...]) -> tuple[Build, ...]:
    """What is compiled ahead of time for the op `name`: its quantities at typical dimensions, and one in float64."""
    return tuple(
        build(name, quantity, dim, dtype)
        for quantity in quantities
        for dim, dtype in (*((dim, torch.float32) for dim in SHIPPED_DIMS), (2, torch.float64))
    )


def build(name: str, quantity: str, dim: int, dtype: torch.dtype) -> Build:
    """One quantity of one dimension and dtype."""
    short = {torch.float32: "fp32", torch.float64: "fp64"}[dtype]
    return Build(
        name=f"{name}/{quantity}/d{dim}_{short}",
        kernel=value_kernel,
        constants=constants(dim, quantity, dtype),
        types={"kappa_ptr": f"*{short}", "value_ptr": f"*{short}"},
        aligned=False,
        warps=WARPS,
    )
