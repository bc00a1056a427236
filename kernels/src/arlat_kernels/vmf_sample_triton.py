"""The Triton twin of `vmf_draw`: a row kernel for the cosine, a tile kernel for the direction.

Imported only where Triton is installed. What is per row (cosine, slope) is float64 whatever the inputs are: it is little
work, and the draws accept the same proposals in every dtype. The rejection loop is apart from the direction, because a
loop in lock-step costs every thread of a block what its slowest row needs.
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
from arlat_kernels.philox_triton import HALF_PI, cos_sin, minus_log, normal_tile, random_words, terms
from arlat_kernels.vmf_sample import COSINE, ROUNDS, TANGENT, check_shapes
from arlat_kernels.vmf_sample_gradient_triton import (
    LANES,
    backward_kernel,
    gradient_constants,
    load_pole,
    slope_kernel,
    tile,
    vmf_draw_backward,
    warps,
)


@triton.jit
def draw_cosine(
    kappa,  # [LANES] float64
    row,  # [LANES] int64: what a lane draws depends on it, the seed and κ alone
    alive,
    seed_ptr,
    D: tl.constexpr,
    LANES: tl.constexpr,
    ROUNDS: tl.constexpr,
    STREAM: tl.constexpr,
    HALF_PI: tl.constexpr,
):
    """1 − cosine and sine [LANES] of draws around a direction, float64; NaN where κ is not finite."""
    b = (D - 1) / (2.0 * kappa + tl.sqrt(4.0 * kappa * kappa + (D - 1) * (D - 1)))
    om = 2.0 * b / (1.0 + b)  # 1 − x0
    x0 = (1.0 - b) / (1.0 + b)
    gap = tl.full([LANES], float("nan"), tl.float64)
    sine = tl.full([LANES], float("nan"), tl.float64)
    active = alive.to(tl.int32)
    step = tl.zeros([LANES], tl.int32)
    # A lane that is done repeats its test and keeps what it has; `step` ends a loop that a NaN would keep going.
    while tl.max(active * (ROUNDS - step), 0) > 0:
        first, turn, accept, _ = random_words(seed_ptr, row, step.to(tl.uint32), STREAM)
        rest = tl.zeros([LANES], tl.float64)
        if D > 2:
            rest += tl.exp(-2.0 * minus_log(first, tl.float64) / (D - 2))
        radius2 = 1.0 - rest
        cos, sin = cos_sin(turn, tl.float64, HALF_PI, 9)
        y = tl.sqrt(radius2) * cos
        s2 = rest + radius2 * sin * sin
        omy = tl.where(y > 0, s2 / (1.0 + tl.maximum(y, 0.0)), 1.0 - y)
        opy = tl.where(y < 0, s2 / (1.0 - tl.minimum(y, 0.0)), 1.0 + y)
        q = om + x0 * opy
        r = x0 * y
        grown = 1.0 + r
        moved = grown - 1.0
        log_near = tl.where(moved == 0.0, r, tl.log(grown) * r / tl.where(moved == 0.0, 1.0, moved))
        log_q = tl.where(tl.abs(y) < 0.5, log_near, tl.log(q))
        taken = ((D - 1) * (r / q - log_q) >= -minus_log(accept, tl.float64)) & (active > 0)
        gap = tl.where(taken, om * omy / q, gap)
        sine = tl.where(taken, tl.sqrt(om * (1.0 + x0) * s2) / q, sine)
        active = tl.where(taken, 0, active)
        step += 1
    return gap, sine


@triton.jit
def gap_kernel(
    kappa_ptr,  # [n]
    seed_ptr,  # [1] int64
    gap_ptr,  # [n] float64: 1 − cos
    sine_ptr,  # [n] float64
    n,
    D: tl.constexpr,
    LANES: tl.constexpr,
    ROUNDS: tl.constexpr,
    STREAM: tl.constexpr,
    HALF_PI: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    alive = row < n
    kappa = tl.load(kappa_ptr + row, alive, 0).to(tl.float64)
    gap, sine = draw_cosine(kappa, row, alive, seed_ptr, D, LANES, ROUNDS, STREAM, HALF_PI)
    tl.store(gap_ptr + row, gap, alive)
    tl.store(sine_ptr + row, sine, alive)


@triton.jit
def direction_kernel(
    mu_ptr,  # [n d], row stride given, last one 1
    seed_ptr,  # [1] int64
    gap_ptr,  # [n] float64
    sine_ptr,  # [n] float64
    x_ptr,  # [n d]
    n,
    mu_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STREAM: tl.constexpr,
    HALF_PI: tl.constexpr,
    TERMS: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    alive = row < n
    mask = alive[:, None] & (col < D)[None, :]
    pole, _ = load_pole(mu_ptr, row, col, mask, mu_row, ACC)
    quad = tl.arange(0, BLOCK // 4).to(tl.uint32)
    w0, w1, w2, w3 = random_words(seed_ptr, row[:, None], quad[None, :], STREAM)
    if D == 2:  # the tangent sphere is two points
        sign = tl.where(tl.sum((w0 >> 31).to(tl.int32), 1) == 0, 1.0, -1.0).to(ACC)[:, None]
        m0 = tl.sum(tl.where((col == 0)[None, :], pole, 0.0), 1)[:, None]
        m1 = tl.sum(tl.where((col == 1)[None, :], pole, 0.0), 1)[:, None]
        tangent = tl.where((col == 0)[None, :], -m1, m0) * sign
    else:
        g = normal_tile(w0, w1, w2, w3, ACC, HALF_PI, TERMS)
        g = tl.where((col < D)[None, :], g, 0.0)
        for _ in tl.static_range(2):  # once leaves a rounding error along the pole that few dimensions would feel
            g -= tl.sum(g * pole, 1)[:, None] * pole
        tangent = g / tl.sqrt(tl.sum(g * g, 1))[:, None]
    gap = tl.load(gap_ptr + row, alive, 0)
    sine = tl.load(sine_ptr + row, alive, 0).to(ACC)
    x = (1.0 - gap).to(ACC)[:, None] * pole + sine[:, None] * tangent
    tl.store(x_ptr + row[:, None] * D + col[None, :], x, mask)


def constants(name: str, d: int, dtype: torch.dtype) -> dict[str, Any]:
    """Every compile-time constant of one launch of the kernel `name`; ahead-of-time builds take theirs here too."""
    if name in ("slope", "backward"):
        return gradient_constants(name, d, dtype)
    if name == "gap":
        return {"D": d, "LANES": LANES, "ROUNDS": ROUNDS, "STREAM": COSINE, "HALF_PI": HALF_PI}
    wide = dtype == torch.float64
    fixed = {"D": d, **tile(d), "ACC": tl.float64 if wide else tl.float32}
    return {**fixed, "STREAM": TANGENT, "HALF_PI": HALF_PI, "TERMS": terms(wide)}


@torch.library.custom_op("arlat::vmf_draw", mutates_args=())
def vmf_draw_forward(mu: Tensor, kappa: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """The draws [n d], in at least float32, and their gaps 1 − cos [n] in float64."""
    n, d = mu.shape
    x, gap = fake_draw(mu)
    sine = torch.empty_like(gap)
    mu = rows_strided(mu)
    if n:
        with on_device(mu):
            gap_kernel[(triton.cdiv(n, LANES),)](
                kappa.contiguous(), seed, gap, sine, n, **constants("gap", d, mu.dtype), num_warps=1
            )
            direction_kernel[(triton.cdiv(n, tile(d)["ROWS"]),)](
                mu, seed, gap, sine, x, n, mu.stride(0), **constants("direction", d, mu.dtype), num_warps=warps(d)
            )
    return x, gap


@vmf_draw_forward.register_fake
def _(mu: Tensor, kappa: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    return fake_draw(mu)


def fake_draw(mu: Tensor) -> tuple[Tensor, Tensor]:
    """Unwritten results of `vmf_draw_forward`."""
    dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
    return mu.new_empty(mu.shape, dtype=dtype), mu.new_empty(mu.shape[:1], dtype=torch.float64)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], *output)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    result: tuple[Tensor, Tensor] = vmf_draw_backward(grad, *ctx.saved_tensors)
    return *result, None


vmf_draw_forward.register_autograd(_gradients, setup_context=_save)


def vmf_draw_triton(mu: Tensor, kappa: Tensor, seed: Tensor) -> Tensor:
    """What `vmf_draw_reference` gives, for leading axes of any number; once differentiable; NaN where κ is not finite."""
    check_shapes(mu, kappa, seed)
    x: Tensor
    x, _ = vmf_draw_forward(mu.reshape(-1, mu.shape[-1]), kappa.reshape(-1), seed)
    return x.reshape(mu.shape)


SHIPPED: tuple[tuple[int, torch.dtype], ...] = (
    (2, torch.float32),
    (3, torch.float32),
    (8, torch.float32),
    (67, torch.float32),
    (1024, torch.float32),
    (1024, torch.bfloat16),
    (8192, torch.float32),
)
KERNELS = {"gap": gap_kernel, "direction": direction_kernel, "slope": slope_kernel, "backward": backward_kernel}


def builds() -> tuple[Build, ...]:
    """What is compiled ahead of time: the four kernels at typical dimensions and dtypes."""
    wide = dict.fromkeys(("gap_ptr", "sine_ptr", "slope_ptr"), "*fp64") | {"seed_ptr": "*i64"}
    wide |= dict.fromkeys(("x_ptr", "grad_ptr"), "*fp32")
    result = []
    for d, dtype in SHIPPED:
        narrow = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
        for name, kernel in KERNELS.items():
            result.append(
                Build(
                    name=f"vmf_draw/{name}/d{d}_{narrow.removeprefix('*')}",
                    kernel=kernel,
                    constants=constants(name, d, dtype),
                    types={p: wide.get(p, narrow) for p in kernel.arg_names if p.endswith("_ptr")},
                    aligned=d % 16 == 0,
                    warps=1 if name in ("gap", "slope") else warps(d),
                )
            )
    return tuple(result)
