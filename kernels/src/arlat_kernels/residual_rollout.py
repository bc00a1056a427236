"""K steps of a residual MLP that is fed its own output, with everything that losses and metrics of a step need.

The recurrence alone is here: normalisers, losses, masks, curricula and weights of steps are plain torch on the results
[m b k], and autograd feeds their gradients back. So the fast twin knows no Bessel function and no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin, triton_obstacle
from arlat_kernels.residual_block import (
    TRITON_DTYPES,
    check_block_options,
    narrowed,
    norm,
    size_obstacle,
    through_blocks,
)
from arlat_kernels.vmf_nll import gap, result_dtype, unit

BOUND = 6.0  # mu of a step stays below this
LONGEST = 2.0**20  # typical steps that a step has at most
SCALARS = 3  # rows of the head beside the direction's: κ, mu, log_sigma


class ResidualWeights(NamedTuple):
    """Weights of m residual MLPs on a window of w frames, each as `nn.Linear` has it, with a stream of s and h hidden units.

    Attributes:
        enter: [m w s d]: of the newest frame, then of the differences z_{t−j+1} − z_{t−j}, j = 1 … w−1, newest first.
        enter_bias: [m s].
        up: [m l h s].
        up_bias: [m l h].
        down: [m l s h].
        down_bias: [m l s].
        head: [m d+3 s]: rows of the direction, then of κ, mu and log_sigma.
        head_bias: [m d+3].
    """

    enter: Tensor
    enter_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    head: Tensor
    head_bias: Tensor


class ResidualRollout(NamedTuple):
    """What happened at each of k steps; κ, mu and log_sigma as the head gives them, before any bound.

    Attributes:
        predicted: State after the step, before an injection, [m b k d].
        kappa: [m b k].
        mu: [m b k].
        log_sigma: [m b k].
        gap: 1 − cosine of the step and the true step, [m b k].
        squared_error: ‖predicted − truth‖², [m b k].
    """

    predicted: Tensor
    kappa: Tensor
    mu: Tensor
    log_sigma: Tensor
    gap: Tensor
    squared_error: Tensor


class Law(NamedTuple):
    """The law of one step as the head gives it.

    Attributes:
        direction: Unit vectors [m b d], 0 where there is no direction.
        length: The direction's length before it was normalised, [m b].
        kappa: [m b].
        mu: [m b].
        log_sigma: [m b].
    """

    direction: Tensor
    length: Tensor
    kappa: Tensor
    mu: Tensor
    log_sigma: Tensor


Advance = Callable[[Law, int], Tensor]  # the displacement [m b d] by a law at step k


def alive_steps(frames: Tensor, steps: int) -> Tensor:
    """Whether step k of each row [... k] comes before the row's first frame [... w+k d] with a coordinate that is not finite."""
    return frames.isfinite().all(-1).cumprod(-1)[..., frames.shape[-2] - steps :].bool()


def residual_rollout(
    frames: Tensor,
    given: Tensor,
    weights: ResidualWeights,
    *,
    activation: str = "silu",
    bound: float = BOUND,
    longest: float = LONGEST,
    operands: str = "float32",
) -> tuple[ResidualRollout, Tensor]:
    """The rollout of m models from frames [m b w+k d], in units of the typical step, and which steps [m b k] are alive.

    The first w frames are the prefix, the others the truth. With features f_0 = z_t and f_j = z_{t−j+1} − z_{t−j},
    x = Σ_j enter_j·f_j + enter_bias, x ← x + down·act(up·norm(x)) for each block, n = norm(x), (v, κ, mu, log_sigma) =
    head·n, z_{t+1} = z_t + min(exp(bounded mu), longest)·v/‖v‖, where bounded mu = mu/(1 + abs(mu)/bound) and norm(x) =
    x/√(mean x² + 1e-6). Where given [m b k] is true, the frame that later steps see after step k is the truth.

    A row stops at its first frame that is not finite: from there on all its fields are 0, pass no gradient and are not
    alive. Nothing else makes a row infinite: norms and bounded steps keep finite rows finite. `operands` = "bfloat16" rounds
    what is multiplied in matrix products (weights, normalised streams, hidden units; not states, scalars, sums).
    Differentiable in frames and weights, once with the Triton twin. Computed and returned in float32, or float64.

    Raises:
        ValueError: When shapes or options do not fit.
    """
    check_shapes(frames, given, weights)
    out = residual_rollout_op(
        cleaned(frames), given, *weights, activation=activation, bound=bound, longest=longest, operands=operands
    )
    return stopped(out, frames, given)


def cleaned(frames: Tensor) -> Tensor:
    """`frames`, those with a coordinate that is not finite replaced by 0."""
    return torch.where(frames.isfinite().all(-1, keepdim=True), frames, 0.0)


def stopped(out: tuple[Tensor, ...], frames: Tensor, given: Tensor) -> tuple[ResidualRollout, Tensor]:
    """The fields of a rollout with 0 where a row has ended, and where it has not."""
    alive = alive_steps(frames, given.shape[-1])
    fields = (torch.where(alive.reshape(*alive.shape, *[1] * (f.dim() - alive.dim())), f, 0.0) for f in out)
    return ResidualRollout(*fields), alive


def residual_rollout_reference(
    frames: Tensor,
    given: Tensor,
    *weights: Tensor,
    activation: str = "silu",
    bound: float = BOUND,
    longest: float = LONGEST,
    operands: str = "float32",
) -> tuple[Tensor, ...]:
    """The fields of `ResidualRollout` for finite frames [m b w+k d], given [m b k] and the tensors of `ResidualWeights`."""
    net = check_shapes(frames, given, ResidualWeights(*weights))
    check_options(activation, bound, longest, operands)

    def advance(law: Law, _: int) -> Tensor:
        return softly_bound(law.mu, bound).exp().clamp_max(longest)[..., None] * law.direction

    return rolled(frames, given, net, advance, activation, operands)


def softly_bound(raw: Tensor, bound: float) -> Tensor:
    """raw/(1 + abs(raw)/bound)."""
    return raw / (1 + raw.abs() / bound)


def rolled(
    frames: Tensor, given: Tensor, named: ResidualWeights, advance: Advance, activation: str, operands: str
) -> ResidualRollout:
    """The rollout whose steps `advance` takes."""
    dtype = result_dtype(frames)
    frames = frames.to(dtype)
    net = ResidualWeights(*(tensor.to(dtype) for tensor in named))
    w, d = net.enter.shape[1], frames.shape[-1]
    enter = narrowed(net.enter, operands).mT.flatten(1, 2)  # [m, w*d, s]
    up, down = narrowed(net.up, operands).mT, narrowed(net.down, operands).mT
    direction, scalar_rows = narrowed(net.head[:, :d], operands).mT, net.head[:, d:].mT
    window = list(frames[:, :, :w].unbind(2))  # oldest first
    steps: list[tuple[Tensor, ...]] = []
    for k in range(given.shape[-1]):
        features = [window[-1], *(window[-j] - window[-j - 1] for j in range(1, w))]
        x = narrowed(torch.cat(features, -1), operands) @ enter + net.enter_bias[:, None]
        x = through_blocks(x, up, net.up_bias, down, net.down_bias, activation, operands)
        n = narrowed(norm(x), operands)
        v, v_length = unit(n @ direction + net.head_bias[:, None, :d])
        kappa, mu, log_sigma = (n @ scalar_rows + net.head_bias[:, None, d:]).unbind(-1)
        after = window[-1] + advance(Law(v, v_length, kappa, mu, log_sigma), k)
        truth = frames[:, :, w + k]
        away = gap(v, v_length, *unit(truth - frames[:, :, w + k - 1]))
        steps.append((after, kappa, mu, log_sigma, away, (after - truth).square().sum(-1)))
        window = [*window[1:], torch.where(given[:, :, k, None], truth, after)]
    if not steps:
        lead = frames.shape[:2]
        return ResidualRollout(frames[:, :, w:], *(frames.new_empty(*lead, 0) for _ in range(SCALARS + 2)))
    return ResidualRollout(*(torch.stack(parts, 2) for parts in zip(*steps, strict=True)))


def check_shapes(frames: Tensor, given: Tensor, weights: ResidualWeights) -> ResidualWeights:
    """`weights`; ValueError unless all shapes fit and `given` is boolean."""
    if frames.dim() == 4 and given.dim() == 3 and weights.enter.dim() == 4 and weights.up.dim() == 4:
        m, w, s, d = weights.enter.shape
        _, layers, hidden, _ = weights.up.shape
        b, k = given.shape[1:]
        expected = {
            "frames": (m, b, w + k, d),
            "given": (m, b, k),
            "enter_bias": (m, s),
            "up": (m, layers, hidden, s),
            "up_bias": (m, layers, hidden),
            "down": (m, layers, s, hidden),
            "down_bias": (m, layers, s),
            "head": (m, d + SCALARS, s),
            "head_bias": (m, d + SCALARS),
        }
        came = {"frames": frames, "given": given, **weights._asdict()}
        if w > 0 and given.dtype == torch.bool and all(came[name].shape == shape for name, shape in expected.items()):
            return weights
    shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(INPUTS, (frames, given, *weights), strict=True))
    raise ValueError(
        f"{shapes} (given is {given.dtype}) must be frames [m b w+k d], given [m b k] bool, enter [m w s d] with w ≥ 1, "
        "enter_bias [m s], up [m l h s], up_bias [m l h], down [m l s h], down_bias [m l s], head [m d+3 s] and "
        "head_bias [m d+3]."
    )


def check_options(activation: str, bound: float, longest: float, operands: str) -> None:
    """Raises ValueError for an option that does not exist or cannot be."""
    check_block_options(activation, operands)
    if not (0 < bound < float("inf") and 0 < longest < float("inf")):
        raise ValueError(f"bound {bound} and longest {longest} must be positive and finite.")


INPUTS = ("frames", "given", *ResidualWeights._fields)


def make_inputs(
    m: int, b: int, k: int, w: int, d: int, s: int, h: int, layers: int, *, generator: torch.Generator, **_: object
) -> Inputs:
    """A drifting walk of unit steps, one frame in four given, weights at which every part of the net matters."""

    def draw(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    frames = (draw(m, b, w + k, d, scale=d**-0.5) + draw(m, b, 1, d, scale=0.5 * d**-0.5)).cumsum(2)
    given = torch.rand(m, b, k, generator=generator) < 0.25
    weights = ResidualWeights(
        enter=draw(m, w, s, d, scale=(w * d) ** -0.5 * 3),
        enter_bias=draw(m, s, scale=0.3),
        up=draw(m, layers, h, s, scale=s**-0.5),
        up_bias=draw(m, layers, h, scale=0.3),
        down=draw(m, layers, s, h, scale=h**-0.5),
        down_bias=draw(m, layers, s, scale=0.1),
        head=draw(m, d + SCALARS, s, scale=s**-0.5),
        head_bias=draw(m, d + SCALARS, scale=0.3),
    )
    return {"frames": frames, "given": given, **weights._asdict()}


CASES: tuple[Case, ...] = (
    {"m": 1, "b": 65, "k": 1, "w": 1, "d": 32, "s": 32, "h": 64, "layers": 1},
    {"m": 1, "b": 11, "k": 3, "w": 2, "d": 32, "s": 32, "h": 64, "layers": 1},
    {"m": 2, "b": 7, "k": 4, "w": 3, "d": 32, "s": 64, "h": 64, "layers": 2, "activation": "relu2"},
    {"m": 1, "b": 71, "k": 3, "w": 4, "d": 64, "s": 64, "h": 128, "layers": 2, "longest": 1.0},
    {"m": 1, "b": 19, "k": 2, "w": 8, "d": 32, "s": 64, "h": 64, "layers": 1},
    {"m": 1, "b": 17, "k": 3, "w": 2, "d": 128, "s": 128, "h": 64, "layers": 2},
    {"m": 1, "b": 0, "k": 2, "w": 2, "d": 32, "s": 32, "h": 64, "layers": 1},
)


def _triton(*inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
    from arlat_kernels.residual_rollout_triton import residual_rollout_triton  # imports Triton, which need not be there

    return residual_rollout_triton(*inputs, **options)


def _triton_builds() -> tuple[Build, ...]:
    from arlat_kernels.residual_rollout_launch import builds

    return builds()


def _triton_obstacle(frames: Tensor, given: Tensor, *weights: Tensor, **_: Any) -> str | None:
    net = ResidualWeights(*weights)
    if why := size_obstacle(frames.shape[-1], net.enter.shape[-2], net.up.shape[-2]):
        return why
    if given.device != frames.device:
        return f"frames are on {frames.device} and given is on {given.device}."
    return triton_obstacle((frames, *weights), TRITON_DTYPES)


residual_rollout_op: Op[tuple[Tensor, ...]] = Op(
    name="residual_rollout",
    reference=residual_rollout_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={"triton": Twin(run=_triton, obstacle=_triton_obstacle, builds=_triton_builds)},
    options=("activation", "bound", "longest", "operands"),
)
