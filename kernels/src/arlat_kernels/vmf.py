"""The von Mises–Fisher law on the unit sphere of R^d: normaliser, mean resultant length, entropy.

Density C_d(κ)·exp(κ μᵀx) with respect to the sphere's surface measure. Everything is computed in float64 and returned
in the dtype of κ. Derivations: the Debye expansion of log I_ν in logarithmic form (DLMF 10.41.3) for the normaliser,
Perron's continued fraction for the ratio A = I_{d/2}/I_{d/2−1}; neither overflows nor underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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


# Largest |row n of the series|·ν^n over κ, rows 1 to 8: what leaving that row out costs at order ν, times ν^n.
DEBYE_LARGEST = (0.084, 0.033, 0.016, 0.020, 0.020, 0.040, 0.065, 0.17)
CHUNK = 32768  # entries worked on at a time: few enough for the cache, many enough to hide the cost of a call


@dataclass(frozen=True)
class Effort:
    """How far the series go for one dtype of κ.

    Orders ν below `order` are raised above it where κ < `order`; rows of the Debye series below `tolerance` are left
    out; `terms` of the continued fraction are (dimension below which, how many).
    """

    order: float
    tolerance: float
    terms: tuple[tuple[float, int], ...]


# Terms by measurement against 120 of them, κ from 1e-3 to 1e7: A, 1 − A, A′ to 1e-9, and to the last digit.
SINGLE = Effort(order=12.0, tolerance=1e-10, terms=((8, 32), (16, 20), (32, 16), (math.inf, 14)))
DOUBLE = Effort(order=24.0, tolerance=1e-14, terms=((8, 60), (32, 40), (math.inf, 24)))


def vmf_log_norm(kappa: Tensor, dim: int, scaled: bool = True) -> Tensor:
    """log C_d(κ) + κ, or log C_d(κ) if not `scaled`; κ ≥ 0 of any shape.

    The scaled form loses nothing at large κ, where log C_d(κ) ≈ −κ drowns the rest. Differentiable: 1 − A, or −A.
    """
    check(kappa, dim)
    return _log_norm(kappa.double(), dim, scaled, effort(kappa)).to(kappa.dtype)


def vmf_mean_resultant(kappa: Tensor, dim: int, complement: bool = False) -> Tensor:
    """A = I_{d/2}(κ)/I_{d/2−1}(κ), the length of E[x]; `complement` gives 1 − A without cancellation.

    Differentiable twice: A′ = 1 − A² − (d−1)A/κ, evaluated without that cancellation.
    """
    check(kappa, dim)
    return _mean_resultant(kappa.double(), dim, complement, effort(kappa)).to(kappa.dtype)


def vmf_entropy(kappa: Tensor, dim: int) -> Tensor:
    """−log C_d(κ) − κA = κ(1 − A) − (log C_d(κ) + κ), nats against the surface measure."""
    check(kappa, dim)
    k, how = kappa.double(), effort(kappa)
    return (k * _mean_resultant(k, dim, True, how) - _log_norm(k, dim, True, how)).to(kappa.dtype)


def vmf_log_norm_uniform(dim: int) -> float:
    """log C_d(0) = log Γ(d/2) − log 2 − (d/2) log π, minus the log of the sphere's surface."""
    return math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)


def effort(kappa: Tensor) -> Effort:
    """DOUBLE for float64, SINGLE for anything narrower."""
    return DOUBLE if kappa.dtype == torch.float64 else SINGLE


def check(kappa: Tensor, dim: int) -> None:
    """Raises ValueError or TypeError unless dim ≥ 2 and κ is a float tensor; a negative κ on the CPU is a ValueError."""
    if dim < 2:
        raise ValueError(f"dim is {dim}; the von Mises–Fisher law needs dim ≥ 2.")
    if not kappa.is_floating_point():
        raise TypeError(f"kappa has dtype {kappa.dtype}; give a floating-point tensor.")
    if kappa.device.type == "cpu" and bool((kappa < 0).any()):
        raise ValueError(f"kappa has the negative entry {float(kappa.min()):g}; the concentration must be ≥ 0.")


Four = tuple[Tensor, None, None, None]


class _LogNorm(torch.autograd.Function):
    """κ → log C + κ (scaled) or log C, with derivative 1 − A or −A."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, kappa: Tensor, dim: int, scaled: bool, how: Effort) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.settings = (dim, scaled, how)  # type: ignore[attr-defined]
        value = chunked(lambda part: scaled_log_norm(part, dim, how), kappa)
        return value if scaled else value - kappa

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Four:
        (kappa,) = ctx.saved_tensors  # type: ignore[attr-defined]
        dim, scaled, how = ctx.settings  # type: ignore[attr-defined]
        slope = _mean_resultant(kappa, dim, scaled, how)
        return grad * (slope if scaled else -slope), None, None, None


class _MeanResultant(torch.autograd.Function):
    """κ → A or 1 − A, with derivative ±A′."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, kappa: Tensor, dim: int, complement: bool, how: Effort
    ) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.settings = (dim, complement, how)  # type: ignore[attr-defined]
        rest = chunked(lambda part: perron(part, dim, how), kappa)
        return (rest if complement else kappa) / (kappa + rest)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Four:
        (kappa,) = ctx.saved_tensors  # type: ignore[attr-defined]
        dim, complement, how = ctx.settings  # type: ignore[attr-defined]
        slope = resultant_slope(kappa, dim, how)
        return grad * (-slope if complement else slope), None, None, None


def _log_norm(kappa: Tensor, dim: int, scaled: bool, how: Effort) -> Tensor:
    value: Tensor = _LogNorm.apply(kappa, dim, scaled, how)  # type: ignore[no-untyped-call]
    return value


def _mean_resultant(kappa: Tensor, dim: int, complement: bool, how: Effort) -> Tensor:
    value: Tensor = _MeanResultant.apply(kappa, dim, complement, how)  # type: ignore[no-untyped-call]
    return value


def chunked(function: Callable[[Tensor], Tensor], kappa: Tensor) -> Tensor:
    """`function` of κ [...], entry by entry, over CHUNK entries at a time."""
    if kappa.numel() <= CHUNK or kappa.device.type != "cpu":
        return function(kappa)
    return torch.cat([function(part) for part in torch.split(kappa.reshape(-1), CHUNK)]).reshape(kappa.shape)


def terms(dim: float, how: Effort) -> int:
    """Trips of the continued fraction; it converges faster in high dimension."""
    return next(count for below, count in how.terms if dim < below)


def perron(kappa: Tensor, dim: int, how: Effort) -> Tensor:
    """g with A = κ/(κ+g) and 1 − A = g/(κ+g), at float64 κ [...]; no cancellation, exact at κ = 0.

    g = d + f_1, f_n = −(d+2n−1)κ/(2κ+d+n+f_{n+1}): Perron's continued fraction with a fixed number of terms.
    """
    base = torch.add(dim, kappa, alpha=2)
    total = base.clone()  # 2κ + d + f_{n+1}
    for n in range(terms(dim, how), 1, -1):
        total = torch.addcdiv(base, kappa, total.add_(n), value=-(dim + 2 * n - 1))
    return dim - (dim + 1) * kappa / total.add_(1)


def resultant_slope(kappa: Tensor, dim: int, how: Effort) -> Tensor:
    """A′ at float64 κ [...], without the cancellation of 1 − A² − (d−1)A/κ; 1/d at κ = 0.

    With u_n = f_n − κf_n′ in the same loop, A′ = (d+u_1)/(κ+g)².
    """
    base = 2 * kappa + dim
    f = torch.zeros_like(kappa)
    u = torch.zeros_like(kappa)
    for n in range(terms(dim, how), 0, -1):
        r = 1 / (base + f + n)
        m = (dim + 2 * n - 1) * kappa * r
        u = -m * r * (2 * kappa + (f - u))
        f = -m
    return (dim + u) / (kappa + (dim + f)).square()


def scaled_log_norm(kappa: Tensor, dim: int, how: Effort) -> Tensor:
    """log C_d(κ) + κ at float64 κ [...]."""
    nu = dim / 2 - 1
    if nu >= how.order:
        return excess(kappa, nu, how).add_(vmf_log_norm_uniform(dim))
    small = kappa.clamp_max(how.order)
    raised = nu + math.ceil(how.order - nu)
    near = vmf_log_norm_uniform(dim) + excess(small, raised, how) - lowering(small, nu, raised, how)
    far = kappa.clamp_min(how.order)
    s = torch.sqrt(far * far + nu * nu)
    tail = -(dim - 1) / 2 * LOG_2PI + nu * torch.log(nu + s) + torch.log(s) / 2 - nu * nu / (s + far)
    return torch.where(kappa < how.order, near, tail - debye(1 / s, nu / s, rows(how.order, how)))


def excess(kappa: Tensor, nu: float, how: Effort) -> Tensor:
    """κ − log ₀F₁(; ν+1; κ²/4) ≥ 0 at a large order ν: log C_d(κ) + κ − log C_d(0); exact at κ = 0."""
    square = kappa * kappa
    s = torch.sqrt(square + nu * nu)
    x = square.div_(s + nu).div_(2 * nu)  # (s − ν)/2ν
    value = torch.log1p(x).mul_(nu).add_(torch.log1p(x.mul_(2)), alpha=0.5)
    count = rows(nu, how)
    value.sub_(debye(1 / s, nu / s, count)).add_(nu + debye_at_zero(nu, count))
    return value.sub_(nu * nu / s.add_(kappa))


def rows(nu: float, how: Effort) -> int:
    """Rows of the Debye series at √(ν²+κ²) ≥ `nu`: those before the first that is below the tolerance."""
    small = (n for n, largest in enumerate(DEBYE_LARGEST) if largest < how.tolerance * nu ** (n + 1))
    return next(small, len(DEBYE))


def debye(w: Tensor, p: Tensor, count: int) -> Tensor:
    """log of the Debye series, Σ_{n ≤ count} w^n Σ_j c_nj p^2j."""
    t = p * p
    total = torch.zeros_like(w)
    for row in reversed(DEBYE[:count]):
        inner = t * row[-1]
        for coefficient in row[-2:0:-1]:
            inner.add_(coefficient).mul_(t)
        total.add_(inner.add_(row[0])).mul_(w)
    return total


def debye_at_zero(nu: float, count: int) -> float:
    """The series at κ = 0 (w = 1/ν, t = 1), a Stirling series."""
    return math.fsum(math.fsum(row) / nu**n for n, row in enumerate(DEBYE[:count], start=1))


def lowering(kappa: Tensor, nu: float, raised: float, how: Effort) -> Tensor:
    """log ₀F₁(; ν+1; κ²/4) − log ₀F₁(; ν′+1; κ²/4) at ν′ = `raised`, by the contiguous relation (all terms positive)."""
    above = round(2 * raised + 2)
    q = above / (kappa + perron(kappa, above, how))  # ₀F₁(; ν′+2)/₀F₁(; ν′+1)
    quarter = kappa * kappa / 4
    product = torch.zeros_like(kappa)  # Π(1+z) − 1
    for j in reversed(range(round(raised - nu))):
        z = quarter * q / ((nu + j + 1) * (nu + j + 2))
        q = 1 / (1 + z)
        product.addcmul_(product, z).add_(z)
    return torch.log1p(product)
