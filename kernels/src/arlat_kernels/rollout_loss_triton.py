"""The Triton twin of `rollout_loss`: one pass over the sequences for all reductions, one for all gradients.

Imported only where Triton is installed. `reduce_kernel` reads pred, true and direction once and writes six sums per row;
`finish_kernel`, with one thread per row, turns them into the seven results. Backward, `weigh_kernel` turns the seven
gradients into five weights per row, and `spread_kernel` reads the three arrays again: each of their gradients is a sum of
pred, true and direction with those weights. All sums are in float64, as in the reference: at large κ the direction's
loss needs it, and ten operations for twelve bytes hide behind the loads where float64 runs at half rate.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.mixture_triton import on_device, rows_strided
from arlat_kernels.rollout_loss import HALF_LOG_2PI, RolloutLoss, check_shapes
from arlat_kernels.vmf import vmf_log_norm, vmf_mean_resultant
from arlat_kernels.vmf_nll import SHORTEST, result_dtype
from arlat_kernels.vmf_nll_triton import SHIPPED, constants, inverse, load_wide, tile, warps

ROW_THREADS = 128  # rows of one program of the kernels that work per row
SUMS, FIELDS, WEIGHTS = 6, len(RolloutLoss._fields), 5


@triton.jit
def reduce_kernel(
    pred_ptr,  # [n d], row stride given, last one 1
    true_ptr,  # [n d], likewise
    direction_ptr,  # [n d], likewise
    sums_ptr,  # [6 n] float64: ‖pred‖, ‖true‖, ‖direction‖, pred·true, ‖pred − true‖², 1 − cos(direction, true)
    n,
    pred_row,
    true_row,
    direction_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHORTEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    pred_square = tl.zeros([ROWS], tl.float64)
    true_square = tl.zeros([ROWS], tl.float64)
    direction_square = tl.zeros([ROWS], tl.float64)
    product = tl.zeros([ROWS], tl.float64)
    error = tl.zeros([ROWS], tl.float64)
    for c in range(BLOCKS):
        col = c * BLOCK + tl.arange(0, BLOCK)
        mask = alive[:, None] & (col < D)[None, :]
        p = load_wide(pred_ptr, row, pred_row, col, mask)
        t = load_wide(true_ptr, row, true_row, col, mask)
        u = load_wide(direction_ptr, row, direction_row, col, mask)
        pred_square += tl.sum(p * p, 1)
        true_square += tl.sum(t * t, 1)
        direction_square += tl.sum(u * u, 1)
        product += tl.sum(p * t, 1)
        error += tl.sum((p - t) * (p - t), 1)
    true_length = tl.sqrt(true_square)
    direction_length = tl.sqrt(direction_square)
    true_inverse = inverse(true_length, SHORTEST)
    direction_inverse = inverse(direction_length, SHORTEST)
    distance = tl.zeros([ROWS], tl.float64)
    for c in range(BLOCKS):  # with one block the compiler keeps the entries in registers
        col = c * BLOCK + tl.arange(0, BLOCK)
        mask = alive[:, None] & (col < D)[None, :]
        t = load_wide(true_ptr, row, true_row, col, mask)
        u = load_wide(direction_ptr, row, direction_row, col, mask)
        away = u * direction_inverse[:, None] - t * true_inverse[:, None]
        distance += tl.sum(away * away, 1)
    both = (true_inverse > 0) & (direction_inverse > 0)
    at = sums_ptr + row
    tl.store(at, tl.sqrt(pred_square), alive)
    tl.store(at + n, true_length, alive)
    tl.store(at + 2 * n, direction_length, alive)
    tl.store(at + 3 * n, product, alive)
    tl.store(at + 4 * n, error, alive)
    tl.store(at + 5 * n, tl.where(both, 0.5 * distance, 1.0), alive)


@triton.jit
def log_length_of(length, SHORTEST: tl.constexpr, LOG_SHORTEST: tl.constexpr, LOG_REST: tl.constexpr):
    """log max(length, SHORTEST). Constants come in two parts: a literal is float32 even beside float64 values."""
    inside = length > SHORTEST
    floor = tl.full(length.shape, LOG_SHORTEST, tl.float64) + tl.full(length.shape, LOG_REST, tl.float64)
    return tl.where(inside, tl.log(tl.where(inside, length, 1.0)), floor)


@triton.jit
def finish_kernel(
    sums_ptr,  # [6 n] of reduce_kernel
    log_norm_ptr,  # [n] float64: log C(κ) + κ
    kappa_ptr,  # [n]
    log_length_ptr,  # [n]
    log_sigma_ptr,  # [n]
    fields_ptr,  # [7 n] in the order of RolloutLoss
    n,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    SHORTEST: tl.constexpr,
    LOG_SHORTEST: tl.constexpr,
    LOG_REST: tl.constexpr,
    CONSTANT: tl.constexpr,
    CONSTANT_REST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    pred_length = tl.load(sums_ptr + row, alive, 0)
    true_length = tl.load(sums_ptr + n + row, alive, 0)
    product = tl.load(sums_ptr + 3 * n + row, alive, 0)
    error = tl.load(sums_ptr + 4 * n + row, alive, 0)
    distance = tl.load(sums_ptr + 5 * n + row, alive, 0)
    log_norm = tl.load(log_norm_ptr + row, alive, 0)
    kappa = tl.load(kappa_ptr + row, alive, 0).to(tl.float64)
    log_length = tl.load(log_length_ptr + row, alive, 0).to(tl.float64)
    log_sigma = tl.load(log_sigma_ptr + row, alive, 0).to(tl.float64)
    log_m = log_length_of(true_length, SHORTEST, LOG_SHORTEST, LOG_REST)
    residual = (log_m - log_length) * tl.exp(-log_sigma)
    constant = tl.full([ROWS], CONSTANT, tl.float64) + tl.full([ROWS], CONSTANT_REST, tl.float64)
    direction_nll = kappa * distance - log_norm
    length_nll = 0.5 * residual * residual + log_sigma + constant + log_m
    at = fields_ptr + row
    tl.store(at, product * inverse(pred_length, SHORTEST) * inverse(true_length, SHORTEST), alive)
    tl.store(at + n, tl.where(pred_length > SHORTEST, pred_length, 0.0), alive)
    tl.store(at + 2 * n, tl.where(true_length > SHORTEST, true_length, 0.0), alive)
    tl.store(at + 3 * n, error, alive)
    tl.store(at + 4 * n, direction_nll, alive)
    tl.store(at + 5 * n, length_nll, alive)
    tl.store(at + 6 * n, direction_nll + length_nll + (D - 1) * log_m, alive)


@triton.jit
def weigh_kernel(
    sums_ptr,  # [6 n] of reduce_kernel
    slope_ptr,  # [n] float64: 1 − A(κ)
    kappa_ptr,  # [n]
    log_length_ptr,  # [n]
    log_sigma_ptr,  # [n]
    grad_ptr,  # [7 n] gradients of the fields
    weights_ptr,  # [5 n] float64, of pred and true in pred's gradient, of true in its own, of direction and true in direction's
    grad_kappa_ptr,  # [n]
    grad_log_length_ptr,  # [n]
    grad_log_sigma_ptr,  # [n]
    n,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    SHORTEST: tl.constexpr,
    LOG_SHORTEST: tl.constexpr,
    LOG_REST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    pred_inverse = inverse(tl.load(sums_ptr + row, alive, 0), SHORTEST)
    true_length = tl.load(sums_ptr + n + row, alive, 0)
    true_inverse = inverse(true_length, SHORTEST)
    direction_inverse = inverse(tl.load(sums_ptr + 2 * n + row, alive, 0), SHORTEST)
    cosine = tl.load(sums_ptr + 3 * n + row, alive, 0) * pred_inverse * true_inverse
    distance = tl.load(sums_ptr + 5 * n + row, alive, 0)
    slope = tl.load(slope_ptr + row, alive, 0)
    kappa = tl.load(kappa_ptr + row, alive, 0).to(tl.float64)
    log_length = tl.load(log_length_ptr + row, alive, 0).to(tl.float64)
    log_sigma = tl.load(log_sigma_ptr + row, alive, 0).to(tl.float64)
    at = grad_ptr + row
    of_cosine = tl.load(at, alive, 0).to(tl.float64)
    of_pred_length = tl.load(at + n, alive, 0).to(tl.float64)
    of_true_length = tl.load(at + 2 * n, alive, 0).to(tl.float64)
    of_error = 2.0 * tl.load(at + 3 * n, alive, 0).to(tl.float64)
    of_nll = tl.load(at + 6 * n, alive, 0).to(tl.float64)
    of_direction = tl.load(at + 4 * n, alive, 0).to(tl.float64) + of_nll
    of_length = tl.load(at + 5 * n, alive, 0).to(tl.float64) + of_nll
    log_m = log_length_of(true_length, SHORTEST, LOG_SHORTEST, LOG_REST)
    spread = tl.exp(-log_sigma)
    residual = (log_m - log_length) * spread
    tl.store(grad_kappa_ptr + row, of_direction * (distance - slope), alive)
    tl.store(grad_log_length_ptr + row, -of_length * residual * spread, alive)
    tl.store(grad_log_sigma_ptr + row, of_length * (1.0 - residual * residual), alive)
    of_log_m = of_length * (1.0 + residual * spread) + (D - 1) * of_nll
    along = of_direction * kappa * (1.0 - distance)
    own = of_log_m + along - of_cosine * cosine
    at = weights_ptr + row
    tl.store(at, (of_pred_length - of_cosine * cosine * pred_inverse) * pred_inverse + of_error, alive)
    tl.store(at + n, of_cosine * pred_inverse * true_inverse - of_error, alive)
    tl.store(at + 2 * n, (of_true_length + own * true_inverse) * true_inverse + of_error, alive)
    tl.store(at + 3 * n, along * direction_inverse * direction_inverse, alive)
    tl.store(at + 4 * n, -of_direction * kappa * direction_inverse * true_inverse, alive)


@triton.jit
def spread_kernel(
    pred_ptr,  # [n d], row stride given, last one 1
    true_ptr,  # [n d], likewise
    direction_ptr,  # [n d], likewise
    weights_ptr,  # [5 n] of weigh_kernel
    grad_pred_ptr,  # [n d]
    grad_true_ptr,  # [n d]
    grad_direction_ptr,  # [n d]
    n,
    pred_row,
    true_row,
    direction_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    at = weights_ptr + row
    pred_self = tl.load(at, alive, 0)[:, None]
    pred_true = tl.load(at + n, alive, 0)[:, None]
    true_self = tl.load(at + 2 * n, alive, 0)[:, None]
    direction_self = tl.load(at + 3 * n, alive, 0)[:, None]
    direction_true = tl.load(at + 4 * n, alive, 0)[:, None]
    for c in range(BLOCKS):
        col = c * BLOCK + tl.arange(0, BLOCK)
        mask = alive[:, None] & (col < D)[None, :]
        p = load_wide(pred_ptr, row, pred_row, col, mask)
        t = load_wide(true_ptr, row, true_row, col, mask)
        u = load_wide(direction_ptr, row, direction_row, col, mask)
        to = row[:, None] * D + col[None, :]
        tl.store(grad_pred_ptr + to, pred_self * p + pred_true * t, mask)
        tl.store(grad_true_ptr + to, true_self * t + pred_true * p + direction_true * u, mask)
        tl.store(grad_direction_ptr + to, direction_self * u + direction_true * t, mask)


def row_constants(d: int) -> dict[str, Any]:
    """Compile-time constants of both row kernels."""
    high, rest = in_two_parts(math.log(SHORTEST))
    return {"D": d, "ROWS": ROW_THREADS, "SHORTEST": SHORTEST, "LOG_SHORTEST": high, "LOG_REST": rest}


def finish_constants(d: int) -> dict[str, Any]:
    """Compile-time constants of finish_kernel."""
    high, rest = in_two_parts(HALF_LOG_2PI)
    return {**row_constants(d), "CONSTANT": high, "CONSTANT_REST": rest}


def in_two_parts(value: float) -> tuple[float, float]:
    """A float32 number and what is missing to the value."""
    high = float(torch.tensor(value, dtype=torch.float32))
    return high, value - high


@torch.library.custom_op("arlat::rollout_loss", mutates_args=())
def rollout_loss_forward(
    pred: Tensor, true: Tensor, direction: Tensor, kappa: Tensor, log_length: Tensor, log_sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The fields [7 n] of vectors [n d] and scalars [n], and the sums [6 n] in float64 for the backward pass."""
    n, d = pred.shape
    fields = pred.new_empty(FIELDS, n, dtype=result_dtype(pred))
    sums = pred.new_empty(SUMS, n, dtype=torch.float64)
    if n == 0:
        return fields, sums
    vectors = [rows_strided(tensor) for tensor in (pred, true, direction)]
    scalars = [tensor.contiguous() for tensor in (kappa, log_length, log_sigma)]
    fixed = constants(d)
    with on_device(pred):
        reduce_kernel[(triton.cdiv(n, fixed["ROWS"]),)](
            *vectors, sums, n, *(tensor.stride(0) for tensor in vectors), **fixed, num_warps=warps(d)
        )
        finish_kernel[(triton.cdiv(n, ROW_THREADS),)](
            sums, vmf_log_norm(kappa.double(), d), *scalars, fields, n, **finish_constants(d), num_warps=4
        )
    return fields, sums


@rollout_loss_forward.register_fake
def _(
    pred: Tensor, true: Tensor, direction: Tensor, kappa: Tensor, log_length: Tensor, log_sigma: Tensor
) -> tuple[Tensor, Tensor]:
    n = pred.shape[0]
    return pred.new_empty(FIELDS, n, dtype=result_dtype(pred)), pred.new_empty(SUMS, n, dtype=torch.float64)


@torch.library.custom_op("arlat::rollout_loss_backward", mutates_args=())
def rollout_loss_backward(grad: Tensor, given: list[Tensor], sums: Tensor) -> list[Tensor]:
    """Gradients of the six inputs `given` for the gradient [7 n] of the fields."""
    n, d = given[0].shape
    results = [tensor.new_empty(tensor.shape) for tensor in given]
    if n:
        vectors = [rows_strided(tensor) for tensor in given[:3]]
        kappa, *others = [tensor.contiguous() for tensor in given[3:]]
        weights = grad.new_empty(WEIGHTS, n, dtype=torch.float64)
        fixed = {"D": d, **tile(d)}
        with on_device(grad):
            weigh_kernel[(triton.cdiv(n, ROW_THREADS),)](
                sums, vmf_mean_resultant(kappa.double(), d, complement=True), kappa, *others, grad.contiguous(),
                weights, *results[3:], n, **row_constants(d), num_warps=4,
            )  # fmt: skip
            spread_kernel[(triton.cdiv(n, fixed["ROWS"]),)](
                *vectors, weights, *results[:3], n, *(tensor.stride(0) for tensor in vectors), **fixed,
                num_warps=warps(d),
            )  # fmt: skip
    return results


@rollout_loss_backward.register_fake
def _(grad: Tensor, given: list[Tensor], sums: Tensor) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in given]


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    *given, sums = ctx.saved_tensors
    return tuple(rollout_loss_backward(grad, given, sums))


rollout_loss_forward.register_autograd(_gradients, setup_context=_save)


def rollout_loss_triton(*given: Tensor) -> tuple[Tensor, ...]:
    """What `rollout_loss_reference` gives, for leading axes of any number; once differentiable."""
    check_shapes(given)
    lead, d = given[0].shape[:-1], given[0].shape[-1]
    vectors, scalars = given[:3], given[3:]
    fields, _ = rollout_loss_forward(*(t.reshape(-1, d) for t in vectors), *(t.reshape(-1) for t in scalars))
    return RolloutLoss(*fields.reshape(FIELDS, *lead).unbind(0))


def builds() -> tuple[Build, ...]:
    """What is compiled ahead of time: the two passes at each dimension and dtype, the two row kernels once."""
    passes = [("reduce", reduce_kernel, constants), ("spread", spread_kernel, lambda d: {"D": d, **tile(d)})]
    rows = [("finish", finish_kernel, finish_constants), ("weigh", weigh_kernel, row_constants)]
    wide = dict.fromkeys(("sums_ptr", "log_norm_ptr", "slope_ptr", "weights_ptr"), "*fp64")
    wide |= dict.fromkeys(("fields_ptr", "grad_ptr"), "*fp32")
    return tuple(
        Build(
            name=f"rollout_loss/{name}/d{d}_{narrow}",
            kernel=kernel,
            constants=fixed(d),
            types={p: wide.get(p, f"*{narrow}") for p in kernel.arg_names if p.endswith("_ptr")},
            aligned=d % 16 == 0,
            warps=warps(d) if kernel in (reduce_kernel, spread_kernel) else 4,
        )
        for index, (d, dtype) in enumerate(SHIPPED)
        for name, kernel, fixed in (passes if index else passes + rows)
        for narrow in [{torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]]
    )
