"""The Triton twin of `langevin`: one program takes a tile of rows through all steps.

Imported only where Triton is installed. A state goes to memory once a step and comes back from the cache, which leaves the
registers to the stream of the network; the noise of a step is drawn before that, where nothing else is held.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from arlat_kernels.build import Build
from arlat_kernels.langevin import NOISE, Langevin, ScoreWeights, check_shapes
from arlat_kernels.mixture_triton import on_device
from arlat_kernels.philox_triton import HALF_PI, normal_tile, random_words, terms
from arlat_kernels.residual_block import OPERANDS, WIDTHS, check_block_options, fits, narrowed
from arlat_kernels.residual_block_triton import add_block, inverse_root_mean_square, rounded
from arlat_kernels.residual_rollout_launch import constants, operand_dtype, tile
from arlat_kernels.vmf_nll import result_dtype


@triton.jit
def langevin_kernel(
    noise_ptr,  # [M J B D], stride of a model given; where SEEDED int64 [1]
    context_ptr,  # [M B S], strides of model and row given
    level_ptr,  # [M J S]
    moves_ptr,  # [M J 4]: entry, keep, gain, spread
    enter_ptr,  # [M D S] operands
    enter_bias_ptr,  # [M S]
    up_ptr,  # [M L H S] operands
    up_bias_ptr,  # [M L H]
    down_ptr,  # [M L H S] operands
    down_bias_ptr,  # [M L S]
    head_ptr,  # [M S D] operands
    head_bias_ptr,  # [M D]
    state_ptr,  # [M B D] in and out
    moved_ptr,  # [M B D] out: keep·z + spread·ε of the step at hand
    taken_ptr,  # [M B] out
    B,
    J,
    L,
    noise_model,
    context_model,
    context_row,
    D: tl.constexpr,
    S: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SEEDED: tl.constexpr,
    STREAM: tl.constexpr,
    HALF_PI: tl.constexpr,
    TERMS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    EMULATE: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    model = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * ROWS
    lane = tl.arange(0, ROWS)
    alive = first + lane < B
    inside = alive[:, None]
    wide, col = tl.arange(0, S), tl.arange(0, D)
    states = lane[:, None] * D + col[None, :]
    context_ptr += model * context_model + first * context_row
    level_ptr += model * J * S
    moves_ptr += model * J * 4
    enter_ptr += model * D * S
    up_ptr += model * L * H * S
    up_bias_ptr += model * L * H
    down_ptr += model * L * H * S
    down_bias_ptr += model * L * S
    head_ptr += model * S * D
    state_ptr += (model * B + first) * D
    moved_ptr += (model * B + first) * D
    if not SEEDED:
        noise_ptr += model * noise_model + first * D
    moving = alive.to(tl.int32)
    taken = tl.zeros([ROWS], tl.int32)
    for j in range(J):
        entry, keep = tl.load(moves_ptr + j * 4), tl.load(moves_ptr + j * 4 + 1)
        gain, spread = tl.load(moves_ptr + j * 4 + 2), tl.load(moves_ptr + j * 4 + 3)
        if SEEDED:
            quad = (j * (D // 4) + tl.arange(0, D // 4)).to(tl.uint32)
            row = model * B + first + lane
            w0, w1, w2, w3 = random_words(noise_ptr, row[:, None], quad[None, :], STREAM)
            drawn = normal_tile(w0, w1, w2, w3, ACC, HALF_PI, TERMS)
        else:
            drawn = tl.load(noise_ptr + states, inside, 0)
            noise_ptr += B * D
        tl.store(moved_ptr + states, keep * tl.load(state_ptr + states, inside, 0) + spread * drawn, inside)
        still = tl.load(enter_bias_ptr + model * S + wide) + tl.load(level_ptr + j * S + wide)
        x = tl.load(context_ptr + lane[:, None] * context_row + wide[None, :], inside, 0) + still[None, :]
        for c in tl.range(0, D, COLUMNS):
            part = c + tl.arange(0, COLUMNS)
            z = tl.load(state_ptr + lane[:, None] * D + part[None, :], inside, 0)
            enter = tl.load(enter_ptr + part[:, None] * S + wide[None, :])
            x = tl.dot(rounded(entry * z, OPERANDS, EMULATE), enter, x, input_precision=PRECISION, out_dtype=ACC)
        tl.debug_barrier()  # states are read; what moved them can be read by other threads of this block
        for layer in range(L):
            n = rounded(x * inverse_root_mean_square(x, S)[:, None], OPERANDS, EMULATE)
            x = add_block(
                x, n, up_ptr, up_bias_ptr, down_ptr, down_bias_ptr, layer, S, H, CHUNK, ACTIVATION, ACC, OPERANDS, EMULATE, FAST,
                PRECISION, STAGES,
            )  # fmt: skip
        n = rounded(x * inverse_root_mean_square(x, S)[:, None], OPERANDS, EMULATE)
        head = tl.load(head_ptr + wide[:, None] * D + col[None, :])
        out = tl.dot(n, head, input_precision=PRECISION, out_dtype=ACC)
        out += tl.load(head_bias_ptr + model * D + col)[None, :]
        after = tl.load(moved_ptr + states, inside, 0) + gain * out
        broken = tl.max(tl.where(tl.abs(after) < float("inf"), 0, 1), 1)
        moving = tl.where(broken > 0, 0, moving)
        taken += moving
        tl.store(state_ptr + states, after, (moving > 0)[:, None])
        tl.debug_barrier()  # the next step reads the state that other threads of this block wrote
    tl.store(taken_ptr + model * B + first + lane, taken.to(ACC), alive)


def settings(
    dim: int, stream: int, hidden: int, dtype: torch.dtype, activation: str, operands: str, seeded: bool
) -> dict[str, Any]:
    """What the kernel is compiled for, tile and warps among it."""
    return {
        **constants(dim, stream, hidden, dtype, activation, operands),
        **tile(dim, stream, operands),
        "SEEDED": seeded,
        "STREAM": NOISE,
        "HALF_PI": HALF_PI,
        "TERMS": terms(dtype == torch.float64),
    }


@torch.library.custom_op("arlat::langevin", mutates_args=())
def langevin_forward(
    z: Tensor, noise: Tensor, context: Tensor, level: Tensor, moves: Tensor, weights: list[Tensor], activation: str,
    operands: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """States [M B D] and steps taken [M B]; all of one float dtype but for a seed."""
    net, (m, b, dim) = ScoreWeights(*weights), z.shape
    state, taken = z.clone(memory_format=torch.contiguous_format), z.new_zeros(m, b)
    if state.numel() == 0 or level.shape[1] == 0:
        return state, taken
    hidden, stream, seeded = *net.up.shape[2:], not noise.is_floating_point()
    noise = noise if seeded or noise[0].is_contiguous() else noise.contiguous()
    context = context if context.stride(-1) == 1 else context.contiguous()
    dtype = operand_dtype(z.dtype, operands)
    each = (net.enter.mT, net.up, net.down.mT, net.head.mT)
    enter, up, down, head = (narrowed(tensor, operands).to(dtype).contiguous() for tensor in each)
    sizes = settings(dim, stream, hidden, z.dtype, activation, operands, seeded)
    with on_device(z):
        langevin_kernel[(triton.cdiv(b, sizes["ROWS"]), m)](
            noise, context, level.contiguous(), moves.contiguous(), enter, net.enter_bias.contiguous(), up,
            net.up_bias.contiguous(), down, net.down_bias.contiguous(), head, net.head_bias.contiguous(), state,
            torch.empty_like(state), taken, b, level.shape[1], net.up.shape[1], noise.stride(0), context.stride(0),
            context.stride(1), **sizes,
        )  # fmt: skip
    return state, taken


@langevin_forward.register_fake
def _(
    z: Tensor, noise: Tensor, context: Tensor, level: Tensor, moves: Tensor, weights: list[Tensor], activation: str,
    operands: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return z.new_empty(z.shape), z.new_empty(z.shape[:2])


def langevin_triton(*inputs: Tensor, activation: str = "silu", operands: str = "float32") -> tuple[Tensor, Tensor]:
    """What `langevin_reference` gives."""
    z, noise, context, level, moves, *weights = inputs
    check_shapes(z, noise, context, level, moves, ScoreWeights(*weights))
    check_block_options(activation, operands)
    dtype = result_dtype(z)
    drawn = noise.to(dtype) if noise.is_floating_point() else noise
    wide = [tensor.to(dtype) for tensor in weights]
    given = (z.to(dtype), drawn, context.to(dtype), level.to(dtype), moves.to(dtype))
    return Langevin(*langevin_forward(*given, wide, activation, operands))


STRIDES = frozenset({"noise_model", "context_model", "context_row"})
MULTIPLIED = frozenset({"enter_ptr", "up_ptr", "down_ptr", "head_ptr"})
# Bytes that a thread may spill where there are no products, by operands and the width of the stream.
STACK = {"bfloat16": {32: 16, 64: 64, 128: 320}, "float32": {32: 32, 64: 32, 128: 128}}


def builds() -> tuple[Build, ...]:
    """What is compiled ahead of time: all operands and sizes that fit with the noise given, where d is the stream's width also
    with noise made inside, which knows no stream."""
    return tuple(
        build_of(dim, stream, operands, seeded)
        for operands in OPERANDS
        for stream in WIDTHS
        for dim in WIDTHS
        for seeded in (False, True)
        if fits(dim, stream) and (dim == stream or not seeded)
    )


def build_of(dim: int, stream: int, operands: str, seeded: bool) -> Build:
    """The kernel at one size."""
    narrow = {"bfloat16": "*bf16", "float32": "*fp32"}[operands]
    sizes = settings(dim, stream, 256, torch.float32, "silu", operands, seeded)
    special = dict.fromkeys(STRIDES, "i32") | dict.fromkeys(MULTIPLIED, narrow)
    if seeded:
        special["noise_ptr"] = "*i64"
    names = [name for name in langevin_kernel.arg_names if name.endswith("_ptr") or name in STRIDES]
    return Build(
        name=f"langevin/{'seeded' if seeded else 'given'}/d{dim}_s{stream}_{narrow[1:]}",
        kernel=langevin_kernel,
        constants={key: value for key, value in sizes.items() if key != "num_warps"},
        types={name: special.get(name, "*fp32") for name in names},
        aligned=False,
        warps=sizes["num_warps"],
        stack=STACK[operands][stream],
    )
