"""Residual MLPs in one fused rollout: a model's own parameters as the ops take them, the ops' fields as `rollout` gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from arlat_core.distributions.base import normal
from arlat_core.heads import KAPPA_START, LOG_SCALE_RANGE, SCALAR_GAIN, VonMisesHead, soft_bound
from arlat_core.types import Corrector
from arlat_kernels import (
    ResidualWeights,
    residual_rollout,
    residual_rollout_op,
    residual_rollout_sample,
    vmf_log_norm,
)
from arlat_kernels.op import VARIABLE
from torch import Tensor
from torch.nn.functional import softplus

from arlat_dynamics.base import Dynamics, Window
from arlat_dynamics.models.mlp import ResidualMLP
from arlat_dynamics.rolled import Rollout

LONGEST = 2.0**20  # typical steps that a step has at most, unless something else is asked for
SMALLEST_SQUARE = 1e-30  # ‖Δ‖² below this is taken as this, as the laws do
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class StepDraws(NamedTuple):
    """What chance gives the steps of m sampled rollouts.

    Attributes:
        noise: Standard normals of the log-lengths, [m b k].
        seed: Of the directions' Philox counters, int64 [1].
    """

    noise: Tensor
    seed: Tensor


class FusedRollout(NamedTuple):
    """A mean or sampled rollout of m models beside the truth.

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


def obstacle(model: Dynamics, correct: Corrector | None = None) -> str | None:
    """Why `model` cannot be rolled out (with a corrector) by `fused_rollout`, in words, or None."""
    if type(model) is not ResidualMLP:  # a subclass may compute something else
        return (
            f"The fused rollout runs the residual MLP (mlp); this model is a {type(model).__name__} ({model.plugin})."
        )
    if type(model.head) is not VonMisesHead:
        return f"The fused rollout takes steps of a head vmf; the head of this model is {model.head.name}."
    if correct is not None:
        return "The fused rollout has no corrector; this rollout is corrected after every step."
    return None


def sample_obstacle(gradients: bool, placed: bool) -> str | None:
    """Why a rollout that needs gradients, or the draws of a larger batch, cannot be sampled by `fused_rollout`, or None."""
    if gradients:
        return (
            "Steps that the fused rollout draws have no gradient; this rollout is sampled where gradients are needed."
        )
    if placed:
        return "The fused rollout draws for its own rows; this rollout is sampled with the draws of a larger batch (places)."
    return None


def twin(model: ResidualMLP, operands: str = "float32") -> tuple[str, str]:
    """What runs the op for `model` where it is ("triton", "reference"), and why it is not Triton ("" where it is).

    That of sampled rollouts takes the same shapes.
    """
    net = weights_of([model])
    frames = model.center.new_empty(1, 0, model.context + 1, model.dim)
    inputs = (frames, torch.empty(1, 0, 1, dtype=torch.bool, device=frames.device), *net)
    name = residual_rollout_op.pick(*inputs, operands=operands)
    if name == "triton":
        return name, ""
    if frames.device.type == "cpu":
        return name, "the model is on a CPU."
    why = residual_rollout_op.twins["triton"].obstacle(*inputs, operands=operands)
    return name, why or f"{VARIABLE} asks for {name}."


def operands_here(device: torch.device) -> str:
    """What matrix products round their operands to: bfloat16 under autocast to it."""
    narrow = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    return "bfloat16" if narrow else "float32"


def one_rollout(
    model: ResidualMLP,
    prefix: Tensor,
    truth: Tensor,
    mask: Tensor,
    longest: float | None,
    scored: bool,
    generator: torch.Generator | None,
) -> Rollout:
    """`arlat_dynamics.rollout.rollout` of one model after all frames that it sees, with the mask [b k] and without a corrector.

    With a generator it is a sampled rollout.
    """
    bound = typical_bound(None if longest is None else longest / float(model.head.scale))
    draws = None if generator is None else step_draws((1, *mask.shape), model.center, generator)
    out = rollouts([model], prefix[None], truth[None], mask[None], bound, operands_here(truth.device), scored, draws)
    return Rollout(*(part[0] for part in out))


def seen(prefix: Tensor, state: Window | None) -> Tensor:
    """The frames that a model sees at the first step: the prefix [b w d], or its newest frame after those of the state."""
    if state is None:
        return prefix
    return prefix[:, -1:] if state.empty else torch.cat([state.frames, prefix[:, -1:]], 1)


def step_draws(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> StepDraws:
    """The draws of rollouts of `shape` [m b k], made on the generator's device and moved to that of `like`."""
    noise = normal(shape, like, generator)
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=generator.device)
    return StepDraws(noise, seed.to(like.device))


def typical_bound(longest: float | None) -> float:
    """The longest step in typical ones, where None is no bound but the op's own."""
    return LONGEST if longest is None else longest


def rollouts(
    models: Sequence[ResidualMLP],
    prefix: Tensor,
    truth: Tensor,
    mask: Tensor,
    longest: float,
    operands: str,
    scored: bool = True,
    draws: StepDraws | None = None,
) -> Rollout:
    """`fused_rollout` of prefix [m b w d], truth [m b k d] and mask [m b k], where a frame that no state is put to ends no row.

    What there is no number for is NaN, as in the loop.
    """
    finite = torch.cat([prefix[..., -1:, :], truth], -2).isfinite().all(-1)
    shown = torch.where((finite[..., 1:] | mask)[..., None], truth, 0.0)
    out = fused_rollout(models, prefix, shown, mask, longest=longest, operands=operands, scored=scored, draws=draws)
    log_prob = torch.where(out.alive & finite[..., 1:] & finite[..., :-1], out.rollout.log_prob, torch.nan)
    entering, step = (torch.where(out.alive[..., None], part, torch.nan) for part in out.rollout[:2])
    return Rollout(entering, step, log_prob, out.rollout.clipped)


def fused_rollout(
    models: Sequence[ResidualMLP],
    prefix: Tensor,
    truth: Tensor,
    inject: tuple[bool, ...] | Tensor,
    *,
    longest: float = LONGEST,
    operands: str = "float32",
    scored: bool = True,
    draws: StepDraws | None = None,
) -> FusedRollout:
    """The mean rollouts of models of one shape after prefix [b w d], beside truth [b k d], as `rollout` makes them.

    prefix and truth may have a leading axis [m]: each model then has sequences of its own. `inject` is a mask [k], [b k] or
    [m b k]; `longest` is in typical steps of each model. A row stops at its first frame that is not finite. With `draws` the
    rollouts are sampled, and have no gradients; those of mean rollouts flow to all parameters, prefix and truth. `operands` as in
    `arlat_kernels.residual_rollout`, whatever autocast says. Without `scored` every `log_prob` is NaN.

    Raises:
        ValueError: When a model cannot be rolled out so, shapes do not fit, or a sampled rollout would need a gradient.
    """
    if why := next((why for model in models if (why := obstacle(model))), None):
        raise ValueError(f"{why} Use arlat_dynamics.rollout.rollout.")
    with torch.autocast(truth.device.type, enabled=False):
        return together(models, prefix, truth, inject, longest, operands, scored, draws)


def together(
    models: Sequence[ResidualMLP],
    prefix: Tensor,
    truth: Tensor,
    inject: tuple[bool, ...] | Tensor,
    longest: float,
    operands: str,
    scored: bool,
    draws: StepDraws | None,
) -> FusedRollout:
    """`fused_rollout` of models that can take it."""
    (b, k, dim), context = truth.shape[-3:], models[0].context
    mask = torch.as_tensor(inject, dtype=torch.bool, device=truth.device).expand(len(models), b, k)
    center = torch.stack([model.center for model in models])[:, None, None]
    unit = torch.stack([model.head.scale for model in models])[:, None, None, None]
    spread = torch.stack([model.head.spread for model in models])[:, None, None]
    before = max(0, context - prefix.shape[-2])
    still = prefix[..., :1, :].expand(*prefix.shape[:-2], before, dim)  # a sequence begins with a still past
    frames = torch.cat([still, prefix[..., -context:, :], truth], -2)
    given, activation = (frames - center) / unit, models[0].config.activation
    op = residual_rollout
    if draws is not None:
        op = partial(residual_rollout_sample, **draws._asdict(), spread=spread.flatten())
    out, alive = op(
        given,
        mask,
        weights_of(models),
        activation=activation,
        bound=LOG_SCALE_RANGE,
        longest=longest,
        operands=operands,
    )
    newest = frames[..., context - 1 :, :].expand(len(models), b, k + 1, dim)
    predicted = out.predicted * unit + center
    later = torch.where(mask[..., None], newest[:, :, 1:], predicted)
    entering = torch.cat([newest[:, :, :1], later[:, :, :-1]], 2)
    mu, log_sigma = soft_bound(out.mu), spread.log() + soft_bound(out.log_sigma)
    if scored:
        shown = torch.where(alive[..., None], newest[:, :, 1:] - newest[:, :, :-1], 1.0)
        law = (dim * softplus(out.kappa), unit[..., 0].log() + mu, log_sigma)
        log_prob = stopped(alive, polar_log_prob(shown, out.gap, *law))
    else:
        log_prob = torch.full_like(out.gap, torch.nan)
    log_length = mu if draws is None else mu + log_sigma.exp() * draws.noise
    over = log_length > math.log(longest)
    rollout = Rollout(stopped(alive, entering), stopped(alive, predicted - entering), log_prob, over & alive)
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


def weights_of(models: Sequence[ResidualMLP]) -> ResidualWeights:
    """The parameters of models of one shape as the op takes them; gradients flow to them."""
    return ResidualWeights(*(torch.stack(parts) for parts in zip(*map(weights_of_one, models), strict=True)))


def weights_of_one(model: ResidualMLP) -> ResidualWeights:
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
    shift[dim : dim + 1].fill_(math.log(math.expm1(KAPPA_START)))  # an item that is set would wait for the device
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
