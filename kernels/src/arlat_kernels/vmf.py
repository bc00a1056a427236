"""The von Mises–Fisher law on the unit sphere of R^d: normaliser, mean resultant length, entropy.

Density C_d(κ)·exp(κ μᵀx) with respect to the sphere's surface measure. Everything is computed in float64 and returned
in the dtype of κ. Derivations: the Debye expansion of log I_ν in logarithmic form (DLMF 10.41.3) for the normaliser,
Perron's continued fraction for the ratio A = I_{d/2}/I_{d/2−1}; neither overflows nor underflows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
# log of the Debye series: coefficient j of row n multiplies (1/s)^n·t^j, s = √(ν²+κ²), t = (ν/s)².
DEBYE: tuple[tuple[float, ...], ...] = (
    (1 / 8, -5 / 24),
    (1 / 16, -3 / 8, 5 / 16),
    (25 / 384, -531 / 640, 221 / 128, -1105 / 1152),
    (13 / 128, -71 / 32, 531 / 64, -339 / 32, 565 / 128),
    (1073 / 5120, -50049 / 7168, 186821 / 4608, -44899 / 512, 82825 / 1024, -82825 / 3072),
    (103 / 192, -405 / 16, 1677 / 8, -5389 / 8, 65385 / 64, -11805 / 16, 19675 / 96),
    (
        375733 / 229376,
        -3407083 / 32768,
        38038059 / 32768,
        -168434443 / 32768,
        1852155413 / 163840,
        -432038457 / 32768,
        256406305 / 32768,
        -1282031525 / 688128,
    ),
    (
        23797 / 4096,
        -244539 / 512,
        7069979 / 1024,
        -20526309 / 512,
        243859359 / 2048,
        -101540765 / 512,
        192309147 / 1024,
        -48436755 / 512,
        80727925 / 4096,
    ),
)


def vmf_log_norm(kappa: Tensor, dim: int, scaled: bool = True) -> Tensor:
    """log C_d(κ) + κ, or log C_d(κ) if not `scaled`; κ ≥ 0 of any shape.

    The scaled form loses nothing at large κ, where log C_d(κ) ≈ −κ drowns the rest. Differentiable: 1 − A, or −A.
    """
    check(kappa, dim)
    return _log_norm(kappa.double(), dim, scaled).to(kappa.dtype)


def vmf_mean_resultant(kappa: Tensor, dim: int, complement: bool = False) -> Tensor:
    """A = I_{d/2}(κ)/I_{d/2−1}(κ), the length of E[x]; `complement` gives 1 − A without cancellation.

    Differentiable twice: A′ = 1 − A² − (d−1)A/κ, evaluated without that cancellation.
    """
    check(kappa, dim)
    return _mean_resultant(kappa.double(), dim, complement).to(kappa.dtype)


def vmf_entropy(kappa: Tensor, dim: int) -> Tensor:
    """−log C_d(κ) − κA = κ(1 − A) − (log C_d(κ) + κ), nats against the surface measure."""
    check(kappa, dim)
    k = kappa.double()
    return (k * _mean_resultant(k, dim, True) - _log_norm(k, dim, True)).to(kappa.dtype)


def vmf_log_norm_uniform(dim: int) -> float:
    """log C_d(0) = log Γ(d/2) − log 2 − (d/2) log π, minus the log of the sphere's surface."""
    return math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)


def check(kappa: Tensor, dim: int) -> None:
    """Raises ValueError or TypeError unless dim ≥ 2 and κ is a float tensor; a negative κ on the CPU is a ValueError."""
    if dim < 2:
        raise ValueError(f"dim is {dim}; the von Mises–Fisher law needs dim ≥ 2.")
    if not kappa.is_floating_point():
        raise TypeError(f"kappa has dtype {kappa.dtype}; give a floating-point tensor.")
    if kappa.device.type == "cpu" and bool((kappa < 0).any()):
        raise ValueError(f"kappa has the negative entry {float(kappa.min()):g}; the concentration must be ≥ 0.")


class _LogNorm(torch.autograd.Function):
    """κ → log C + κ (scaled) or log C, with derivative 1 − A or −A."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, kappa: Tensor, dim: int, scaled: bool) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.settings = (dim, scaled)  # type: ignore[attr-defined]
        value = scaled_log_norm(kappa, dim)
        return value if scaled else value - kappa

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (kappa,) = ctx.saved_tensors  # type: ignore[attr-defined]
        dim, scaled = ctx.settings  # type: ignore[attr-defined]
        slope = _mean_resultant(kappa, dim, scaled)
        return grad * (slope if scaled else -slope), None, None


class _MeanResultant(torch.autograd.Function):
    """κ → A or 1 − A, with derivative ±A′."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, kappa: Tensor, dim: int, complement: bool) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.settings = (dim, complement)  # type: ignore[attr-defined]
        g, _ = perron(kappa, dim)
        return (g if complement else kappa) / (kappa + g)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (kappa,) = ctx.saved_tensors  # type: ignore[attr-defined]
        dim, complement = ctx.settings  # type: ignore[attr-defined]
        slope = resultant(kappa, dim)[2]
        return grad * (-slope if complement else slope), None, None


def _log_norm(kappa: Tensor, dim: int, scaled: bool) -> Tensor:
    value: Tensor = _LogNorm.apply(kappa, dim, scaled)  # type: ignore[no-untyped-call]
    return value


def _mean_resultant(kappa: Tensor, dim: int, complement: bool) -> Tensor:
    value: Tensor = _MeanResultant.apply(kappa, dim, complement)  # type: ignore[no-untyped-call]
    return value


def resultant(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, 1 − A and A′ at float64 κ [...]; exact at κ = 0, no cancellation in any of the three."""
    g, u = perron(kappa, dim, slope=True)
    s = 1 / (kappa + g)
    return kappa * s, g * s, (dim + u) * s * s


def perron(kappa: Tensor, dim: int, slope: bool = False) -> tuple[Tensor, Tensor]:
    """g with A = κ/(κ+g), and u = f_1 − κf_1′ (zeros unless `slope`) with A′ = (d+u)/(κ+g)².

    f_n = −(d+2n−1)κ/(2κ+d+n+f_{n+1}), g = d + f_1: Perron's continued fraction with a fixed number of terms.
    """
    base = 2 * kappa + dim
    f = torch.zeros_like(kappa)
    u = torch.zeros_like(kappa)
    for n in range(terms(dim), 0, -1):
        r = torch.add(base, f).add_(n).reciprocal_()
        m = torch.mul(kappa, r).mul_(dim + 2 * n - 1)
        if slope:
            u = m * -r * (2 * kappa + (f - u))
        f = -m
    return dim + f, u


def terms(dim: int) -> int:
    """Trips of the continued fraction for float64: measured, the fraction converges faster in high dimension."""
    return 60 if dim < 8 else 40 if dim < 32 else 24


ORDER = 24.0  # orders ν below this one are raised above it where κ is small: the Debye series is in 1/√(ν²+κ²)


def scaled_log_norm(kappa: Tensor, dim: int) -> Tensor:
    """log C_d(κ) + κ at float64 κ [...]."""
    nu = dim / 2 - 1
    if nu >= ORDER:
        return vmf_log_norm_uniform(dim) + excess(kappa, nu)
    small = kappa.clamp_max(ORDER)
    raised = nu + math.ceil(ORDER - nu)
    near = vmf_log_norm_uniform(dim) + excess(small, raised) - lowering(small, nu, raised)
    far = kappa.clamp_min(ORDER)
    s = torch.sqrt(far * far + nu * nu)
    tail = -(dim - 1) / 2 * LOG_2PI + nu * torch.log(nu + s) + torch.log(s) / 2 - nu * nu / (s + far)
    return torch.where(kappa < ORDER, near, tail - debye(1 / s, nu / s))


def excess(kappa: Tensor, nu: float) -> Tensor:
    """κ − log ₀F₁(; ν+1; κ²/4) ≥ 0 for ν ≥ ORDER: log C_d(κ) + κ − log C_d(0); exact at κ = 0."""
    s = torch.sqrt(kappa * kappa + nu * nu)
    x = kappa * kappa / ((s + nu) * (2 * nu))  # (s − ν)/2ν
    series = debye(1 / s, nu / s) - debye_at_zero(nu)
    return nu - nu * nu / (s + kappa) + nu * torch.log1p(x) + torch.log1p(2 * x) / 2 - series


def debye(w: Tensor, p: Tensor) -> Tensor:
    """log of the Debye series, Σ_n w^n Σ_j c_nj p^2j."""
    t = p * p
    total = torch.zeros_like(w)
    for row in reversed(DEBYE):
        inner = torch.full_like(t, row[-1])
        for coefficient in reversed(row[:-1]):
            inner.mul_(t).add_(coefficient)
        total.add_(inner).mul_(w)
    return total


def debye_at_zero(nu: float) -> float:
    """The series at κ = 0 (w = 1/ν, t = 1), a Stirling series."""
    return math.fsum(math.fsum(row) / nu**n for n, row in enumerate(DEBYE, start=1))


def lowering(kappa: Tensor, nu: float, raised: float) -> Tensor:
    """log ₀F₁(; ν+1; κ²/4) − log ₀F₁(; ν′+1; κ²/4) at ν′ = `raised`, by the contiguous relation (all terms positive)."""
    above = round(2 * raised + 2)
    q = above / (kappa + perron(kappa, above)[0])  # ₀F₁(; ν′+2)/₀F₁(; ν′+1)
    product = torch.zeros_like(kappa)  # Π(1+z) − 1
    for j in reversed(range(round(raised - nu))):
        z = kappa * kappa * q / (4 * (nu + j + 1) * (nu + j + 2))
        q = 1 / (1 + z)
        product = product + z * (1 + product)
    return torch.log1p(product)
