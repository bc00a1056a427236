"""Langevin steps of a score network of residual blocks: the corrector's inner loop with its states on chip.

The network is that of `residual_rollout`, with a row for the noise level and one for the context added where the stream
begins. What differs between correctors is four numbers a step, which the caller gives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.op import Case, Inputs, Op, Twin, triton_obstacle
from arlat_kernels.philox import normals
from arlat_kernels.residual_block import (
    TRITON_DTYPES,
    check_block_options,
    narrowed,
    norm,
    size_obstacle,
    through_blocks,
)
from arlat_kernels.vmf_nll import result_dtype

NOISE = 2  # stream of random numbers, beside those of `vmf_sample`
MOVES = 4  # numbers of a step: entry, keep, gain and spread


class ScoreWeights(NamedTuple):
    """Weights of m score networks, each as `nn.Linear` has it, with a stream of s and h hidden units.

    Attributes:
        enter: [m s d].
        enter_bias: [m s].
        up: [m l h s].
        up_bias: [m l h].
        down: [m l s h].
        down_bias: [m l s].
        head: [m d s].
        head_bias: [m d].
    """

    enter: Tensor
    enter_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    head: Tensor
    head_bias: Tensor


class Langevin(NamedTuple):
    """Where the rows ended.

    Attributes:
        z: The last finite state of each row, [m b d].
        taken: Steps that it took, [m b]; less than j where it froze.
    """

    z: Tensor
    taken: Tensor


def langevin(
    z: Tensor,
    noise: Tensor,
    level: Tensor,
    size: Tensor,
    weights: ScoreWeights,
    *,
    context: Tensor | None = None,
    spread: Tensor | None = None,
    entry: Tensor | None = None,
    skip: Tensor | None = None,
    gain: Tensor | None = None,
    activation: str = "silu",
    operands: str = "float32",
) -> Langevin:
    """States z [m b d] after j steps z ← z + size_j·s_j(z) + spread_j·ε_j of m score networks.

    With x = enter·(entry_j·z) + enter_bias + level_j + context, x ← x + down·act(up·norm(x) + up_bias) + down_bias for each
    block, the score is s_j(z) = skip_j·z + gain_j·(head·norm(x) + head_bias). `level` [m j s] and `context` [m b s] (nothing
    where None) are rows that the caller's embeddings make. size, spread, entry, skip and gain are [j] or [m j]; entry and
    gain are 1, skip is 0 where None. A denoiser c_skip·z + c_out·F(c_in·z) at noise σ has entry = c_in,
    skip = (c_skip − 1)/σ², gain = c_out/σ². A noise level of several inner steps stands in as many entries.

    A Langevin step of h has size h and spread √(2h), which is what None stands for. Tweedie's denoising at σ, the usual last
    step, has size σ² and spread 0. A predictor from σ down to σ′ has size σ² − σ′² and spread √(σ² − σ′²) (Song et al., 2021,
    variance-exploding). Predictor–corrector alternates them.

    `noise` is ε, standard normals [m j b d], or a seed, int64 [1], by which they are made from Philox counters:
    `langevin_noise` gives the same. A row freezes before the first step that would leave it not finite and tells so in
    `taken`; no other row feels it. Score networks are trained by denoising score matching, so there is no gradient.
    `operands` as in `residual_rollout`. Computed and returned in float32, or float64.

    Raises:
        ValueError: When shapes or options do not fit, or an input requires a gradient.
    """
    if z.dim() != 3 or level.dim() != 3:
        raise ValueError(f"z {tuple(z.shape)} and level {tuple(level.shape)} must be [m b d] and [m j s].")
    one = torch.ones_like(size)
    given = {"size": size, "spread": spread, "entry": entry, "skip": skip, "gain": gain}
    default = {"size": size, "spread": (2 * size).sqrt(), "entry": one, "skip": 0 * one, "gain": one}
    each = {name: default[name] if came is None else came for name, came in given.items()}
    m, j = level.shape[:2]
    for name, values in each.items():
        if values.shape not in {(j,), (m, j)}:
            raise ValueError(f"{name} is {tuple(values.shape)} for {j} steps of {m} models; give ({j},) or ({m}, {j}).")
    moves = (each["entry"], 1 + size * each["skip"], size * each["gain"], each["spread"])
    table = torch.stack([values.expand(m, j) for values in moves], -1)  # [m j 4]
    rows = z.new_zeros(1, 1, 1).expand(*z.shape[:2], level.shape[-1]) if context is None else context
    dtype, named = result_dtype(z), {"activation": activation, "operands": operands}
    state, taken = langevin_op(
        *(t.to(dtype) if t.is_floating_point() else t for t in (z, noise, rows, level, table, *weights)), **named
    )
    return Langevin(state, taken.long())


def langevin_noise(seed: Tensor, shape: tuple[int, ...], step: int, dtype: torch.dtype) -> Tensor:
    """The normals of `shape` [m b d] of one step (0-based) by seed (int64 [1]): a row's depend on seed, row and step alone."""
    m, b, d = shape
    quads = (d + 3) // 4
    row = torch.arange(m * b, device=seed.device)
    return normals(seed, row, d, NOISE, dtype, first=step * quads).reshape(m, b, d)


def langevin_reference(
    z: Tensor,
    noise: Tensor,
    context: Tensor,
    level: Tensor,
    moves: Tensor,
    *weights: Tensor,
    activation: str = "silu",
    operands: str = "float32",
) -> tuple[Tensor, Tensor]:
    """States [m b d] and steps taken [m b] after j steps z ← keep·z + gain·F(entry·z) + spread·ε; moves [m j 4] has the four."""
    named = check_shapes(z, noise, context, level, moves, ScoreWeights(*weights))
    check_block_options(activation, operands)
    dtype = result_dtype(z)
    net = ScoreWeights(*(tensor.to(dtype) for tensor in named))
    enter, up, down, head = (narrowed(tensor, operands).mT for tensor in (net.enter, net.up, net.down, net.head))
    state, still = z.to(dtype), context.to(dtype) + net.enter_bias[:, None]
    moving = torch.ones(state.shape[:2], dtype=torch.bool, device=z.device)
    taken = state.new_zeros(state.shape[:2])
    for j in range(level.shape[1]):
        entry, keep, gain, spread = moves[:, j, :, None, None].to(dtype).unbind(1)  # each [m 1 1]
        x = narrowed(entry * state, operands) @ enter + (still + level[:, j, None])
        x = through_blocks(x, up, net.up_bias, down, net.down_bias, activation, operands)
        out = narrowed(norm(x), operands) @ head + net.head_bias[:, None]
        drawn = noise[:, j].to(dtype) if noise.is_floating_point() else langevin_noise(noise, z.shape, j, dtype)
        after = keep * state + gain * out + spread * drawn
        moving = moving & after.isfinite().all(-1)
        state = torch.where(moving[..., None], after, state)
        taken = taken + moving
    return Langevin(state, taken)


def check_shapes(
    z: Tensor, noise: Tensor, context: Tensor, level: Tensor, moves: Tensor, weights: ScoreWeights
) -> ScoreWeights:
    """`weights`; ValueError unless all shapes fit and the noise is normals or a seed."""
    came = {"z": z, "noise": noise, "context": context, "level": level, "moves": moves, **weights._asdict()}
    if z.dim() == 3 and level.dim() == 3 and weights.up.dim() == 4:
        m, b, d = z.shape
        _, j, s = level.shape
        _, layers, hidden, _ = weights.up.shape
        expected = {
            "noise": (m, j, b, d) if noise.is_floating_point() else (1,),
            "context": (m, b, s),
            "level": (m, j, s),
            "moves": (m, j, MOVES),
            "enter": (m, s, d),
            "enter_bias": (m, s),
            "up": (m, layers, hidden, s),
            "up_bias": (m, layers, hidden),
            "down": (m, layers, s, hidden),
            "down_bias": (m, layers, s),
            "head": (m, d, s),
            "head_bias": (m, d),
        }
        drawn = noise.is_floating_point() or noise.dtype == torch.int64
        if drawn and all(came[name].shape == shape for name, shape in expected.items()):
            return weights
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in came.items())
    raise ValueError(
        f"{shapes} (noise is {noise.dtype}) must be z [m b d], noise [m j b d] or a seed int64 [1], context [m b s], level "
        "[m j s], moves [m j 4], enter [m s d], enter_bias [m s], up [m l h s], up_bias [m l h], down [m l s h], "
        "down_bias [m l s], head [m d s] and head_bias [m d]."
    )


def make_inputs(
    m: int, b: int, j: int, d: int, s: int, h: int, layers: int, *, seeded: bool = False, generator: torch.Generator,
    **_: object,
) -> Inputs:  # fmt: skip
    """States of size 1, steps that shrink from level to level, weights at which every part of the net matters."""

    def draw(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)
    size = 0.3 * 0.8 ** torch.arange(j).expand(m, j)
    entry = 0.5 + torch.rand(m, j, generator=generator)
    weights = ScoreWeights(
        enter=draw(m, s, d, scale=d**-0.5 * 3),
        enter_bias=draw(m, s, scale=0.3),
        up=draw(m, layers, h, s, scale=s**-0.5),
        up_bias=draw(m, layers, h, scale=0.3),
        down=draw(m, layers, s, h, scale=h**-0.5),
        down_bias=draw(m, layers, s, scale=0.1),
        head=draw(m, d, s, scale=s**-0.5),
        head_bias=draw(m, d, scale=0.3),
    )
    return {
        "z": draw(m, b, d, scale=1.0),
        "noise": seed if seeded else draw(m, j, b, d, scale=1.0),
        "context": draw(m, b, s, scale=0.5),
        "level": draw(m, j, s, scale=0.5),
        "moves": torch.stack([entry, 1 - size, size, (2 * size).sqrt()], -1),
        **weights._asdict(),
    }


CASES: tuple[Case, ...] = (
    {"m": 1, "b": 33, "j": 1, "d": 32, "s": 32, "h": 64, "layers": 1},
    {"m": 1, "b": 5, "j": 2, "d": 32, "s": 32, "h": 64, "layers": 1, "seeded": True},
    {"m": 2, "b": 19, "j": 4, "d": 32, "s": 64, "h": 64, "layers": 2, "seeded": True, "activation": "relu2"},
    {"m": 2, "b": 7, "j": 5, "d": 64, "s": 64, "h": 128, "layers": 1},
    {"m": 1, "b": 17, "j": 2, "d": 128, "s": 128, "h": 64, "layers": 1},
    {"m": 1, "b": 0, "j": 2, "d": 32, "s": 32, "h": 64, "layers": 1},
)


def _triton(*inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    from arlat_kernels.langevin_triton import langevin_triton  # imports Triton, which need not be there

    return langevin_triton(*inputs, **options)


def _triton_builds() -> tuple[Build, ...]:
    from arlat_kernels.langevin_triton import builds

    return builds()


def _triton_obstacle(
    z: Tensor, noise: Tensor, context: Tensor, level: Tensor, moves: Tensor, *weights: Tensor, **_: Any
) -> str | None:
    net = ScoreWeights(*weights)
    if why := size_obstacle(z.shape[-1], net.enter.shape[-2], net.up.shape[-2]):
        return why
    if noise.device != z.device:
        return f"z is on {z.device} and noise is on {noise.device}."
    drawn = (noise,) if noise.is_floating_point() else ()
    return triton_obstacle((z, *drawn, context, level, moves, *weights), TRITON_DTYPES)


langevin_op: Op[tuple[Tensor, ...]] = Op(
    name="langevin",
    reference=langevin_reference,
    make_inputs=make_inputs,
    cases=CASES,
    twins={"triton": Twin(run=_triton, obstacle=_triton_obstacle, builds=_triton_builds)},
    options=("activation", "operands"),
    differentiable=False,
)
