"""Gradients of draws from the von Mises–Fisher law by a fixed quadrature; no draw is repeated.

For the direction the law turns with μ, so the draw does too. For the concentration the cosine w keeps its quantile:
dw/dκ = −∂F/∂κ / f (implicit reparameterisation). Differentiating through the accepted proposal would be biased: the
acceptance depends on κ too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from arlat_kernels.vmf import vmf_mean_resultant

NODES = 24
CLOSED = 1.0  # least κ at which dim 3 takes its closed form


def squared_nodes() -> tuple[tuple[float, float], ...]:
    """(x², 2x·weight) of Gauss and Legendre's rule on [0, 1]: nodes gather where the integrand is largest."""
    x, weight = np.polynomial.legendre.leggauss(NODES)
    return tuple((float((1 + a) ** 2 / 4), float((1 + a) / 2 * b)) for a, b in zip(x, weight, strict=True))


QUADRATURE = squared_nodes()


def slope(gap: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """h = (dw/dκ)/(1 − w²) at t = 1 − w, float64 [n], for κ [n].

    Relative error over quantiles from 1e-7 to 1 − 1e-6: 3e-4 at d = 4 near κ = 10, at most 1e-4 elsewhere, mostly 1e-7.
    """
    rest = vmf_mean_resultant.reference(kappa, dim, complement=True)
    if dim == 2:
        return slope_circle(gap, kappa, rest)
    h = slope_sphere(gap, kappa, rest, dim)
    return torch.where(kappa < CLOSED, h, slope_closed(gap, kappa)) if dim == 3 else h


def slope_closed(gap: Tensor, kappa: Tensor) -> Tensor:
    """h for dim 3, where the law of the cosine is elementary; at κ from 1 on nothing cancels."""
    share = torch.expm1(-kappa * gap) / torch.expm1(-2 * kappa)
    return (gap - 2 * torch.exp(-kappa * (2 - gap)) * share) / (kappa * gap * (2 - gap))


def slope_sphere(gap: Tensor, kappa: Tensor, rest: Tensor, dim: int) -> Tensor:
    """h for dim ≥ 3: an integral over D, the distance in rapidity atanh w, away from the mean 1 − `rest`.

    h = ∫ ±(rest − t′) exp(−(d−1)(D + log(e + bm)) ± 2κab·m/(e + bm)) dD, e = exp(−2D), m = 1 − e, + for t < rest.
    """
    up = gap < rest
    sign = torch.where(up, 1.0, -1.0).to(gap)
    a = torch.where(up, gap, 2 - gap) / 2
    b = torch.where(up, 2 - gap, gap) / 2
    reach = reach_sphere(gap, kappa, up, dim)
    total = torch.zeros_like(gap)
    for node, weight in QUADRATURE:
        distance = reach * node
        e = torch.exp(-2 * distance)
        m = 1 - e
        ratio = e + b * m
        side = 2 * torch.where(up, a * e, b) / ratio  # t′
        exponent = sign * (2 * kappa * a * b * m / ratio) - (dim - 1) * (distance + torch.log(ratio))
        total = total + weight * (rest - side) * torch.exp(exponent)
    return sign * reach * total


def reach_sphere(gap: Tensor, kappa: Tensor, up: Tensor, dim: int) -> Tensor:
    """Where the integral over D may end: beyond, the density has fallen by e^-16 or more."""
    double = gap * (2 - gap)  # 1 − w²
    first = 16 / (dim - 1) + (32 / (dim - 1)) ** 0.5
    reach = (16 / ((dim - 1) * (1 - gap) - kappa * double).abs()).clamp_max(first)
    q = kappa * double / 2
    narrow = torch.minimum(torch.sqrt(8 / q), (0.5 * torch.log1p(32 / q)).clamp_min(0.63))
    return torch.where(~up & (kappa * (2 - gap) > 32), torch.minimum(reach, narrow), reach)


def slope_circle(gap: Tensor, kappa: Tensor, rest: Tensor) -> Tensor:
    """h for dim 2: an integral over u, the sine or cosine of half the angle as a share of the draw's own.

    With s² = t/2, c² = 1 − s²: ∫ (rest − tu²) e^{κt(1−u²)} / (c√(1−s²u²)) du for t < rest, and
    ∫ (t′ − rest) e^{−κ(2−t)(1−u²)} / (s√(1−c²u²)) du otherwise, u from 0 (or where the exponential is below e^-36) to 1.
    """
    up = gap < rest
    sign = torch.where(up, 1.0, -1.0).to(gap)
    own = torch.where(up, gap, 2 - gap)  # 2s² or 2c²
    tail = (36 / (kappa * (2 - gap))).clamp_max(1.0)
    reach = torch.where(up, torch.ones_like(gap), tail / (1 + torch.sqrt(1 - tail)))  # 1 − √(1 − tail)
    total = torch.zeros_like(gap)
    for node, weight in QUADRATURE:
        fall = reach * node * (2 - reach * node)  # 1 − u²
        side = torch.where(up, gap * (1 - fall), gap + own * fall)  # t′
        root = torch.sqrt(1 - own / 2 + own / 2 * fall)
        total = total + weight * (rest - side) * torch.exp(sign * kappa * own * fall) / root
    return sign * reach * total / torch.sqrt(1 - own / 2)


def gradients(
    grad: Tensor, mu: Tensor, kappa: Tensor, x: Tensor, gap: Tensor, pole: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of μ [n d] and κ [n] for the gradient [n d] of the draws x = x(μ, κ), with 1 − cos = `gap` [n].

    g_μ = ((x·m)g − (m·g)x)/|μ| with m = μ/|μ| (zero where μ is), g_κ = h(g·m − w g·x).
    """
    t = gap.to(grad.dtype).unsqueeze(-1)
    along = torch.linalg.vecdot(grad, pole).unsqueeze(-1)
    turn = (1 - t) * grad - along * x
    inverse = torch.where(length > 0, 1 / length, 0)
    # m − x first: m·g and w x·g agree to many digits at large κ.
    pull = torch.linalg.vecdot(grad, pole - x + t * x)
    h = slope(gap, kappa.double(), pole.shape[-1]).to(grad.dtype)
    return (turn * inverse).to(mu.dtype), (h * pull).to(kappa.dtype)
