"""Negative log-density of the von Mises–Fisher law on the unit sphere of R^d, in nats.

With g = ½‖x − μ‖² = 1 − μᵀx the loss is κ·g − (log C_d(κ) + κ). The textbook form −log C − κ·μᵀx subtracts two numbers
of the size of κ, which costs all digits at large κ. Everything is computed in float64: rounding a coordinate of x or μ to
float32 alone moves κ·g by κ·√(2g)·1e-8, more than the loss may be wrong at κ = 1e6.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin, triton_obstacle
from arlat_kernels.vmf import vmf_log_norm, vmf_mean_resultant

SHORTEST = 1e-15  # a vector shorter than this has no direction


@overload
def vmf_nll(mean: Tensor, x: Tensor, /) -> Tensor: ...
@overload
def vmf_nll(mu: Tensor, kappa: Tensor, x: Tensor, /) -> Tensor: ...
def vmf_nll(*args: Tensor) -> Tensor:
    """−log C_d(κ) − κ μᵀx in nats against the surface measure of the unit sphere S^{d−1}, [...].

    `vmf_nll(mean, x)` takes the natural parameter mean = κμ [... d]; `vmf_nll(mu, kappa, x)` takes mu [... d] of any
    length and κ ≥ 0 [...]. x [... d] of any length; mu and x are normalised here. Leading axes broadcast, d ≥ 2.
    Computed in float64, returned in float32, or in float64 where an input is.

    Every gradient is finite: at mean = 0 it is the right limit −x, and where x or mu is shorter than 1e-15 the cosine
    μᵀx is 0 and that vector gets no gradient. The gradient of x includes its normalisation, so it is tangential.
    TypeError for another number of arguments, ValueError for shapes that do not broadcast or, on a CPU, κ < 0.
    """
    if len(args) not in (2, 3):
        raise TypeError(f"vmf_nll got {len(args)} tensors; give (mean, x) or (mu, kappa, x).")
    check_shapes(*args, broadcast=True)
    first, *middle, x = args
    lead = common_shape(first.shape[:-1], *(tensor.shape for tensor in middle), x.shape[:-1])
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in args) else torch.float32
    if len({tensor.dtype for tensor in args}) > 1:
        first, x, *middle = (tensor.to(dtype) for tensor in (first, x, *middle))
    first, x = first.expand(*lead, first.shape[-1]), x.expand(*lead, x.shape[-1])
    return vmf_nll_polar(first, middle[0].expand(lead), x) if middle else vmf_nll_natural(first, x)


def natural_reference(mean: Tensor, x: Tensor) -> Tensor:
    """−log density at x/‖x‖ [... d] of the von Mises–Fisher law with natural parameter mean = κμ [... d], [...] nats."""
    check_shapes(mean, x)
    value: Tensor = _Natural.apply(mean.double(), x.double())  # type: ignore[no-untyped-call]
    return value.to(result_dtype(mean))


def polar_reference(mu: Tensor, kappa: Tensor, x: Tensor) -> Tensor:
    """−log density at x/‖x‖ [... d] of the von Mises–Fisher law around mu/‖mu‖ [... d] with κ ≥ 0 [...], [...] nats."""
    check_shapes(mu, kappa, x)
    return polar_nll(mu.double(), kappa.double(), x.double()).to(result_dtype(mu))


def polar_nll(mu: Tensor, kappa: Tensor, x: Tensor) -> Tensor:
    """κ·g − (log C_d(κ) + κ) of float64 tensors, differentiable by torch."""
    (direction, mu_length), (target, x_length) = unit(mu), unit(x)
    return kappa * gap(direction, mu_length, target, x_length) - vmf_log_norm.reference(kappa, x.shape[-1])


def unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """vector/‖vector‖ [... d], or 0 where that is shorter than SHORTEST, and ‖vector‖ [...]."""
    length = torch.linalg.vector_norm(vector, dim=-1)
    return vector * inverse(length).unsqueeze(-1), length


def inverse(length: Tensor) -> Tensor:
    """1/length, or 0 (with gradient 0) below SHORTEST."""
    return torch.where(length > SHORTEST, 1 / length.clamp_min(SHORTEST), 0.0)


def gap(direction: Tensor, direction_length: Tensor, target: Tensor, target_length: Tensor) -> Tensor:
    """1 − cosine [...] of two vectors given as `unit` gives them, without cancellation; 1 where one has no direction."""
    both = (direction_length > SHORTEST) & (target_length > SHORTEST)
    return torch.where(both, 0.5 * (direction - target).square().sum(-1), 1.0)


class _Natural(torch.autograd.Function):
    """float64 (κμ, x) → κ·g − (log C + κ). By hand because autograd has no right limit at κμ = 0."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(mean, x)
        return polar_nll(mean, torch.linalg.vector_norm(mean, dim=-1), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        # Made of torch operations on the saved inputs, so it is differentiable in turn where κ > 0.
        (direction, kappa), (target, length) = unit(ctx.saved_tensors[0]), unit(ctx.saved_tensors[1])
        away = direction - target
        slope = vmf_mean_resultant.reference(kappa, away.shape[-1], complement=True)
        grad_mean = grad.unsqueeze(-1) * (away - slope.unsqueeze(-1) * direction)
        distance = gap(direction, kappa, target, length)
        pull = grad * kappa * inverse(length)
        return grad_mean, -pull.unsqueeze(-1) * (away + distance.unsqueeze(-1) * target)


def common_shape(*shapes: torch.Size) -> torch.Size:
    """The shape that all broadcast to; RuntimeError where there is none."""
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape


def result_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_shapes(first: Tensor, *rest: Tensor, broadcast: bool = False) -> None:
    """Raises ValueError unless (mean, x) or (mu, kappa, x) are [... d] (and [...]) with d ≥ 2.

    The leading axes must agree, or, with `broadcast`, broadcast.
    """
    *middle, x = rest
    leads = [first.shape[:-1], *(tensor.shape for tensor in middle), x.shape[:-1]]
    right = first.dim() > 0 and x.dim() > 0 and first.shape[-1] == x.shape[-1] >= 2
    if broadcast:
        try:
            common_shape(*leads)
        except RuntimeError:
            right = False
    elif any(lead != leads[0] for lead in leads):
        right = False
    if not right:
        names = ("mu", "kappa", "x") if middle else ("mean", "x")
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(names, (first, *rest), strict=True))
        shapes = "[... d], [...] and [... d]" if middle else "[... d] and [... d]"
        agree = "broadcast" if broadcast else "are the same"
        raise ValueError(f"{given} must be {shapes} with d ≥ 2 and leading axes that {agree}.")


def make_natural_inputs(n: int, d: int, kappa: float, *, generator: torch.Generator) -> Inputs:
    """n natural parameters of about the length kappa and targets about 1/√κ away from their directions."""
    made = make_polar_inputs(n, d, kappa, generator=generator)
    direction = torch.nn.functional.normalize(made["mu"], dim=-1)
    return {"mean": direction * made["kappa"].unsqueeze(-1), "x": made["x"]}


def make_polar_inputs(n: int, d: int, kappa: float, *, generator: torch.Generator) -> Inputs:
    """n directions of any length, concentrations from kappa/2 to 3·kappa/2, targets about 1/√κ away."""
    mu = torch.randn(n, d, generator=generator)
    noise = torch.randn(n, d, generator=generator)
    near = torch.nn.functional.normalize(mu, dim=-1) + noise / (kappa + 1.0) ** 0.5
    spread = torch.rand(n, generator=generator) + 0.5
    return {"mu": mu, "kappa": kappa * spread, "x": torch.nn.functional.normalize(near, dim=-1)}


CASES: tuple[Case, ...] = (
    {"n": 1, "d": 2, "kappa": 1.0},
    {"n": 3, "d": 5, "kappa": 4.0},
    {"n": 131, "d": 8, "kappa": 100.0},
    {"n": 17, "d": 67, "kappa": 50.0},
    {"n": 3, "d": 512, "kappa": 1e4},
    {"n": 2, "d": 64, "kappa": 0.0},
    {"n": 0, "d": 16, "kappa": 1.0},
)

TRITON_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def _natural_triton(mean: Tensor, x: Tensor) -> Tensor:
    from arlat_kernels.vmf_nll_triton import vmf_nll_triton  # imports Triton, which need not be there

    return vmf_nll_triton(mean, None, x)


def _polar_triton(mu: Tensor, kappa: Tensor, x: Tensor) -> Tensor:
    from arlat_kernels.vmf_nll_triton import vmf_nll_triton

    return vmf_nll_triton(mu, kappa, x)


def _natural_builds() -> tuple[Build, ...]:
    from arlat_kernels.vmf_nll_triton import builds

    return builds(polar=False)


def _polar_builds() -> tuple[Build, ...]:
    from arlat_kernels.vmf_nll_triton import builds

    return builds(polar=True)


def _triton_obstacle(*inputs: Tensor) -> str | None:
    return triton_obstacle(inputs, TRITON_DTYPES)


vmf_nll_natural = Op(
    name="vmf_nll_natural",
    reference=natural_reference,
    make_inputs=make_natural_inputs,
    cases=CASES,
    twins={"triton": Twin(run=_natural_triton, obstacle=_triton_obstacle, builds=_natural_builds)},
)
vmf_nll_polar = Op(
    name="vmf_nll_polar",
    reference=polar_reference,
    make_inputs=make_polar_inputs,
    cases=CASES,
    twins={"triton": Twin(run=_polar_triton, obstacle=_triton_obstacle, builds=_polar_builds)},
)
