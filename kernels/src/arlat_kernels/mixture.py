"""Negative log-density of a mixture of diagonal Gaussians, in nats."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin, triton_obstacle

LOG_2PI = math.log(2 * math.pi)


def mixture_nll_reference(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """−log Σ_m softmax(logits)_m N(x; mean_m, diag(exp(2·log_scale_m))), [...] nats.

    logits [... m], mean and log_scale [... m d], x [... d]; differentiable in all four, twice. bfloat16 and float16 are
    computed and returned in float32. One component at a time: no temporary is larger than x, forward or backward.
    """
    check_shapes(logits, mean, log_scale, x)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits, mean, log_scale, x = logits.float(), mean.float(), log_scale.float(), x.float()
    if torch.compiler.is_compiling():
        return whole(logits, mean, log_scale, x)  # the compiler fuses it
    value: Tensor = _Mixture.apply(logits, mean, log_scale, x)  # type: ignore[no-untyped-call]
    return value


def whole(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """The same for all components at once, with temporaries [... m d]."""
    residual = (x.unsqueeze(-2) - mean) * torch.exp(-log_scale)
    exponent = -0.5 * torch.linalg.vecdot(residual, residual) - log_scale.sum(-1)  # [... m]
    return negative_log(logits, exponent, x.shape[-1])


def negative_log(logits: Tensor, exponent: Tensor, dim: int) -> Tensor:
    """The value [...] from the components' exponents [... m]."""
    evidence = torch.logsumexp(logits + exponent, -1) - torch.logsumexp(logits, -1)
    return 0.5 * dim * LOG_2PI - evidence


class _Mixture(torch.autograd.Function):
    """`whole`, one component at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
        exponent = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for j, (mu, s) in enumerate(zip(mean.unbind(-2), log_scale.unbind(-2), strict=True)):
            residual = torch.exp(-s).mul_(x - mu)
            exponent[..., j] = torch.linalg.vecdot(residual, residual).mul_(-0.5).sub_(s.sum(-1))
        ctx.save_for_backward(logits, mean, log_scale, x, exponent)
        return negative_log(logits, exponent, x.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        logits, mean, log_scale, x, exponent = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: the gradient as a function of the inputs
            inputs = (logits, mean, log_scale, x)
            leaves = [tensor if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in inputs]
            return torch.autograd.grad(whole(*leaves), leaves, grad, create_graph=True)
        weight = (logits + exponent).softmax(-1)
        grad_logits = (logits.softmax(-1) - weight).mul_(grad.unsqueeze(-1))
        grad_mean, grad_log_scale = torch.empty_like(mean), torch.empty_like(log_scale)
        grad_x = torch.zeros_like(x)
        for j, (mu, s) in enumerate(zip(mean.unbind(-2), log_scale.unbind(-2), strict=True)):
            share = (grad * weight[..., j]).unsqueeze(-1)  # the gradient times the component's responsibility
            inverse = torch.exp(-s)
            residual = inverse * (x - mu)
            pull = inverse.mul_(residual).mul_(share)
            grad_x.add_(pull)
            torch.neg(pull, out=grad_mean[..., j, :])
            torch.mul(residual.square_().neg_().add_(1), share, out=grad_log_scale[..., j, :])
        return grad_logits, grad_mean, grad_log_scale, grad_x


def check_shapes(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> None:
    """Raises ValueError unless the four shapes are [... m], [... m d], [... m d] and [... d], m and d at least 1."""
    right = (
        mean.dim() >= 2
        and log_scale.shape == mean.shape
        and logits.shape == mean.shape[:-1]
        and x.shape == (*mean.shape[:-2], mean.shape[-1])
        and min(mean.shape[-2:]) > 0
    )
    if not right:
        raise ValueError(
            f"logits {tuple(logits.shape)}, mean {tuple(mean.shape)}, log_scale {tuple(log_scale.shape)} and x "
            f"{tuple(x.shape)} must be [... m], [... m d], [... m d] and [... d] with m, d ≥ 1."
        )


def make_inputs(n: int, m: int, d: int, *, generator: torch.Generator, spread: float = 1.0) -> Inputs:
    """Inputs of one case: n rows, m components of d dimensions, log-scales of standard deviation `spread`/2."""
    return {
        "logits": torch.randn(n, m, generator=generator),
        "mean": torch.randn(n, m, d, generator=generator),
        "log_scale": torch.randn(n, m, d, generator=generator) * (0.5 * spread),
        "x": torch.randn(n, d, generator=generator) * (1.0 + spread),
    }


CASES: tuple[Case, ...] = (
    {"n": 1, "m": 1, "d": 1},
    {"n": 3, "m": 5, "d": 7},
    {"n": 17, "m": 3, "d": 64},
    {"n": 5, "m": 8, "d": 67},
    {"n": 2, "m": 8, "d": 512, "spread": 0.3},
    {"n": 0, "m": 4, "d": 16},
)

TRITON_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def _triton(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    from arlat_kernels.mixture_triton import mixture_nll_triton  # imports Triton, which need not be there

    return mixture_nll_triton(logits, mean, log_scale, x)


def _triton_builds() -> tuple[Build, ...]:
    from arlat_kernels.mixture_triton import builds

    return builds()


def _triton_obstacle(*inputs: Tensor) -> str | None:
    return triton_obstacle(inputs, TRITON_DTYPES)


mixture_nll = Op(
    name="mixture_nll",
    reference=mixture_nll_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={"triton": Twin(run=_triton, obstacle=_triton_obstacle, builds=_triton_builds)},
)
