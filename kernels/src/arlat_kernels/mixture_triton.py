"""The Triton twin of `mixture_nll`: value and gradients without a tensor of more than the inputs' size.

Imported only where Triton is installed. One program takes a tile of rows, walks over components and blocks of
dimensions, and keeps the running log-sum-exp in registers; the joint exponents [n m] are all that the backward pass
needs beside the inputs. Loop bounds are compile-time constants: the interpreter of Triton 3.6 accepts no other.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.mixture import LOG_2PI, check_shapes

TILE = 1024  # entries of [rows, dimensions] held at once by one program
BLOCK_MAX = 512
WARPS = 4


@triton.jit
def forward_kernel(
    logits_ptr,  # [n m]
    mean_ptr,  # [n m d], strides given, last one 1
    log_scale_ptr,  # [n m d], likewise
    x_ptr,  # [n d]
    nll_ptr,  # [n]
    exponent_ptr,  # [n m] logit − Σ(½r² + log_scale), written for the backward pass
    n,
    mean_row,
    mean_component,
    scale_row,
    scale_component,
    M: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    CONSTANT: tl.constexpr,
    CONSTANT_REST: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    top = tl.full([ROWS], float("-inf"), ACC)
    total = tl.zeros([ROWS], ACC)
    prior_top = tl.full([ROWS], float("-inf"), ACC)
    prior_total = tl.zeros([ROWS], ACC)
    for j in range(M):
        energy = tl.zeros([ROWS, BLOCK], ACC)
        for c in range(BLOCKS):
            col = c * BLOCK + tl.arange(0, BLOCK)
            mask = alive[:, None] & (col < D)[None, :]
            mu = tl.load(mean_ptr + row[:, None] * mean_row + j * mean_component + col[None, :], mask, 0).to(ACC)
            s = tl.load(log_scale_ptr + row[:, None] * scale_row + j * scale_component + col[None, :], mask, 0).to(ACC)
            x = tl.load(x_ptr + row[:, None] * D + col[None, :], mask, 0).to(ACC)
            r = (x - mu) * tl.exp(-s)
            energy += 0.5 * r * r + s
        logit = tl.load(logits_ptr + row * M + j, alive, 0).to(ACC)
        exponent = logit - tl.sum(energy, 1)
        tl.store(exponent_ptr + row * M + j, exponent, alive)
        # A component may be switched off by a logit of −inf: −inf − (−inf) must not enter an exponential.
        new = tl.maximum(top, exponent)
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - shift) + tl.exp(exponent - shift)
        top = new
        new = tl.maximum(prior_top, logit)
        shift = tl.where(new == float("-inf"), 0.0, new)
        prior_total = prior_total * tl.exp(prior_top - shift) + tl.exp(logit - shift)
        prior_top = new
    # The constant in two parts: a literal is float32 even beside float64 values.
    constant = tl.full([ROWS], CONSTANT, ACC) + tl.full([ROWS], CONSTANT_REST, ACC)
    nll = constant - ((top + tl.log(total)) - (prior_top + tl.log(prior_total)))
    tl.store(nll_ptr + row, nll, alive)


@triton.jit
def backward_kernel(
    logits_ptr,  # [n m]
    mean_ptr,  # [n m d], strides given, last one 1
    log_scale_ptr,  # [n m d], likewise
    x_ptr,  # [n d]
    exponent_ptr,  # [n m] of the forward pass
    grad_ptr,  # [n] gradient of the value
    grad_logits_ptr,  # [n m]
    grad_mean_ptr,  # [n m d]
    grad_log_scale_ptr,  # [n m d]
    grad_x_ptr,  # [n d]
    n,
    mean_row,
    mean_component,
    scale_row,
    scale_component,
    M: tl.constexpr,
    M_PADDED: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    alive = row < n
    grad = tl.load(grad_ptr + row, alive, 0).to(ACC)
    k = tl.arange(0, M_PADDED)
    each = row[:, None] * M + k[None, :]  # [rows m]
    inside = alive[:, None] & (k < M)[None, :]
    exponent = tl.load(exponent_ptr + each, inside, float("-inf"))
    logit = tl.load(logits_ptr + each, inside, float("-inf")).to(ACC)
    top = tl.where(alive, tl.max(exponent, 1), 0.0)
    prior_top = tl.where(alive, tl.max(logit, 1), 0.0)
    weight = tl.exp(exponent - top[:, None])
    prior = tl.exp(logit - prior_top[:, None])
    total = tl.where(alive, tl.sum(weight, 1), 1.0)
    prior_total = tl.where(alive, tl.sum(prior, 1), 1.0)
    grad_logits = grad[:, None] * (prior / prior_total[:, None] - weight / total[:, None])
    tl.store(grad_logits_ptr + each, grad_logits, inside)
    for c in range(BLOCKS):
        col = c * BLOCK + tl.arange(0, BLOCK)
        mask = alive[:, None] & (col < D)[None, :]
        x = tl.load(x_ptr + row[:, None] * D + col[None, :], mask, 0).to(ACC)
        grad_x = tl.zeros([ROWS, BLOCK], ACC)
        for j in range(M):
            one = tl.load(exponent_ptr + row * M + j, alive, 0)
            share = (grad * tl.exp(one - top) / total)[:, None]  # gradient times the component's responsibility
            mu = tl.load(mean_ptr + row[:, None] * mean_row + j * mean_component + col[None, :], mask, 0).to(ACC)
            s = tl.load(log_scale_ptr + row[:, None] * scale_row + j * scale_component + col[None, :], mask, 0).to(ACC)
            inverse = tl.exp(-s)
            r = (x - mu) * inverse
            pull = share * r * inverse
            grad_x += pull
            at = (row[:, None] * M + j) * D + col[None, :]
            tl.store(grad_mean_ptr + at, -pull, mask)
            tl.store(grad_log_scale_ptr + at, share * (1.0 - r * r), mask)
        tl.store(grad_x_ptr + row[:, None] * D + col[None, :], grad_x, mask)


def tile(d: int) -> dict[str, int]:
    """Rows, block of dimensions and number of blocks of one program, for forward and backward alike."""
    block = min(triton.next_power_of_2(d), BLOCK_MAX)
    return {"ROWS": max(1, min(128, TILE // block)), "BLOCK": block, "BLOCKS": triton.cdiv(d, block)}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def constants(m: int, d: int, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    """Every compile-time constant of one launch; what ahead-of-time builds compile is made here too."""
    wide = accumulator(dtype) == torch.float64
    fixed = {"M": m, "D": d, **tile(d), "ACC": tl.float64 if wide else tl.float32}
    if backward:
        return {**fixed, "M_PADDED": triton.next_power_of_2(m)}
    high = float(torch.tensor(0.5 * d * LOG_2PI, dtype=torch.float32))
    return {**fixed, "CONSTANT": high, "CONSTANT_REST": 0.5 * d * LOG_2PI - high}


def rows_strided(tensor: Tensor) -> Tensor:
    """`tensor` itself where its last axis is dense (a chunk of a head's output is), otherwise a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's CUDA device current: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@torch.library.custom_op("arlat::mixture_nll", mutates_args=())
def mixture_nll_forward(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The value [n] and the joint exponents [n m], in the accumulator's dtype."""
    n, m, d = mean.shape
    dtype = accumulator(mean.dtype)
    nll, exponent = mean.new_empty(n, dtype=dtype), mean.new_empty(n, m, dtype=dtype)
    mean, log_scale = rows_strided(mean), rows_strided(log_scale)
    fixed = constants(m, d, mean.dtype, backward=False)
    if n:
        with on_device(mean):
            forward_kernel[(triton.cdiv(n, fixed["ROWS"]),)](
                logits.contiguous(), mean, log_scale, x.contiguous(), nll, exponent,
                n, *mean.stride()[:2], *log_scale.stride()[:2], **fixed, num_warps=WARPS,
            )  # fmt: skip
    return nll, exponent


@mixture_nll_forward.register_fake
def _(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulator(mean.dtype)
    return mean.new_empty(mean.shape[:1], dtype=dtype), mean.new_empty(mean.shape[:2], dtype=dtype)


@torch.library.custom_op("arlat::mixture_nll_backward", mutates_args=())
def mixture_nll_backward(
    grad: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor, exponent: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of logits, mean, log_scale and x for the gradient [n] of the value."""
    n, m, d = mean.shape
    results = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (logits, mean, log_scale, x))
    mean, log_scale = rows_strided(mean), rows_strided(log_scale)
    fixed = constants(m, d, mean.dtype, backward=True)
    if n:
        with on_device(mean):
            backward_kernel[(triton.cdiv(n, fixed["ROWS"]),)](
                logits.contiguous(), mean, log_scale, x.contiguous(), exponent, grad.contiguous(), *results,
                n, *mean.stride()[:2], *log_scale.stride()[:2], **fixed, num_warps=WARPS,
            )  # fmt: skip
    return results[0], results[1], results[2], results[3]


@mixture_nll_backward.register_fake
def _(
    grad: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor, exponent: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits, mean, log_scale, x = (t.new_empty(t.shape) for t in (logits, mean, log_scale, x))
    return logits, mean, log_scale, x


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor, Tensor] = mixture_nll_backward(grad, *ctx.saved_tensors)
    return result


mixture_nll_forward.register_autograd(_gradients, setup_context=_save)


def mixture_nll_triton(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """What `mixture_nll_reference` gives, for leading axes of any number; once differentiable."""
    check_shapes(logits, mean, log_scale, x)
    m, d = mean.shape[-2:]
    nll: Tensor
    nll, _ = mixture_nll_forward(
        logits.reshape(-1, m), mean.reshape(-1, m, d), log_scale.reshape(-1, m, d), x.reshape(-1, d)
    )
    return nll.reshape(mean.shape[:-2])


SHIPPED: tuple[tuple[int, int, torch.dtype], ...] = (
    (3, 67, torch.float32),
    (8, 64, torch.float32),
    (8, 512, torch.float32),
    (8, 512, torch.bfloat16),
)


def builds() -> tuple[Build, ...]:
    """What is compiled ahead of time: both kernels at typical components m, dimensions d and input dtypes."""
    result = []
    for m, d, dtype in SHIPPED:
        narrow = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
        wide = dict.fromkeys(("nll_ptr", "exponent_ptr", "grad_ptr"), "*fp32")
        for name, kernel in (("forward", forward_kernel), ("backward", backward_kernel)):
            result.append(
                Build(
                    name=f"mixture_nll/{name}/m{m}_d{d}_{narrow.removeprefix('*')}",
                    kernel=kernel,
                    constants=constants(m, d, dtype, backward=name == "backward"),
                    types={p: wide.get(p, narrow) for p in kernel.arg_names if p.endswith("_ptr")},
                    # Strides divide by 16 where d does, which lets Triton load four entries at once.
                    aligned=d % 16 == 0,
                    warps=WARPS,
                )
            )
    return tuple(result)
