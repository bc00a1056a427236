"""The series behind the von Mises–Fisher ops: what is summed, how far, and in which dtype.

κ comes as float32 or float64. The Debye expansion of log I_ν in logarithmic form (DLMF 10.41.3) gives the normaliser,
Perron's continued fraction the ratio A = I_{d/2}/I_{d/2−1}; neither overflows nor underflows. The fraction and the
Debye polynomial are evaluated in the dtype of κ; the main terms of the normaliser are float64 always, since numbers
of the size of ν·log ν cancel in it.
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class Effort:
    """How far the series go for one dtype of κ.

    Orders ν below `order` are raised above it where κ < `far`; rows of the Debye series below `tolerance` are left out;
    `terms` of the continued fraction are (dimension below which, how many); `powers` of κ² are in the divergence's
    series about 0; κ above `top` is taken for `top` in the continued fraction, where larger squares overflow.
    """

    order: float
    far: float
    tolerance: float
    terms: tuple[tuple[float, int], ...]
    powers: int
    top: float


# Terms by measurement against 120 of them, κ from 1e-3 to 1e7: to the rounding of the dtype in A, 1 − A and A′.
SINGLE = Effort(order=6.0, far=12.0, tolerance=2.5e-8, terms=((8, 20), (math.inf, 12)), powers=8, top=1e18)
DOUBLE = Effort(order=24.0, far=24.0, tolerance=1e-14, terms=((8, 60), (32, 40), (math.inf, 24)), powers=16, top=1e150)


def effort(kappa: Tensor) -> Effort:
    """DOUBLE for float64, SINGLE for anything narrower."""
    return DOUBLE if kappa.dtype == torch.float64 else SINGLE


def terms(dim: float, how: Effort) -> int:
    """Trips of the continued fraction; it converges faster in high dimension."""
    return next(count for below, count in how.terms if dim < below)


def rows(nu: float, how: Effort) -> int:
    """Rows of the Debye series at √(ν²+κ²) ≥ `nu`: those before the first that is below the tolerance."""
    small = (n for n, largest in enumerate(DEBYE_LARGEST) if largest < how.tolerance * nu ** (n + 1))
    return next(small, len(DEBYE))


def vmf_log_norm_uniform(dim: int) -> float:
    """log C_d(0) = log Γ(d/2) − log 2 − (d/2) log π, minus the log of the sphere's surface."""
    return math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)


def perron(kappa: Tensor, dim: int, how: Effort) -> Tensor:
    """g with A = κ/(κ+g) and 1 − A = g/(κ+g), in the dtype of κ [...]; no cancellation, exact at κ = 0.

    g = d + f_1, f_n = −(d+2n−1)κ/(2κ+d+n+f_{n+1}): Perron's continued fraction with a fixed number of terms.
    """
    base = torch.add(dim, kappa, alpha=2)
    total = base.clone()  # 2κ + d + f_{n+1}
    for n in range(terms(dim, how), 1, -1):
        total = torch.addcdiv(base, kappa, total.add_(n), value=-(dim + 2 * n - 1))
    return torch.div(kappa, total.add_(1)).mul_(-(dim + 1)).add_(dim)


def resultant_slope(kappa: Tensor, dim: int, how: Effort) -> Tensor:
    """A′ in the dtype of κ [...], without the cancellation of 1 − A² − (d−1)A/κ; 1/d at κ = 0.

    With u_n = f_n − κf_n′ in the same loop, A′ = (d+u_1)/(κ+g)². Autograd goes through it.
    """
    twice = 2 * kappa
    base = twice + dim
    m = torch.zeros_like(kappa)  # −f_n
    v = m  # u_n − f_n
    for n in range(terms(dim, how), 0, -1):
        r = torch.reciprocal((base - m).add_(n))
        m = (kappa * r).mul_(dim + 2 * n - 1)
        v = torch.addcmul(m, m * r, twice - v, value=-1)
    return (dim + (v - m)) / (kappa + (dim - m)).square()


def excess(kappa: Tensor, dim: int, how: Effort) -> Tensor:
    """log C_d(κ) + κ − log C_d(0) ≥ 0 in float64, at κ [...] of either dtype."""
    nu = dim / 2 - 1
    if nu < how.order:
        return excess_of_a_low_order(kappa, nu, how)
    wide = kappa.double()
    square = wide * wide
    s = torch.sqrt(square + nu * nu)
    x = square.div_(s + nu).div_(2 * nu)  # (s − ν)/2ν
    value = torch.log1p(x).mul_(nu).add_(torch.log1p(x.mul_(2)), alpha=0.5)
    count = rows(nu, how)
    value.sub_(debye(s.to(kappa.dtype), nu, count)).add_(nu + debye_at_zero(nu, count))
    return value.sub_(torch.div(nu * nu, s.add_(wide)))


def excess_of_a_low_order(kappa: Tensor, nu: float, how: Effort) -> Tensor:
    """`excess` at ν < `how.order`: below that κ by a raised order ν′ and the way back, above it at ν itself."""
    raised, count = raised_order(nu, how), rows(how.order, how)
    wide = kappa.double()
    near = (kappa < how.far).to(wide)  # as a factor: masks cost more
    order = near.mul(raised - nu).add_(nu)
    square = order * order
    s = torch.addcmul(square, wide, wide).sqrt_()
    value = torch.log(s).mul_(0.5).addcmul_(order, torch.log(order + s)).add_(far_constant(nu))
    value.sub_(debye(s.to(kappa.dtype), order.to(kappa.dtype), count)).sub_(square.div_(s.add_(wide)))
    back = lowering(kappa.clamp_max(how.far), nu, raised, how)
    return value.addcmul_(near, back.neg_().add_(near_constant(raised, count) - far_constant(nu)))


def raised_order(nu: float, how: Effort) -> float:
    """ν′ = ν plus the fewest whole steps that reach `how.order`."""
    return nu + math.ceil(how.order - nu)


def near_constant(raised: float, count: int) -> float:
    """What makes the Debye form at ν′ vanish at κ = 0."""
    return raised - raised * math.log(2 * raised) - math.log(raised) / 2 + debye_at_zero(raised, count)


def far_constant(nu: float) -> float:
    """The constant −(ν+½)·log 2π of the Debye form at ν, less log C_d(0)."""
    return -(nu + 0.5) * LOG_2PI - vmf_log_norm_uniform(round(2 * nu + 2))


def debye(s: Tensor, nu: Tensor | float, count: int) -> Tensor:
    """log of the Debye series, Σ_{n ≤ count} s^−n Σ_j c_nj (ν/s)^2j, in the dtype of s."""
    w = torch.reciprocal(s)
    t = (w * nu).square_()
    total = torch.zeros_like(w)
    for row in reversed(DEBYE[:count]):
        inner = t * row[-1]
        for coefficient in row[-2:0:-1]:
            inner.add_(coefficient).mul_(t)
        total.add_(inner.add_(row[0])).mul_(w)
    return total


def debye_at_zero(nu: float, count: int) -> float:
    """The series at κ = 0 (w = 1/ν, t = 1), a Stirling series."""
    return math.fsum([math.fsum(row) / nu**n for n, row in enumerate(DEBYE[:count], start=1)])


def lowering(kappa: Tensor, nu: float, raised: float, how: Effort) -> Tensor:
    """log ₀F₁(; ν+1; κ²/4) − log ₀F₁(; ν′+1; κ²/4) in float64, by the contiguous relation (all terms positive)."""
    above = round(2 * raised + 2)
    q = above / (kappa + perron(kappa, above, how)).double()  # ₀F₁(; ν′+2)/₀F₁(; ν′+1)
    quarter = kappa.double().square().mul_(0.25)
    product = torch.zeros_like(quarter)  # Π(1+z) − 1
    for j in reversed(range(round(raised - nu))):
        z = (quarter * q).div_((nu + j + 1) * (nu + j + 2))
        q = torch.reciprocal(z + 1)
        product.addcmul_(product, z).add_(z)
    return torch.log1p(product)


def divergence(kappa: Tensor, dim: int, how: Effort) -> Tensor:
    """KL(vMF(κ) ‖ uniform) in float64 at κ [...] of either dtype: excess − κ(1 − A), about κ = 0 by its series."""
    wide = kappa.double()
    g = perron(kappa.clamp_max(how.top), dim, how).double()
    far = excess(kappa, dim, how).sub_(wide * g / (wide + g))
    square = wide.clamp_max(dim / 5).div_(dim).square_()
    near = torch.zeros_like(wide)
    for coefficient in reversed(divergence_series(dim, how.powers)):
        near.add_(coefficient).mul_(square)
    return torch.where(wide < dim / 5, near, far)


def divergence_series(dim: int, count: int) -> tuple[float, ...]:
    """Coefficients of (κ/d)^2j in the divergence, j = 1 … count.

    With A = Σ a_j κ^(2j−1): a_1 = 1/d, a_j = −Σ_{i<j} a_i·a_{j−i}/(d+2j−2), and the divergence is Σ a_j(1 − 1/2j)κ^2j.
    """
    scaled = [float(dim)]  # a_j·d^2j
    for j in range(2, count + 1):
        product = math.fsum([scaled[i - 1] * scaled[j - i - 1] for i in range(1, j)])
        scaled.append(-product / (dim + 2 * j - 2))
    return tuple(a * (1 - 1 / (2 * j)) for j, a in enumerate(scaled, start=1))
