"""Every answer of a Gaussian linear process z_{t+1} = A z_t + e, e ~ N(0, S − A S Aᵀ), whose stationary law is N(0, S).

A displacement and the perfect forecast of it are jointly Gaussian: Cov(forecast) = G, Cov(Δ) = C, Cov(Δ | past) = C − G.
The horizon form has forecast (A^h − I) z_t; the lag form (A^k − A^{k−1}) z_{t−k}, which is also the forecast of a mean
rollout that last saw the truth k − 1 steps ago.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg, special, stats
from torch import Tensor

from arlat_data.processes import _process as process
from arlat_data.processes._process import C, Entry, Process, Truth, average, exact, monte_carlo, quadrature

DRAWS = 50_000  # at most; the cosine's spread falls with the dimension, and so may they
NESTED = (512, 128)  # pasts, and displacements for each


class LinearProcess(Process[C]):
    """A Gaussian linear process with transition `a` [d d] and stationary covariance `s` [d d], both float64."""

    a: Tensor
    s: Tensor

    def simulate(self, utterances: int, frames: int, generator: torch.Generator) -> Tensor:
        start = factor(self.s)
        noise = factor(self.s - self.a @ self.s @ self.a.T)
        z = torch.randn(utterances, frames, self.dim, generator=generator, dtype=torch.float64)
        z[:, 0] = z[:, 0] @ start.T
        for t in range(1, frames):
            z[:, t] = z[:, t - 1] @ self.a.T + z[:, t] @ noise.T
        return z

    def truth(self, frame_rate: float, generator: torch.Generator) -> Truth:
        values: Truth = {}
        identity = torch.eye(self.dim, dtype=torch.float64)
        powers = [identity]
        for _ in range(process.STEPS + 1):
            powers.append(powers[-1] @ self.a)
        one = 2 * self.s - self.a @ self.s - self.s @ self.a.T
        for h in process.HORIZONS:
            cross = powers[h] @ self.s
            law = Law.make((powers[h] - identity), self.s, 2 * self.s - cross - cross.T)
            values |= horizon(f"p1.h{h}", law, self.s, frame_rate, generator)
        lags = [Law.make(powers[k] - powers[k - 1], self.s, one) for k in range(1, process.STEPS + 1)]
        for k in process.LAGS:
            values |= displacement(f"p1.lag{k}", lags[k - 1], generator)
        for k in process.CLUSTER_LAGS:
            values |= variance_ratios(f"p0.lag{k}", lags[k - 1])
        for k in range(1, process.STEPS + 1):
            values[f"p4.rho[{k}]"] = exact(float(((powers[k] @ self.s).diagonal() / self.s.diagonal()).mean()))
            unknown = exact(float((self.s - powers[k] @ self.s @ powers[k].T).trace()))
            values |= {f"r4.error.{part}[{k}]": unknown for part in ("total", "intrinsic")}
        values["p4.effective_dim"] = exact(float(self.s.trace() ** 2 / (self.s**2).sum()))
        spread = [self.s - powers[j] @ self.s @ powers[j].T for j in range(process.STEPS)]
        return values | rollouts(lags, spread, self.s, generator)


@dataclass(frozen=True)
class Law:
    """The joint law of a forecast and of the displacement: covariances [d d]; `scalar` if both are multiples of I."""

    forecast: Tensor
    delta: Tensor
    scalar: bool

    @classmethod
    def make(cls, gain: Tensor, s: Tensor, delta: Tensor) -> Law:
        """The forecast gain @ z, z ~ N(0, s), of a displacement with covariance `delta`."""
        forecast = gain @ s @ gain.T
        return cls(forecast, delta, is_scalar(forecast) and is_scalar(delta))

    @property
    def dim(self) -> int:
        return len(self.delta)

    @property
    def rest(self) -> Tensor:
        """Cov(Δ | past), [d d]."""
        return self.delta - self.forecast


def variance_ratios(prefix: str, law: Law) -> Truth:
    """1 − R² of the best predictor of Δ, which is linear, dimensions standardised; where it is 1, clusters have it too."""
    left = exact(float((law.rest.diagonal() / law.delta.diagonal()).mean()))
    values = {f"{prefix}.linear_variance_ratio": left}
    if not bool(law.forecast.any()):
        values |= {f"{prefix}.variance_ratio": left, f"{prefix}.mean_reversion": left}
    return values


def is_scalar(matrix: Tensor) -> bool:
    """Whether a matrix is a multiple of the identity, to rounding."""
    scale = matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)
    return bool((matrix - scale).abs().max() <= 1e-12 * (1 + scale.abs().max()))


def factor(matrix: Tensor) -> Tensor:
    """F [d d] with F Fᵀ = matrix, for a matrix that may be singular."""
    value, vector = torch.linalg.eigh((matrix + matrix.T) / 2)
    return torch.mul(vector, value.clamp(min=0).sqrt())


def logdet(matrix: Tensor) -> float:
    """log|matrix| of a positive definite matrix."""
    return 2 * float(torch.linalg.cholesky(matrix).diagonal().log().sum())


def stationary(a: Tensor, q: Tensor) -> Tensor:
    """S [d d] with S = a S aᵀ + q."""
    s = torch.from_numpy(linalg.solve_discrete_lyapunov(a.numpy(), q.numpy(), method="bilinear"))
    return (s + s.T) / 2


def mean_length(covariance: Tensor) -> float:
    """E‖x‖ for x ~ N(0, covariance): ∫ (1 − Π(1 + 2tλ_i)^{−1/2}) t^{−3/2} dt / (2√π), by the trapezoid rule in log t."""
    value = torch.linalg.eigvalsh((covariance + covariance.T) / 2).clamp(min=0).numpy()
    if value.sum() <= 0:
        return 0.0
    y = np.arange(-70.0, 70.0, 0.05) - math.log(value.sum())
    exponent = np.array([-0.5 * np.log1p(2 * np.exp(at) * value).sum() for at in y])
    return float(np.sum(-np.expm1(exponent) * np.exp(-y / 2)) * 0.05 / (2 * math.sqrt(math.pi)))


def chi_mean(dim: int) -> float:
    """E‖x‖ for x ~ N(0, I)."""
    return math.sqrt(2) * math.exp(special.gammaln((dim + 1) / 2) - special.gammaln(dim / 2))


def length(covariance: Tensor) -> Entry:
    """E‖x‖ for x ~ N(0, covariance)."""
    if is_scalar(covariance):
        return exact(math.sqrt(max(float(covariance[0, 0]), 0.0)) * chi_mean(len(covariance)))
    return quadrature(mean_length(covariance))


def expected_cosine(r: float, dim: int) -> float:
    """E cos(x, y) where the `dim` pairs (x_i, y_i) are independent and Gaussian with correlation r.

    (2/D)(Γ((D+1)/2)/Γ(D/2))² r ₂F₁(½, ½; (D+2)/2; r²): the mean of the uncentred sample correlation.
    """
    ratio = math.exp(2 * (special.gammaln((dim + 1) / 2) - special.gammaln(dim / 2)))
    return 2 / dim * ratio * r * float(special.hyp2f1(0.5, 0.5, (dim + 2) / 2, min(r * r, 1.0)))


def cosine(first: Tensor, cross: Tensor, second: Tensor, generator: torch.Generator) -> Entry:
    """E cos(x, y) for jointly Gaussian x, y with Cov(x) = first, Cov(x, y) = cross, Cov(y) = second."""
    if all(is_scalar(matrix) for matrix in (first, cross, second)):
        scale = math.sqrt(float(first[0, 0] * second[0, 0]))
        return exact(expected_cosine(float(cross[0, 0]) / scale if scale > 0 else 0.0, len(first)))
    half = factor(second)
    gain = cross @ torch.linalg.pinv(second, hermitian=True)
    left = factor(first - gain @ cross.T)
    found = []
    for _ in range(blocks(len(first))):
        noise = torch.randn(2, 5000, len(first), generator=generator, dtype=torch.float64)
        y = noise[0] @ half.T
        found.append(torch.cosine_similarity(y @ gain.T + noise[1] @ left.T, y, dim=-1))
    return average(torch.cat(found))


def blocks(dim: int) -> int:
    """How many blocks of 5000 draws a Monte Carlo answer takes in `dim` dimensions."""
    return max(1, min(DRAWS // 5000, 320 // dim))


def log_length(covariance: Tensor, generator: torch.Generator) -> tuple[float, float, float, int]:
    """E log‖x‖, Var log‖x‖, the standard error of both (0 if exact) and the draws, for x ~ N(0, covariance)."""
    dim = len(covariance)
    if is_scalar(covariance):
        mean = (math.log(float(covariance[0, 0])) + float(special.digamma(dim / 2)) + math.log(2)) / 2
        return mean, float(special.polygamma(1, dim / 2)) / 4, 0.0, 0
    value = torch.linalg.eigvalsh(covariance).clamp(min=0)
    parts = [
        (torch.randn(5000, dim, generator=generator, dtype=torch.float64) ** 2 @ value).log() / 2
        for _ in range(blocks(dim))
    ]
    draws = torch.cat(parts)
    return float(draws.mean()), float(draws.var()), float(draws.std()) / math.sqrt(len(draws)), len(draws)


def against_lognormal(law: Law, generator: torch.Generator) -> Entry:
    """ΔNLL_B0f: against uniform direction × LogNormal length, both at their best."""
    dim = law.dim
    mean, variance, error, draws = log_length(law.delta, generator)
    area = math.log(2) + dim / 2 * math.log(math.pi) - float(special.gammaln(dim / 2))
    baseline = area + dim * mean + 0.5 * math.log(2 * math.pi * math.e * variance)
    value = nll(law) - baseline
    return exact(value) if draws == 0 else monte_carlo(value, dim * error, draws)


def nll(law: Law) -> float:
    """E NLL of the perfect model: the entropy of N(·, C − G)."""
    return 0.5 * (law.dim * math.log(2 * math.pi * math.e) + logdet(law.rest))


def log_magnitude_r2(law: Law, generator: torch.Generator) -> Entry:
    """R² of log‖Δ‖ with the predictive median.

    By total variance it is [Var E(log m | past) − E(E(log m | past) − log median)²] / Var log m. For multiples of the
    identity, m² | past is a scaled non-central χ², and the outer average is over ‖z‖² ~ χ²: one quadrature.
    """
    return scalar_r2(law) if law.scalar else nested_r2(law, generator)


def scalar_r2(law: Law) -> Entry:
    """`log_magnitude_r2` where both covariances are multiples of I."""
    dim, snr = law.dim, float(law.forecast[0, 0] / law.rest[0, 0])
    at = np.linspace(float(stats.chi2.ppf(1e-12, dim)), float(stats.chi2.isf(1e-12, dim)), 401)
    weight = stats.chi2.pdf(at, dim)
    weight = weight / weight.sum()
    half = snr * at / 2
    count = np.arange(int(half.max() + 12 * math.sqrt(half.max()) + 40))
    mean = stats.poisson.pmf(count, half[:, None]) @ special.digamma(dim / 2 + count) / 2 + math.log(2) / 2
    median = np.log(stats.ncx2.ppf(0.5, dim, 2 * half) if snr > 0 else stats.chi2.ppf(0.5, dim) + 0 * half) / 2
    between = weight @ mean**2 - (weight @ mean) ** 2
    return quadrature(float((between - weight @ (mean - median) ** 2) / (special.polygamma(1, dim / 2) / 4)))


def nested_r2(law: Law, generator: torch.Generator) -> Entry:
    """`log_magnitude_r2` by analysis of variance over drawn pasts and displacements."""
    pasts, draws = NESTED
    outer, inner = factor(law.forecast), factor(law.rest)
    centre = torch.randn(pasts, law.dim, generator=generator, dtype=torch.float64) @ outer.T
    log_m = torch.stack(
        [
            (row + torch.randn(draws, law.dim, generator=generator, dtype=torch.float64) @ inner.T).norm(dim=-1).log()
            for row in centre
        ]
    )  # [pasts, draws]
    found = []
    for part in log_m.chunk(8):
        within = part.var(1).mean()
        between = part.mean(1).var() - within / draws
        skew = (part.mean(1) - part.quantile(0.5, dim=1)).mean() ** 2  # nearly the same for every past
        found.append((between - skew) / (between + within))
    parts = torch.stack(found)
    return monte_carlo(float(parts.mean()), float(parts.std()) / math.sqrt(len(parts)), pasts * draws)


def displacement(prefix: str, law: Law, generator: torch.Generator) -> Truth:
    """The answers that both the horizon and the lag form have."""
    entropy, rest = nll(law), logdet(law.rest)
    diagonal = exact(0.5 * (rest - float(law.delta.diagonal().log().sum())))
    towards = cosine(law.forecast, law.forecast, law.delta, generator)
    ratio = shifted_ratio(law.forecast, law.delta)
    values = {
        "nll": exact(entropy),
        "dnll_b0": diagonal,
        "dnll_b0f": against_lognormal(law, generator),
        "dnll_b1": exact(0.5 * (rest - logdet(law.delta))),
        "cosine": towards,
        "magnitude_ratio": ratio,
        "logmag_r2": log_magnitude_r2(law, generator),
        "var_dnll_b0": diagonal,
        "var_cosine": towards,
        "var_magnitude_ratio": ratio,
    }
    if law.scalar:
        values["dnll_b2"] = diagonal  # the displacements are one isotropic Gaussian
    return {f"{prefix}.{key}": value for key, value in values.items()}


def horizon(prefix: str, law: Law, s: Tensor, frame_rate: float, generator: torch.Generator) -> Truth:
    """The answers of the horizon form: those of both forms, and those against the marginal of z."""
    values = displacement(prefix, law, generator)
    marginal = exact(0.5 * (logdet(law.rest) - logdet(s)))
    for key in ("dnll_b5", "dnll_b5_gaussian", "var_dnll_b5"):
        values[f"{prefix}.{key}"] = marginal
    values[f"{prefix}.information_rate"] = process.bits_per_second(marginal, frame_rate)
    values[f"{prefix}.cosine_floor"] = values[f"{prefix}.cosine"]  # mean reversion is all there is
    return values


def shifted_ratio(first: Tensor, second: Tensor) -> Entry:
    """E‖x‖ / E‖y‖ of two Gaussians."""
    above, below = length(first), length(second)
    return {"value": above["value"] / below["value"], "method": above["method"]}


def rollouts(lags: list[Law], spread: list[Tensor], s: Tensor, generator: torch.Generator) -> Truth:
    """R1 under the perfect model: lags[j] is the law j steps after the last truth, spread[j] the state error's covariance.

    NLL is that of the true step under the model at its own state; B5 is the marginal of z at the true next frame.
    Mode S draws its steps from the model, so that truth and rollout are two independent paths from one start.
    """
    dim, one = len(s), lags[0]
    inverse = torch.linalg.inv(one.rest)
    base = 0.5 * logdet(one.rest)
    b0 = 0.5 * (float(one.delta.diagonal().log().sum()) + dim)
    b5 = 0.5 * (logdet(s) + dim)
    mean_curve, sample_curve = [], []
    for law, covariance in zip(lags, spread, strict=True):
        miss = 0.5 * float((inverse * law.rest).sum())
        mean_curve.append(
            {
                "cosine": cosine(law.forecast, law.forecast, law.delta, generator),
                "magnitude_ratio": shifted_ratio(law.forecast, law.delta),
                "state_error": length(covariance),
                "nll": exact(base + miss + dim / 2 * math.log(2 * math.pi)),
                "dnll_b0": exact(base + miss - b0),
                "dnll_b5": exact(base + miss - b5),
            }
        )
        apart = one.delta + one.forecast - 2 * law.forecast
        miss = 0.5 * float((inverse * apart).sum())
        sample_curve.append(
            {
                "cosine": cosine(law.delta, law.forecast, law.delta, generator),
                "magnitude_ratio": exact(1.0),
                "state_error": length(2 * covariance),
                "nll": exact(base + miss + dim / 2 * math.log(2 * math.pi)),
                "dnll_b0": exact(base + miss - b0),
                "dnll_b5": exact(base + miss - b5),
            }
        )
    curves = dict.fromkeys("ABCD", mean_curve) | {f"var.{mode}": mean_curve for mode in "ABCD"} | {"S": sample_curve}
    return {
        f"r1.{mode}.{name}[{step}]": entry
        for mode, curve in curves.items()
        for step in range(1, process.STEPS + 1)
        for name, entry in curve[process.since_truth(mode[-1], step)].items()
    }
