"""Exact draws from the von Mises–Fisher law, vectorised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arlat_kernels.vmf import check

ROUNDS = 64  # acceptance is at least 0.6577 for every (d, κ): more rounds happen with probability below 1e-29 a row


@torch.no_grad()
def vmf_sample(mu: Tensor, kappa: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors x [... d] ~ vMF(mu, κ); mu [... d] of any length (normalised here), κ [...] ≥ 0; no gradient.

    `kappa` and mu's batch axes broadcast. A zero mu stands for the first axis. Draws come from `generator`, on its
    device. w = 1 − t along mu by Wood's rejection in Möbius form, then a uniform tangent direction; no reflector.
    """
    dim = mu.shape[-1]
    check(kappa, dim)
    each: Tensor = torch.broadcast_tensors(kappa, mu[..., 0])[0]  # type: ignore[no-untyped-call]
    shape = each.shape
    gap, sine = cosine_gap(each.reshape(-1).double(), dim, generator)
    pole = normalised(mu).expand(*shape, dim)
    tangent = tangent_direction(pole, generator)
    x = (1 - gap).reshape(*shape, 1).to(mu.dtype) * pole + sine.reshape(*shape, 1).to(mu.dtype) * tangent
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length


def cosine_gap(kappa: Tensor, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """t = 1 − μᵀx and √(1 − (1−t)²) for float64 κ [n], both [n]; t keeps its digits where μᵀx rounds to 1.

    A symmetric-Beta variate y is proposed from two uniforms (first coordinate of a uniform direction) and mapped by
    w = (x0+y)/(1+x0·y); κ has dropped out of the acceptance test, so nothing cancels. RuntimeError if κ is not finite.
    """
    gap, sine = torch.empty_like(kappa), torch.empty_like(kappa)
    b = (dim - 1) / (2 * kappa + torch.sqrt(4 * kappa * kappa + (dim - 1) ** 2))
    om, x0 = 2 * b / (1 + b), (1 - b) / (1 + b)  # om = 1 − x0
    pending = torch.arange(len(kappa), device=kappa.device)
    for _ in range(ROUNDS):
        if len(pending) == 0:
            return gap, sine
        uniform = torch.rand(3, len(pending), generator=generator, dtype=torch.float64, device=generator.device)
        first, angle, accept = (1 - uniform).to(kappa.device)  # in (0, 1]
        y, s2, omy, opy = symmetric_beta(first, angle, dim)
        near, at = om[pending], x0[pending]
        q = near + at * opy  # 1 + x0·y
        taken = (dim - 1) * (at * y / q - torch.log(q)) >= torch.log(accept)
        rows = pending[taken]
        gap[rows] = (near * omy / q)[taken]
        sine[rows] = (torch.sqrt(near * (1 + at) * s2) / q)[taken]
        pending = pending[~taken]
    raise RuntimeError(
        f"{len(pending)} of {len(kappa)} rows were not accepted in {ROUNDS} rounds; kappa there begins with "
        f"{kappa[pending[:3]].tolist()}; it must be finite."
    )


def symmetric_beta(first: Tensor, angle: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y with density ∝ (1−y²)^{(d−3)/2}, and 1 − y², 1 − y, 1 + y, each without cancellation; uniforms [n] in (0, 1]."""
    z = -2 / (dim - 2) * torch.log(first) if dim > 2 else torch.full_like(first, torch.inf)
    rest, radius2 = torch.exp(-z), -torch.expm1(-z)
    turn = 2 * math.pi * angle
    y = torch.sqrt(radius2) * torch.cos(turn)
    s2 = rest + radius2 * torch.sin(turn).square()
    omy = torch.where(y > 0, s2 / (1 + y.clamp_min(0)), 1 - y)
    opy = torch.where(y < 0, s2 / (1 - y.clamp_max(0)), 1 + y)
    return y, s2, omy, opy


def normalised(mu: Tensor) -> Tensor:
    """mu/|mu| [... d]; the first axis where mu is zero."""
    length = torch.linalg.vector_norm(mu, dim=-1, keepdim=True)
    axis = torch.zeros_like(mu)
    axis[..., 0] = 1
    return torch.where(length > 0, mu / torch.where(length > 0, length, 1), axis)


def tangent_direction(pole: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors [... d] uniform in the tangent space of the unit vectors `pole` [... d]."""
    if pole.shape[-1] == 2:  # the tangent sphere is two points
        sign = torch.randint(0, 2, pole.shape[:-1], generator=generator, device=generator.device).to(pole) * 2 - 1
        return sign.unsqueeze(-1) * torch.stack([-pole[..., 1], pole[..., 0]], -1)
    g = torch.randn(pole.shape, generator=generator, dtype=pole.dtype, device=generator.device).to(pole.device)
    for _ in range(2):  # once leaves a rounding error along the pole that few dimensions would feel
        g = g - torch.linalg.vecdot(g, pole).unsqueeze(-1) * pole
    length: Tensor = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    return g / length
