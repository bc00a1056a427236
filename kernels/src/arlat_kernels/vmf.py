"""The von Mises–Fisher law on the unit sphere of R^d: normaliser, mean resultant length, entropy, divergence.

Density C_d(κ)·exp(κ μᵀx) with respect to the sphere's surface measure. float32 and float64 are returned as they come,
narrower κ in float32. The derivatives are analytic; `vmf_series` has the numerics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin, triton_obstacle
from arlat_kernels.vmf_series import divergence, effort, excess, perron, resultant_slope, vmf_log_norm_uniform

__all__ = [
    "check",
    "vmf_entropy",
    "vmf_kl_uniform",
    "vmf_log_norm",
    "vmf_log_norm_uniform",
    "vmf_mean_resultant",
]

CHUNK_BYTES = 2**18  # of a temporary worked on at a time: small enough for the cache, long enough to hide a call's cost
# Quantity: (quantity that is its derivative, its sign, whether κ multiplies it).
DERIVATIVES: dict[str, tuple[str, float, bool]] = {
    "scaled_log_norm": ("complement", 1.0, False),
    "log_norm": ("resultant", -1.0, False),
    "entropy": ("slope", -1.0, True),
    "divergence": ("slope", 1.0, True),
    "resultant": ("slope", 1.0, False),
    "complement": ("slope", -1.0, False),
}
RATIOS = ("resultant", "complement")  # no float64 temporaries at float32 κ
Values = Callable[[Tensor, int, str], Tensor]


def log_norm_reference(kappa: Tensor, dim: int, scaled: bool = True) -> Tensor:
    """log C_d(κ) + κ, or log C_d(κ) if not `scaled`; κ ≥ 0 of any shape.

    The scaled form loses nothing at large κ, where log C_d(κ) ≈ −κ drowns the rest. Differentiable twice: 1 − A, or −A.
    """
    return checked(reference_value, kappa, dim, log_norm_quantity(scaled))


def mean_resultant_reference(kappa: Tensor, dim: int, complement: bool = False) -> Tensor:
    """A = I_{d/2}(κ)/I_{d/2−1}(κ), the length of E[x]; `complement` gives 1 − A without cancellation.

    Differentiable twice: A′ = 1 − A² − (d−1)A/κ, evaluated without that cancellation.
    """
    return checked(reference_value, kappa, dim, resultant_quantity(complement))


def entropy_reference(kappa: Tensor, dim: int) -> Tensor:
    """−log C_d(κ) − κA = κ(1 − A) − (log C_d(κ) + κ), nats against the surface measure.

    Differentiable twice: −κA′.
    """
    return checked(reference_value, kappa, dim, "entropy")


def kl_uniform_reference(kappa: Tensor, dim: int) -> Tensor:
    """KL(vMF(κ) ‖ uniform) = κA + log C_d(κ) − log C_d(0) ≥ 0, nats; keeps its digits down to κ²(d−1)/2d² at κ → 0.

    Differentiable twice: κA′.
    """
    return checked(reference_value, kappa, dim, "divergence")


def log_norm_quantity(scaled: bool = True) -> str:
    """The quantity behind `vmf_log_norm`."""
    return "scaled_log_norm" if scaled else "log_norm"


def resultant_quantity(complement: bool = False) -> str:
    """The quantity behind `vmf_mean_resultant`."""
    return "complement" if complement else "resultant"


def checked(values: Values, kappa: Tensor, dim: int, quantity: str) -> Tensor:
    """The quantity by `values`, after the check of κ and d; bfloat16 and float16 are taken to float32."""
    check(kappa, dim)
    return values(kappa.float() if kappa.dtype in (torch.bfloat16, torch.float16) else kappa, dim, quantity)


def check(kappa: Tensor, dim: int) -> None:
    """Raises ValueError or TypeError unless dim ≥ 2 and κ is a float tensor; a negative κ on the CPU is a ValueError.

    Entries are not looked at on a GPU (it would have to be waited for) nor while torch.compile traces.
    """
    if dim < 2:
        raise ValueError(f"dim is {dim}; the von Mises–Fisher law needs dim ≥ 2.")
    if not kappa.is_floating_point():
        raise TypeError(f"kappa has dtype {kappa.dtype}; give a floating-point tensor.")
    if torch.compiler.is_compiling() or kappa.device.type != "cpu" or kappa.numel() == 0:
        return
    lowest = float(kappa.detach().amin())  # many times faster than (kappa < 0).any(), which NaN makes necessary
    if not lowest >= 0 and bool((kappa < 0).any()):
        lowest = float(kappa[kappa < 0].min())
        raise ValueError(f"kappa has the negative entry {lowest:g}; the concentration must be ≥ 0.")


class Quantity(torch.autograd.Function):
    """κ → one of DERIVATIVES by the series, with the derivative named there."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int, quantity: str) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        ctx.quantity = quantity
        value = chunked(lambda part: series_value(part, dim, quantity), kappa, 4 if quantity in RATIOS else 8)
        # Under torch.compile a result that is an intermediate one too, as after an operation in place or a cast that does nothing,
        # gets no gradient at all (torch 2.11, github.com/pytorch/pytorch/issues/180642).
        return value.clone() if torch.compiler.is_compiling() else value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kappa,) = ctx.saved_tensors
        return grad * derivative(reference_value, kappa, ctx.dim, ctx.quantity), None, None


def reference_value(kappa: Tensor, dim: int, quantity: str) -> Tensor:
    """A quantity of DERIVATIVES, or "slope" (A′), in the dtype of κ (float32 or float64)."""
    if quantity == "slope":
        if torch.is_grad_enabled() and kappa.requires_grad:  # a second derivative goes through the loop
            return slope_value(kappa, dim)
        return chunked(lambda part: slope_value(part, dim), kappa, 4)
    value: Tensor = Quantity.apply(kappa, dim, quantity)  # type: ignore[no-untyped-call]
    return value


def slope_value(kappa: Tensor, dim: int) -> Tensor:
    """A′ at κ [...]; autograd goes through it."""
    how = effort(kappa)
    return resultant_slope(kappa.clamp_max(how.top), dim, how)


def derivative(values: Values, kappa: Tensor, dim: int, quantity: str) -> Tensor:
    """The derivative of a quantity with respect to κ, by `values`."""
    name, sign, weighted = DERIVATIVES[quantity]
    slope = values(kappa, dim, name)
    return sign * (kappa * slope) if weighted else sign * slope


def chunked(function: Callable[[Tensor], Tensor], kappa: Tensor, itemsize: int) -> Tensor:
    """`function` of κ [...], entry by entry; on the CPU in chunks, by the size of κ's entries and of temporaries'."""
    entries = CHUNK_BYTES // max(itemsize, kappa.element_size())
    if torch.compiler.is_compiling() or kappa.device.type != "cpu" or kappa.numel() <= entries:
        return function(kappa)
    return torch.cat([function(part) for part in torch.split(kappa.reshape(-1), entries)]).reshape(kappa.shape)


def series_value(kappa: Tensor, dim: int, quantity: str) -> Tensor:
    """A quantity of DERIVATIVES at κ [...], without autograd."""
    how = effort(kappa)
    if quantity == "divergence":
        return divergence(kappa, dim, how).to(kappa.dtype)
    if quantity in RATIOS:
        low = kappa.clamp_max(how.top)
        g = perron(low, dim, how)
        return (low if quantity == "resultant" else g) / (low + g)
    value = excess(kappa, dim, how).add_(vmf_log_norm_uniform(dim))  # float64
    if quantity == "log_norm":
        value.sub_(kappa)
    elif quantity == "entropy":
        g = perron(kappa.clamp_max(how.top), dim, how).double()
        value = kappa * g / (kappa + g) - value
    return value.to(kappa.dtype)


def make_inputs(
    n: int, dim: int, *, generator: torch.Generator, bottom: float = 1e-6, top: float = 6e4, **_: bool
) -> Inputs:
    """n concentrations, log-uniform from `bottom` to `top` (which float16 holds), every eighth exactly 0."""
    span = math.log(top / bottom)
    kappa = bottom * torch.exp(span * torch.rand(n, generator=generator, dtype=torch.float64))
    kappa[7::8] = 0
    return {"kappa": kappa.float()}


CASES: tuple[Case, ...] = (
    {"n": 1, "dim": 2},
    {"n": 5, "dim": 7, "bottom": 0.1, "top": 50.0},
    {"n": 200, "dim": 3},
    {"n": 131, "dim": 16},
    {"n": 64, "dim": 64},
    {"n": 100, "dim": 512},
    {"n": 17, "dim": 2048},
    {"n": 0, "dim": 16},
)
TRITON_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def triton_twin(name: str, quantity: Callable[..., str], shipped: tuple[str, ...]) -> Twin:
    """The twin of one function; `quantity(flag)` names what its kernel evaluates, `shipped` are compiled ahead of time."""

    def run(kappa: Tensor, dim: int, *flag: bool, **named: bool) -> Tensor:
        from arlat_kernels.vmf_triton import triton_value  # imports Triton, which need not be there

        return checked(triton_value, kappa, dim, quantity(*flag, **named))

    def obstacle(kappa: Tensor, *_: Any, **__: Any) -> str | None:
        return triton_obstacle((kappa,), TRITON_DTYPES)

    def builds() -> tuple[Build, ...]:
        from arlat_kernels.vmf_triton import builds

        return builds(name, shipped)

    return Twin(run=run, obstacle=obstacle, builds=builds)


def flagged(option: str) -> tuple[Case, ...]:
    """CASES, and some with the option off and on."""
    return (*CASES, *({**CASES[n], option: flag} for n in (2, 4) for flag in (False, True)))


vmf_log_norm = Op(
    name="vmf_log_norm",
    reference=log_norm_reference,
    make_inputs=make_inputs,
    cases=flagged("scaled"),
    twins={"triton": triton_twin("vmf_log_norm", log_norm_quantity, ("log_norm",))},
    options=("dim", "scaled"),
)
vmf_mean_resultant = Op(
    name="vmf_mean_resultant",
    reference=mean_resultant_reference,
    make_inputs=make_inputs,
    cases=flagged("complement"),
    twins={"triton": triton_twin("vmf_mean_resultant", resultant_quantity, ("resultant", "slope"))},
    options=("dim", "complement"),
)
vmf_entropy = Op(
    name="vmf_entropy",
    reference=entropy_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={"triton": triton_twin("vmf_entropy", lambda: "entropy", ("entropy",))},
    options=("dim",),
)
vmf_kl_uniform = Op(
    name="vmf_kl_uniform",
    reference=kl_uniform_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={"triton": triton_twin("vmf_kl_uniform", lambda: "divergence", ("divergence",))},
    options=("dim",),
)
