"""Exact draws from the von Mises–Fisher law, with gradients for direction and concentration.

Wood's rejection in Möbius form for the cosine, a uniform tangent direction without a reflector. Random numbers are
counter-based: what row r draws depends on the seed, r and its own law alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arlat_kernels import cuda_library
from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin, triton_obstacle
from arlat_kernels.philox import cos_sin, minus_log, normals, random_words
from arlat_kernels.vmf import check
from arlat_kernels.vmf_sample_gradient import gradients

ROUNDS = 64  # acceptance is at least 0.6577 for every (d, κ): more rounds happen with probability below 1e-29 a row
COSINE, TANGENT = 0, 1  # streams of random numbers
CHUNK = 131072  # normals made at a time on the CPU: few enough for the cache


def vmf_sample(mu: Tensor, kappa: Tensor, *, generator: torch.Generator) -> Tensor:
    """Unit vectors x [... d] ~ vMF(μ, κ), differentiable; μ [... d] of any length (normalised here), κ [...] ≥ 0.

    κ and the batch axes of μ broadcast. A zero μ stands for the first axis and gets no gradient. `generator` gives the
    seed, on its own device. The result has the wider dtype of the two, at least float32.
    """
    check(kappa, mu.shape[-1])
    dtype = torch.promote_types(mu.dtype, kappa.dtype)
    each: Tensor = torch.broadcast_tensors(kappa, mu[..., 0])[0]  # type: ignore[no-untyped-call]
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=generator.device)
    return vmf_draw(mu.to(dtype).expand(*each.shape, mu.shape[-1]), each.to(dtype), seed.to(mu.device))


def vmf_draw_reference(mu: Tensor, kappa: Tensor, seed: Tensor) -> Tensor:
    """Unit vectors x [... d] ~ vMF(μ/‖μ‖, κ) by random numbers of `seed` (int64 [1]); μ [... d], κ [...] ≥ 0.

    The gradient of μ turns the draw with the law, that of κ keeps the cosine's quantile: E[∂f(x)/∂κ] = ∂E[f(x)]/∂κ,
    though neither is the derivative of this function at a fixed seed. bfloat16 and float16 are computed and returned
    in float32. On a CPU a κ that is negative is a ValueError, one that is not finite a RuntimeError.
    """
    check_shapes(mu, kappa, seed)
    check(kappa, mu.shape[-1])
    dim = mu.shape[-1]
    x: Tensor = _Draw.apply(mu.reshape(-1, dim), kappa.reshape(-1), seed)  # type: ignore[no-untyped-call]
    return x.reshape(mu.shape)


def check_shapes(mu: Tensor, kappa: Tensor, seed: Tensor) -> None:
    """Raises ValueError unless μ is [... d] with d ≥ 2, κ [...] and the seed int64 [1]; reads no value."""
    if seed.dtype != torch.int64 or seed.shape != (1,):
        raise ValueError(f"seed is {seed.dtype} {tuple(seed.shape)}; give an int64 tensor of shape (1,).")
    if mu.dim() == 0 or kappa.shape != mu.shape[:-1] or mu.shape[-1] < 2:
        raise ValueError(f"mu {tuple(mu.shape)} and kappa {tuple(kappa.shape)} must be [... d] and [...] with d ≥ 2.")


class _Draw(torch.autograd.Function):
    """(μ [n d], κ [n], seed) → x [n d]."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, kappa: Tensor, seed: Tensor) -> Tensor:
        x, gap = turned(normalised(mu)[0], kappa.double(), seed, torch.arange(len(mu), device=mu.device))
        ctx.save_for_backward(mu, kappa, x, gap)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        mu, kappa, x, gap = ctx.saved_tensors
        return *gradients(grad, mu, kappa, x, gap, *normalised(mu)), None


def turned(pole: Tensor, kappa: Tensor, seed: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Draws [n d] around unit vectors `pole` [n d] with float64 κ [n] by the counters of `row` [n], and their 1 − cosines [n]."""
    gap, sine = cosine_gap(kappa, pole.shape[-1], seed, row)
    tangent = tangent_direction(pole, seed, row)
    return (1 - gap).to(pole).unsqueeze(-1) * pole + tangent.mul_(sine.to(pole).unsqueeze(-1)), gap


def cosine_gap(kappa: Tensor, dim: int, seed: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """t = 1 − μᵀx and √(1 − (1−t)²) for float64 κ [n], both [n]; t keeps its digits where μᵀx rounds to 1."""
    return (shrinking_rounds if kappa.device.type == "cpu" else masked_rounds)(kappa, dim, seed, row)


def shrinking_rounds(kappa: Tensor, dim: int, seed: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Rejection in which only the rows not yet accepted go on; RuntimeError if κ is not finite."""
    gap, sine = torch.empty_like(kappa), torch.empty_like(kappa)
    pending = torch.arange(len(kappa), device=kappa.device)
    for step in range(ROUNDS):
        if len(pending) == 0:
            return gap, sine
        taken, found, found_sine = propose(kappa[pending], row[pending], step, dim, seed)
        done = pending[taken]
        gap[done], sine[done] = found[taken], found_sine[taken]
        pending = pending[~taken]
    raise RuntimeError(
        f"{len(pending)} of {len(kappa)} rows were not accepted in {ROUNDS} rounds; kappa there begins with "
        f"{kappa[pending[:3]].tolist()}; it must be finite."
    )


def masked_rounds(kappa: Tensor, dim: int, seed: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Rejection in which every round takes all rows, so that no value is read on the host; NaN if κ is not finite."""
    gap, sine = torch.full_like(kappa, torch.nan), torch.full_like(kappa, torch.nan)
    for step in range(ROUNDS):
        taken, found, found_sine = propose(kappa, row, step, dim, seed)
        taken = taken & torch.isnan(gap)
        gap, sine = torch.where(taken, found, gap), torch.where(taken, found_sine, sine)
    return gap, sine


def propose(kappa: Tensor, row: Tensor, step: int, dim: int, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Proposal `step` of the given rows [m]: whether it is accepted, t and the sine.

    A symmetric-Beta variate y (first coordinate of a uniform direction) is mapped by w = (x0+y)/(1+x0·y); κ has dropped
    out of the acceptance test, so nothing cancels.
    """
    first, angle, accept, _ = random_words(seed, row, torch.full_like(row, step), COSINE)
    b = (dim - 1) / (2 * kappa + torch.sqrt(4 * kappa * kappa + (dim - 1) ** 2))
    om, x0 = 2 * b / (1 + b), (1 - b) / (1 + b)  # om = 1 − x0
    y, s2, omy, opy = symmetric_beta(first, angle, dim)
    q = om + x0 * opy  # 1 + x0·y
    r = x0 * y
    log_q = torch.where(y.abs() < 0.5, torch.log1p(r), torch.log(q))
    taken = (dim - 1) * (r / q - log_q) >= -minus_log(accept, torch.float64)
    return taken, om * omy / q, torch.sqrt(om * (1 + x0) * s2) / q


def symmetric_beta(first: Tensor, angle: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y with density ∝ (1−y²)^{(d−3)/2}, and 1 − y², 1 − y, 1 + y, each without cancellation, from random words."""
    if dim > 2:
        z = 2 * minus_log(first, torch.float64) / (dim - 2)
    else:
        z = torch.full(first.shape, torch.inf, dtype=torch.float64, device=first.device)
    rest, radius2 = torch.exp(-z), -torch.expm1(-z)
    cos, sin = cos_sin(angle, torch.float64)
    y = torch.sqrt(radius2) * cos
    s2 = rest + radius2 * sin.square()
    omy = torch.where(y > 0, s2 / (1 + y.clamp_min(0)), 1 - y)
    opy = torch.where(y < 0, s2 / (1 - y.clamp_max(0)), 1 + y)
    return y, s2, omy, opy


def normalised(mu: Tensor) -> tuple[Tensor, Tensor]:
    """μ/‖μ‖ (the first axis where μ is zero) and ‖μ‖ [... 1], in float32 or float64."""
    mu = mu if mu.dtype == torch.float64 else mu.float()
    length = torch.linalg.vector_norm(mu, dim=-1, keepdim=True)
    axis = torch.zeros_like(mu)
    axis[..., 0] = 1
    return torch.where(length == 0, axis, mu / torch.where(length == 0, 1, length)), length


def tangent_direction(pole: Tensor, seed: Tensor, row: Tensor) -> Tensor:
    """Unit vectors [n d] uniform in the tangent space of the unit vectors `pole` [n d]."""
    n, dim = pole.shape
    size = max(1, CHUNK // dim) if pole.device.type == "cpu" else max(1, n)
    parts = zip(torch.split(pole, size), torch.split(row, size), strict=True)
    return torch.cat([tangents(part, rows, seed) for part, rows in parts])


def tangents(pole: Tensor, row: Tensor, seed: Tensor) -> Tensor:
    """The tangent directions of some rows."""
    if pole.shape[-1] == 2:  # the tangent sphere is two points
        zero = torch.zeros_like(row)
        sign = torch.where(random_words(seed, row, zero, TANGENT)[0] < 2**31, 1, -1).to(pole)
        return sign.unsqueeze(-1) * torch.stack([-pole[..., 1], pole[..., 0]], -1)
    g = normals(seed, row, pole.shape[-1], TANGENT, pole.dtype)
    for _ in range(2):  # once leaves a rounding error along the pole that few dimensions would feel
        g = g - torch.linalg.vecdot(g, pole).unsqueeze(-1) * pole
    length: Tensor = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    return g / length


def make_inputs(n: int, d: int, kappa: float, *, generator: torch.Generator) -> Inputs:
    """Inputs of one case: directions of any length (the first is e1, the second −e1), concentrations near `kappa`."""
    mu = torch.randn(n, d, generator=generator) * 2
    axis = torch.eye(d)[0]
    mu[:1], mu[1:2] = axis, -axis
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)
    return {"mu": mu, "kappa": kappa * (0.5 + torch.rand(n, generator=generator)), "seed": seed}


CASES: tuple[Case, ...] = (
    {"n": 1, "d": 2, "kappa": 3.0},
    {"n": 5, "d": 7, "kappa": 6.0},
    {"n": 37, "d": 3, "kappa": 1.5},
    {"n": 9, "d": 2, "kappa": 0.0},
    {"n": 11, "d": 8, "kappa": 0.0},
    {"n": 7, "d": 67, "kappa": 60.0},
    {"n": 5, "d": 512, "kappa": 3000.0},
    {"n": 0, "d": 16, "kappa": 1.0},
)

TRITON_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
TRITON_DIM_MAX = 8192  # a row is held at once by one program, which would spill beyond


def _triton(mu: Tensor, kappa: Tensor, seed: Tensor) -> Tensor:
    from arlat_kernels.vmf_sample_triton import vmf_draw_triton  # imports Triton, which need not be there

    return vmf_draw_triton(mu, kappa, seed)


def _triton_builds() -> tuple[Build, ...]:
    from arlat_kernels.vmf_sample_triton import builds

    return builds()


def _triton_obstacle(mu: Tensor, kappa: Tensor, seed: Tensor) -> str | None:
    if mu.shape[-1] > TRITON_DIM_MAX:
        return f"mu has {mu.shape[-1]} dimensions; it takes up to {TRITON_DIM_MAX}."
    if seed.device != mu.device:
        return f"mu is on {mu.device} and seed on {seed.device}."
    return triton_obstacle((mu, kappa), TRITON_DTYPES)


def _cuda(mu: Tensor, kappa: Tensor, seed: Tensor) -> Tensor:
    from arlat_kernels.vmf_sample_cuda import vmf_draw_cuda  # registers ops that need the library when they run

    return vmf_draw_cuda(mu, kappa, seed)


vmf_draw = Op(
    name="vmf_draw",
    reference=vmf_draw_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={
        "triton": Twin(run=_triton, obstacle=_triton_obstacle, builds=_triton_builds),
        "cuda": Twin(run=_cuda, obstacle=lambda *inputs: cuda_library.obstacle(inputs)),
    },
    pathwise=False,
)
