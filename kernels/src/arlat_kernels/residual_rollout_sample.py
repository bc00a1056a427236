"""Sampled rollouts of a residual MLP: every step drawn from the head's law, for evaluation.

There is no gradient through the draws: that of an exact draw's κ is a quadrature a row and step (`vmf_sample`). Training on samples
goes through the laws' own `sample`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin
from arlat_kernels.residual_rollout import (
    BOUND,
    LONGEST,
    Law,
    ResidualRollout,
    ResidualWeights,
    check_options,
    check_shapes,
    cleaned,
    residual_rollout_op,
    rolled,
    softly_bound,
    stopped,
)
from arlat_kernels.residual_rollout import make_inputs as make_mean_inputs
from arlat_kernels.vmf_nll import SHORTEST
from arlat_kernels.vmf_sample import turned


def residual_rollout_sample(
    frames: Tensor,
    given: Tensor,
    weights: ResidualWeights,
    *,
    noise: Tensor,
    seed: Tensor,
    spread: Tensor,
    activation: str = "silu",
    bound: float = BOUND,
    longest: float = LONGEST,
    operands: str = "float32",
) -> tuple[ResidualRollout, Tensor]:
    """`residual_rollout` with steps drawn from the head's law: a vMF direction around v with κ = d·softplus(kappa) and the
    length min(exp(bounded mu + spread·exp(bounded log_sigma)·noise), longest), noise [m b k] standard normal, spread [m].

    The direction of model i, row r and step k is the draw that `vmf_draw` makes with `seed` (int64 [1]) and the counter
    i·b + r + 2³²·k, so that a shorter rollout is the beginning of a longer one. `predicted` and `squared_error` are those of the
    sample; kappa, mu, log_sigma and gap are the law's at the sample's own window. Where v is 0, the first axis stands for it.
    Not differentiable.

    Raises:
        ValueError: When shapes or options do not fit, or an input requires a gradient.
    """
    check_draws(given, noise, seed, spread)
    check_shapes(frames, given, weights)
    settings = {"activation": activation, "bound": bound, "longest": longest, "operands": operands}
    noise, spread = noise.to(frames.dtype), spread.to(frames.dtype)
    out = residual_rollout_sample_op(cleaned(frames), given, noise, seed, spread, *weights, **settings)
    return stopped(out, frames, given)


def residual_rollout_sample_reference(
    frames: Tensor,
    given: Tensor,
    noise: Tensor,
    seed: Tensor,
    spread: Tensor,
    *weights: Tensor,
    activation: str = "silu",
    bound: float = BOUND,
    longest: float = LONGEST,
    operands: str = "float32",
) -> tuple[Tensor, ...]:
    """The fields of `ResidualRollout` for finite frames [m b w+k d] and steps drawn by noise [m b k] and seed [1]."""
    check_draws(given, noise, seed, spread)
    net = check_shapes(frames, given, ResidualWeights(*weights))
    check_options(activation, bound, longest, operands)

    def advance(law: Law, k: int) -> Tensor:
        sigma = spread[:, None].to(law.mu) * softly_bound(law.log_sigma, bound).exp()
        length = (softly_bound(law.mu, bound) + sigma * noise[:, :, k].to(law.mu)).exp().clamp_max(longest)
        return length[..., None] * drawn_direction(law, seed, k)

    return rolled(frames, given, net, advance, activation, operands)


def drawn_direction(law: Law, seed: Tensor, k: int) -> Tensor:
    """Unit vectors [m b d] of step k by the counters of its rows."""
    m, b, d = law.direction.shape
    axis = torch.zeros_like(law.direction)
    axis[..., 0] = 1
    pole = torch.where((law.length > SHORTEST)[..., None], law.direction, axis)
    counter = torch.arange(m * b, device=pole.device) + (k << 32)
    x, _ = turned(pole.reshape(-1, d), d * softplus(law.kappa.double()).flatten(), seed, counter)
    return x.reshape(m, b, d)


def check_draws(given: Tensor, noise: Tensor, seed: Tensor, spread: Tensor) -> None:
    """Raises ValueError unless the draws fit the rollout."""
    if (
        noise.shape == given.shape
        and spread.shape == given.shape[:1]
        and seed.shape == (1,)
        and seed.dtype == torch.int64
    ):
        return
    raise ValueError(
        f"noise {tuple(noise.shape)}, spread {tuple(spread.shape)} and seed {tuple(seed.shape)} ({seed.dtype}) must be, for given "
        f"{tuple(given.shape)}, noise [m b k], spread [m] and an int64 seed [1]."
    )


def make_inputs(*, generator: torch.Generator, **case: Any) -> Inputs:
    """Those of `residual_rollout`, with normals, a seed and spreads."""
    frames, given, *weights = (made := make_mean_inputs(**case, generator=generator)).values()
    draws = {
        "noise": torch.randn(given.shape, generator=generator),
        "seed": torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator),
        "spread": 0.2 + 0.3 * torch.rand(given.shape[:1], generator=generator),
    }
    names = list(made)
    return {"frames": frames, "given": given, **draws, **dict(zip(names[2:], weights, strict=True))}


CASES: tuple[Case, ...] = (
    {"m": 1, "b": 17, "k": 1, "w": 1, "d": 32, "s": 32, "h": 64, "layers": 1},
    {"m": 1, "b": 14, "k": 2, "w": 2, "d": 32, "s": 32, "h": 64, "layers": 1},
    {"m": 2, "b": 7, "k": 4, "w": 3, "d": 32, "s": 64, "h": 64, "layers": 2, "activation": "relu2", "longest": 1.0},
    {"m": 1, "b": 17, "k": 2, "w": 2, "d": 128, "s": 128, "h": 64, "layers": 1},
    {"m": 1, "b": 0, "k": 2, "w": 2, "d": 32, "s": 32, "h": 64, "layers": 1},
)


def _triton(*inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
    from arlat_kernels.residual_rollout_sample_triton import residual_rollout_sample_triton  # imports Triton

    return residual_rollout_sample_triton(*inputs, **options)


def _triton_builds() -> tuple[Build, ...]:
    from arlat_kernels.residual_rollout_launch import sampled_builds

    return sampled_builds()


def _triton_obstacle(
    frames: Tensor, given: Tensor, noise: Tensor, seed: Tensor, spread: Tensor, *weights: Tensor, **options: Any
) -> str | None:
    elsewhere = [tensor for tensor in (noise, seed, spread) if tensor.device != frames.device]
    if elsewhere:
        return f"frames are on {frames.device} and noise, seed or spread on {elsewhere[0].device}."
    return residual_rollout_op.twins["triton"].obstacle(frames, given, *weights, **options)


residual_rollout_sample_op: Op[tuple[Tensor, ...]] = Op(
    name="residual_rollout_sample",
    reference=residual_rollout_sample_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={"triton": Twin(run=_triton, obstacle=_triton_obstacle, builds=_triton_builds)},
    options=residual_rollout_op.options,
    differentiable=False,
)
