"""The CUDA C++ twin of `vmf_draw`: torch ops around the library that `arlat_kernels.cuda_build` makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arlat_kernels.cuda_library import library_path, load
from arlat_kernels.vmf_sample import check_shapes
from arlat_kernels.vmf_series import DOUBLE, terms


@torch.library.custom_op("arlat::vmf_draw_cuda", mutates_args=())
def vmf_draw_forward(mu: Tensor, kappa: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """The draws [n d] and their gaps 1 − cos [n] in float64, for float32 or float64 inputs."""
    load(library_path())
    x, gap = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device), empty_gap(mu)
    sine, stream = torch.empty_like(gap), torch.cuda.current_stream(mu.device).cuda_stream
    torch.ops.arlat_cuda.vmf_draw(mu.contiguous(), kappa.contiguous(), seed.contiguous(), x, gap, sine, stream)
    return x, gap


def empty_gap(mu: Tensor) -> Tensor:
    """An unwritten gap [n]."""
    return mu.new_empty(mu.shape[:1], dtype=torch.float64)


@vmf_draw_forward.register_fake
def _(mu: Tensor, kappa: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), empty_gap(mu)


@torch.library.custom_op("arlat::vmf_draw_cuda_backward", mutates_args=())
def vmf_draw_backward(grad: Tensor, mu: Tensor, kappa: Tensor, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of μ and κ for the gradient [n d] of the draws."""
    load(library_path())
    grad_mu, grad_kappa = mu.new_empty(mu.shape), kappa.new_empty(kappa.shape)
    torch.ops.arlat_cuda.vmf_draw_backward(
        grad.contiguous(), mu.contiguous(), kappa.contiguous(), x, gap, grad_mu, grad_kappa,
        terms(mu.shape[-1], DOUBLE), torch.cuda.current_stream(mu.device).cuda_stream,
    )  # fmt: skip
    return grad_mu, grad_kappa


@vmf_draw_backward.register_fake
def _(grad: Tensor, mu: Tensor, kappa: Tensor, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), kappa.new_empty(kappa.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], *output)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    result: tuple[Tensor, Tensor] = vmf_draw_backward(grad, *ctx.saved_tensors)
    return *result, None


vmf_draw_forward.register_autograd(_gradients, setup_context=_save)


def vmf_draw_cuda(mu: Tensor, kappa: Tensor, seed: Tensor) -> Tensor:
    """What `vmf_draw_reference` gives, for leading axes of any number; once differentiable; NaN where κ is not finite."""
    check_shapes(mu, kappa, seed)
    if mu.dtype in (torch.float16, torch.bfloat16):
        mu, kappa = mu.float(), kappa.float()
    x: Tensor
    x, _ = vmf_draw_forward(mu.reshape(-1, mu.shape[-1]), kappa.reshape(-1), seed)
    return x.reshape(mu.shape)
