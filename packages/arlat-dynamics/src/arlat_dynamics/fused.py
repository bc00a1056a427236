"""Residual MLPs in one fused rollout: a model's own parameters as the op takes them, the op's fields as `rollout` gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from arlat_core.heads import KAPPA_START, LOG_SCALE_RANGE, SCALAR_GAIN, VonMisesHead, soft_bound
from arlat_kernels import ResidualWeights, residual_rollout, vmf_log_norm
from torch import Tensor
from torch.nn.functional import softplus

from arlat_dynamics.base import Dynamics
from arlat_dynamics.models.mlp import ResidualMLP
from arlat_dynamics.rollout import Rollout

LONGEST = 2.0**20  # typical steps that a step has at most, unless something else is asked for
SMALLEST_SQUARE = 1e-30  # ‖Δ‖² below this is taken as this, as the laws do
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class FusedRollout(NamedTuple):
    """A mean rollout of m models beside the truth.

    Attributes:
        rollout: What `arlat_dynamics.rollout.rollout` gives, with a leading axis [m]; 0 in steps that are not alive.
        gap: 1 − cosine of the model's direction and the true step, [m b k].
        squared_error: ‖state after the step, before an injection − truth‖², [m b k].
        alive: False from a row's first frame on that is not finite, [m b k].
    """

    rollout: Rollout
    gap: Tensor
    squared_error: Tensor
    alive: Tensor


def obstacle(model: Dynamics) -> str | None:
    """Why `model` cannot be rolled out by `fused_rollout`, in words, or None."""
    if not isinstance(model, ResidualMLP):
        return (
            f"The fused rollout runs the residual MLP (mlp); this model is a {type(model).__name__} ({model.plugin})."
        )
    if not isinstance(model.head, VonMisesHead):
        return f"The fused rollout takes steps of a head vmf; the head of this model is {model.head.name}."
    return None


def fused_rollout(
    models: Sequence[ResidualMLP],
    prefix: Tensor,
    truth: Tensor,
    inject: tuple[bool, ...] | Tensor,
    *,
    longest: float = LONGEST,
    operands: str = "float32",
) -> FusedRollout:
    """The mean rollouts of models of one shape after prefix [b w d], beside truth [b k d], as `rollout` makes them.

    `inject` is a mask [k] or [b k], as there; `longest` is in typical steps of each model. A row stops at its first frame that
    is not finite. Gradients flow to all parameters, prefix and truth. `operands` as in `arlat_kernels.residual_rollout`.

    Raises:
        ValueError: When a model cannot be rolled out so, or shapes do not fit.
    """
    if why := next((why for model in models if (why := obstacle(model))), None):
        raise ValueError(f"{why} Use arlat_dynamics.rollout.rollout.")
    (b, k, dim), context = truth.shape, models[0].context
    mask = torch.as_tensor(inject, dtype=torch.bool, device=truth.device).expand(len(models), b, k)
    center = torch.stack([model.center for model in models])[:, None, None]
    unit = torch.stack([model.head.scale for model in models])[:, None, None, None]
    spread = torch.stack([model.head.spread for model in models])[:, None, None]
    still = prefix[:, :1].expand(-1, max(0, context - prefix.shape[1]), -1)  # a sequence begins with a still past
    frames = torch.cat([still, prefix[:, -context:], truth], 1)
    net = ResidualWeights(*(torch.stack(parts) for parts in zip(*map(weights_of, models), strict=True)))
    given, activation = (frames - center) / unit, models[0].config.activation
    out, alive = residual_rollout(
        given, mask, net, activation=activation, bound=LOG_SCALE_RANGE, longest=longest, operands=operands
    )
    newest = frames[:, context - 1 :].expand(len(models), -1, -1, -1)
    shown = torch.where(alive[..., None], newest[:, :, 1:] - newest[:, :, :-1], 1.0)
    predicted = out.predicted * unit + center
    later = torch.where(mask[..., None], newest[:, :, 1:], predicted)
    entering = torch.cat([newest[:, :, :1], later[:, :, :-1]], 2)
    mu, log_sigma = unit[..., 0].log() + soft_bound(out.mu), spread.log() + soft_bound(out.log_sigma)
    log_prob = polar_log_prob(shown, out.gap, dim * softplus(out.kappa), mu, log_sigma)
    over = soft_bound(out.mu) > math.log(longest)
    step = predicted - entering
    entering, step, log_prob = (stopped(alive, part) for part in (entering, step, log_prob))
    rollout = Rollout(entering, step, log_prob, over & alive)
    return FusedRollout(rollout, out.gap, out.squared_error * unit[..., 0].square(), alive)


def stopped(alive: Tensor, value: Tensor) -> Tensor:
    """value [m b k ...], 0 where a step is not alive [m b k]."""
    return torch.where(alive.reshape(*alive.shape, *[1] * (value.dim() - alive.dim())), value, 0.0)


def polar_log_prob(dx: Tensor, gap: Tensor, kappa: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """log p(Δ) of vMF × LogNormal laws whose directions are known by their gap 1 − cosine to Δ = dx [... d] alone, [...]."""
    log_m = 0.5 * dx.square().sum(-1).clamp_min(SMALLEST_SQUARE).log()
    residual = (log_m - mu) * torch.exp(-log_sigma)
    length = -0.5 * residual.square() - log_sigma - HALF_LOG_2PI
    return length - dx.shape[-1] * log_m + vmf_log_norm(kappa, dx.shape[-1]) - kappa * gap


def weights_of(model: ResidualMLP) -> ResidualWeights:
    """The model's parameters for frames (z − center)/typical step; what is multiplied into them keeps their gradients."""
    dim, width, unit = model.dim, model.enter.out_features, model.head.scale
    newest, *steps = model.enter.weight.reshape(width, model.context, dim).unbind(1)  # steps are oldest first
    enter = [newest / model.scale, *(step / model.step_scale for step in reversed(steps))]
    names = ("up.weight", "up.bias", "down.weight", "down.bias")
    blocks = [[block.get_parameter(name) for name in names] for block in model.blocks]
    empty = [model.enter.weight.new_empty(0, *shape) for shape in block_shapes(width, model.config.hidden)]
    up, up_bias, down, down_bias = (torch.stack(part) for part in zip(*blocks, strict=True)) if blocks else empty
    linear = model.head.linear
    gain = torch.cat([linear.bias.new_ones(dim), linear.bias.new_full((3,), SCALAR_GAIN)])
    shift = torch.zeros_like(linear.bias)
    shift[dim] = math.log(math.expm1(KAPPA_START))
    return ResidualWeights(
        enter=torch.stack(enter) * unit,
        enter_bias=model.enter.bias,
        up=up,
        up_bias=up_bias,
        down=down,
        down_bias=down_bias,
        head=linear.weight * gain[:, None],
        head_bias=linear.bias * gain + shift,
    )


def block_shapes(width: int, hidden: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of one block's up, up_bias, down and down_bias."""
    return (hidden, width), (hidden,), (width, hidden), (width,)
