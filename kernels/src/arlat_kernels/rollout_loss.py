"""Losses and metrics per step of given predicted sequences, for models with a von Mises–Fisher × LogNormal step or none."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin, triton_obstacle
from arlat_kernels.vmf import vmf_log_norm
from arlat_kernels.vmf_nll import SHORTEST, TRITON_DTYPES, common_shape, gap, result_dtype, unit

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class RolloutLoss(NamedTuple):
    """What `rollout_loss` gives for each step, all [...]; the three last in nats."""

    cosine: Tensor
    length_pred: Tensor
    length_true: Tensor
    squared_error: Tensor
    direction_nll: Tensor
    length_nll: Tensor
    nll: Tensor


def rollout_loss(
    pred: Tensor, true: Tensor, direction: Tensor, kappa: Tensor, log_length: Tensor, log_sigma: Tensor
) -> RolloutLoss:
    """Direction, length and error of predicted displacements Δ̂ = pred [... d] against Δ = true [... d], per step [...].

    cosine = cos(Δ̂, Δ); length_pred = ‖Δ̂‖; length_true = ‖Δ‖; squared_error = ‖Δ̂ − Δ‖². With m = ‖Δ‖:
    direction_nll = −log vMF(Δ/m; direction/‖direction‖, κ) and length_nll = −log LogNormal(m; log_length, exp(log_sigma)),
    its log m included. nll = direction_nll + length_nll + (d−1)·log m, minus the log density of Δ in R^d. The magnitude
    ratio of a batch is length_pred.sum() / length_true.sum().

    direction [... d] has any length: a natural parameter κμ, or pred itself. κ ≥ 0 [...] is the concentration; κ = 0 is a
    uniform direction, for models that predict none. log_length and log_sigma [...] are of the median length and its
    spread. Everything broadcasts; d ≥ 2. Computed in float64, returned in float32, or in float64 where an input is.

    Differentiable in all six, once with the Triton twin. A vector shorter than 1e-15 counts as 0: its cosine is 0, its
    length passes no gradient, and log m is log 1e-15 there; every gradient stays finite as long as exp(−2·log_sigma)
    does. ValueError for shapes that do not broadcast or, on a CPU, κ < 0.
    """
    given = (pred, true, direction, kappa, log_length, log_sigma)
    lead = common_lead(given)
    if len({tensor.dtype for tensor in given}) > 1:
        wide = any(tensor.dtype == torch.float64 for tensor in given)
        given = tuple(tensor.to(torch.float64 if wide else torch.float32) for tensor in given)  # type: ignore[assignment]
    vectors = (tensor.expand(*lead, tensor.shape[-1]) for tensor in given[:3])
    scalars = (tensor.expand(lead) for tensor in given[3:])
    return RolloutLoss(*rollout_loss_op(*vectors, *scalars))


def rollout_loss_reference(
    pred: Tensor, true: Tensor, direction: Tensor, kappa: Tensor, log_length: Tensor, log_sigma: Tensor
) -> tuple[Tensor, ...]:
    """The seven fields of `RolloutLoss` for pred, true and direction [... d], kappa, log_length and log_sigma [...]."""
    given = (pred, true, direction, kappa, log_length, log_sigma)
    check_shapes(given)
    dtype = result_dtype(pred)
    pred, true, direction, kappa, log_length, log_sigma = (tensor.double() for tensor in given)
    (pred_unit, pred_length), (true_unit, true_length) = unit(pred), unit(true)
    distance = gap(*unit(direction), true_unit, true_length)
    direction_nll = kappa * distance - vmf_log_norm.reference(kappa, true.shape[-1])
    log_m = true_length.clamp_min(SHORTEST).log()
    residual = (log_m - log_length) * torch.exp(-log_sigma)
    length_nll = 0.5 * residual.square() + log_sigma + HALF_LOG_2PI + log_m
    fields = RolloutLoss(
        cosine=torch.linalg.vecdot(pred_unit, true_unit),
        length_pred=visible(pred_length),
        length_true=visible(true_length),
        squared_error=(pred - true).square().sum(-1),
        direction_nll=direction_nll,
        length_nll=length_nll,
        nll=direction_nll + length_nll + (true.shape[-1] - 1) * log_m,
    )
    return RolloutLoss(*(field.to(dtype) for field in fields))


def visible(length: Tensor) -> Tensor:
    """The length, or 0 without a gradient below SHORTEST."""
    return torch.where(length > SHORTEST, length, 0.0)


def common_lead(given: tuple[Tensor, ...]) -> torch.Size:
    """The leading axes that all six broadcast to; ValueError as in `rollout_loss`."""
    check_width(given)
    try:
        return common_shape(*(tensor.shape[:-1] for tensor in given[:3]), *(tensor.shape for tensor in given[3:]))
    except RuntimeError:
        raise ValueError(shapes_sentence(given)) from None


def check_width(given: tuple[Tensor, ...]) -> None:
    """Raises ValueError unless pred, true and direction are [... d] with the same d ≥ 2."""
    widths = {tensor.shape[-1] if tensor.dim() else 0 for tensor in given[:3]}
    if len(widths) > 1 or min(widths) < 2:
        raise ValueError(shapes_sentence(given))


def check_shapes(given: tuple[Tensor, ...]) -> None:
    """Raises ValueError unless the six shapes are [... d] three times and [...] three times, leading axes the same."""
    check_width(given)
    leads = [*(tensor.shape[:-1] for tensor in given[:3]), *(tensor.shape for tensor in given[3:])]
    if any(lead != leads[0] for lead in leads):
        raise ValueError(shapes_sentence(given))


def shapes_sentence(given: tuple[Tensor, ...]) -> str:
    """What came and what was expected."""
    names = ("pred", "true", "direction", "kappa", "log_length", "log_sigma")
    came = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(names, given, strict=True))
    return (
        f"{came} must be [... d] for the first three, with one d ≥ 2, and [...] for the others; leading axes must fit."
    )


def make_inputs(n: int, d: int, kappa: float, *, generator: torch.Generator) -> Inputs:
    """n true displacements of length about 3, predictions at about 45°, directions about 1/√κ away, concentrations."""
    true = torch.randn(n, d, generator=generator) * (3.0 / d**0.5)
    near = true + torch.randn(n, d, generator=generator) * (3.0 / (kappa + 1.0) ** 0.5)
    return {
        "pred": true + torch.randn(n, d, generator=generator) * (3.0 / d**0.5),
        "true": true,
        "direction": near * 0.5,
        "kappa": kappa * (torch.rand(n, generator=generator) + 0.5),
        "log_length": 1.0 + 0.3 * torch.randn(n, generator=generator),
        "log_sigma": -0.5 + 0.3 * torch.randn(n, generator=generator),
    }


CASES: tuple[Case, ...] = (
    {"n": 1, "d": 2, "kappa": 1.0},
    {"n": 3, "d": 5, "kappa": 4.0},
    {"n": 131, "d": 8, "kappa": 100.0},
    {"n": 17, "d": 67, "kappa": 50.0},
    {"n": 3, "d": 512, "kappa": 1e3},
    {"n": 2, "d": 64, "kappa": 0.0},
    {"n": 0, "d": 16, "kappa": 1.0},
)


def _triton(*given: Tensor) -> tuple[Tensor, ...]:
    from arlat_kernels.rollout_loss_triton import rollout_loss_triton  # imports Triton, which need not be there

    return rollout_loss_triton(*given)


def _triton_builds() -> tuple[Build, ...]:
    from arlat_kernels.rollout_loss_triton import builds

    return builds()


def _triton_obstacle(*inputs: Tensor) -> str | None:
    return triton_obstacle(inputs, TRITON_DTYPES)


rollout_loss_op: Op[tuple[Tensor, ...]] = Op(
    name="rollout_loss",
    reference=rollout_loss_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={"triton": Twin(run=_triton, obstacle=_triton_obstacle, builds=_triton_builds)},
)
