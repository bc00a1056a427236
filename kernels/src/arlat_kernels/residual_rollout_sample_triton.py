"""The Triton twin of `residual_rollout_sample`: the forward kernel of `residual_rollout` with its draws switched on.

Imported only where Triton is installed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arlat_kernels.residual_rollout import BOUND, LONGEST, ResidualRollout, ResidualWeights, check_options, check_shapes
from arlat_kernels.residual_rollout_sample import check_draws
from arlat_kernels.residual_rollout_triton import empty_results, launch_forward
from arlat_kernels.vmf_nll import result_dtype


@torch.library.custom_op("arlat::residual_rollout_sample", mutates_args=())
def sample_forward(
    frames: Tensor, given: Tensor, noise: Tensor, seed: Tensor, spread: Tensor, weights: list[Tensor], activation: str,
    bound: float, longest: float, operands: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Predicted [M B K D] and fields [5 M K B]; all of one float dtype but for mask and seed."""
    draws = (noise.mT.contiguous(), seed, spread.contiguous())
    net = ResidualWeights(*weights)
    return launch_forward(frames, given, net, activation, bound, longest, operands, False, draws)[:2]


@sample_forward.register_fake
def _(
    frames: Tensor, given: Tensor, noise: Tensor, seed: Tensor, spread: Tensor, weights: list[Tensor], activation: str,
    bound: float, longest: float, operands: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_results(frames, given, ResidualWeights(*weights), operands, False)[:2]


def residual_rollout_sample_triton(
    *inputs: Tensor,
    activation: str = "silu",
    bound: float = BOUND,
    longest: float = LONGEST,
    operands: str = "float32",
) -> tuple[Tensor, ...]:
    """What `residual_rollout_sample_reference` gives."""
    frames, given, noise, seed, spread, *weights = inputs
    check_draws(given, noise, seed, spread)
    check_shapes(frames, given, ResidualWeights(*weights))
    check_options(activation, bound, longest, operands)
    dtype = result_dtype(frames)
    noise, spread, *wide = (tensor.to(dtype) for tensor in (noise, spread, *weights))
    predicted, fields = sample_forward(
        frames.to(dtype), given, noise, seed, spread, wide, activation, bound, longest, operands
    )
    return ResidualRollout(predicted, *fields.mT.unbind(0))
