"""The forward kernel of `residual_rollout`, and what it shares with the gradient's: one program takes a tile of rows through all steps.

A state goes to memory once, as the result, and comes back from there (from the cache, mostly) for each window that holds it. The
backward pass needs the normalised input of every block beside it, and recomputes hidden units.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from arlat_kernels.philox_triton import normal_tile, random_words
from arlat_kernels.residual_block_triton import add_block, inverse_root_mean_square, rounded
from arlat_kernels.vmf_sample_triton import draw_cosine


@triton.jit
def load_frame(
    frames_ptr, predicted_ptr, given_ptr, lane, col, frames_row, predicted_row, alive, t, B, W, D: tl.constexpr
):
    """Columns `col` of frame t of a tile's rows: the truth where it is given (the first W frames are), else what step t − W
    predicted."""
    step = t - W
    given = tl.load(given_ptr + step * B + lane, alive & (step >= 0), 1) != 0
    row = tl.where(given, frames_ptr + t * D + lane * frames_row, predicted_ptr + step * D + lane * predicted_row)
    return tl.load(row[:, None] + col[None, :], alive[:, None], 0)


@triton.jit
def toward(v, SHORTEST: tl.constexpr):
    """v/‖v‖ and 1/‖v‖ of each row, 0 for a row that is shorter than SHORTEST."""
    length = tl.sqrt(tl.sum(v * v, 1))
    inverse = tl.where(length > SHORTEST, 1.0 / tl.maximum(length, SHORTEST), 0.0)
    return v * inverse[:, None], inverse


@triton.jit
def concentration(raw, D: tl.constexpr):
    """κ = D·softplus(raw) in float64."""
    wide = raw.to(tl.float64)
    return D * tl.where(wide > 20.0, wide, tl.log(1.0 + tl.exp(tl.minimum(wide, 20.0))))


@triton.jit
def turned(pole, g, gap, sine, ACC: tl.constexpr):
    """Unit vectors at 1 − cosine `gap` from unit vectors `pole`, towards normals g."""
    for _ in tl.static_range(2):  # as in `vmf_draw`
        g -= tl.sum(g * pole, 1)[:, None] * pole
    sine = sine.to(ACC) / tl.sqrt(tl.sum(g * g, 1))
    return (1.0 - gap).to(ACC)[:, None] * pole + sine[:, None] * g


@triton.jit
def forward_kernel(
    frames_ptr,  # [M B W+K D], strides of model and row given
    given_ptr,  # [M K B] int8
    enter_ptr,  # [M W D S] operands
    enter_bias_ptr,  # [M S]
    up_ptr,  # [M L H S] operands
    up_bias_ptr,  # [M L H]
    down_ptr,  # [M L H S] operands
    down_bias_ptr,  # [M L S]
    direction_ptr,  # [M S D] operands
    head_ptr,  # [M D+3 S]
    head_bias_ptr,  # [M D+3]
    predicted_ptr,  # [M B K D]
    fields_ptr,  # [5 M K B]: κ, mu, log_sigma, gap, squared error
    normed_ptr,  # [M L+1 K B S] operands: norm(x) before each block and the head
    scale_ptr,  # [M L+1 K B]: its 1/√(mean x² + 1e-6)
    noise_ptr,  # [M K B] where SAMPLED: of the log-length
    seed_ptr,  # [1] int64 where SAMPLED
    spread_ptr,  # [M] where SAMPLED: the typical sigma
    B,
    K,
    W,
    L,
    frames_model,
    frames_row,
    D: tl.constexpr,
    S: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BOUND: tl.constexpr,
    LONGEST: tl.constexpr,
    SHORTEST: tl.constexpr,
    SAVE: tl.constexpr,
    SAMPLED: tl.constexpr,
    ROUNDS: tl.constexpr,
    COSINE: tl.constexpr,
    TANGENT: tl.constexpr,
    HALF_PI: tl.constexpr,
    TERMS: tl.constexpr,
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
    wide, col = tl.arange(0, S), tl.arange(0, D)
    frames_ptr += model * frames_model + first * frames_row
    predicted_ptr += (model * B + first) * K * D
    given_ptr += model * K * B + first
    enter_ptr += model * W * D * S
    up_ptr += model * L * H * S
    down_ptr += model * L * H * S
    up_bias_ptr += model * L * H
    down_bias_ptr += model * L * S
    head_ptr += model * (D + 3) * S + D * S
    head_bias_ptr += model * (D + 3)
    normed_ptr += (model * (L + 1) * K * B + first) * S
    scale_ptr += model * (L + 1) * K * B + first
    fields_ptr += model * K * B + first
    plane = tl.num_programs(1).to(tl.int64) * K * B
    for k in range(K):
        newest = W - 1 + k
        if SAMPLED:  # normals of the tangent, while no other tile is held; they wait where the state will be
            counter = (model * B + first + lane) | (tl.full([ROWS], k, tl.int64) << 32)
            quad = tl.arange(0, D // 4).to(tl.uint32)
            w0, w1, w2, w3 = random_words(seed_ptr, counter[:, None], quad[None, :], TANGENT)
            normal_ptr = predicted_ptr + k * D + lane[:, None] * (K * D) + col[None, :]
            tl.store(normal_ptr, normal_tile(w0, w1, w2, w3, ACC, HALF_PI, TERMS), alive[:, None])
            tl.debug_barrier()
        x = tl.zeros([ROWS, S], ACC) + tl.load(enter_bias_ptr + model * S + wide)[None, :]
        for c in tl.range(0, D, COLUMNS):
            part = c + tl.arange(0, COLUMNS)
            newer = load_frame(
                frames_ptr, predicted_ptr, given_ptr, lane, part, frames_row, K * D, alive, newest, B, W, D
            )
            enter = tl.load(enter_ptr + part[:, None] * S + wide[None, :])
            x = tl.dot(rounded(newer, OPERANDS, EMULATE), enter, x, input_precision=PRECISION, out_dtype=ACC)
            for j in tl.range(1, W, num_stages=1):
                older = load_frame(
                    frames_ptr, predicted_ptr, given_ptr, lane, part, frames_row, K * D, alive, newest - j, B, W, D
                )
                enter = tl.load(enter_ptr + (j * D + part)[:, None] * S + wide[None, :])
                step = rounded(newer - older, OPERANDS, EMULATE)  # the difference before the rounding
                x = tl.dot(step, enter, x, input_precision=PRECISION, out_dtype=ACC)
                newer = older
        for layer in range(L):
            scale = inverse_root_mean_square(x, S)
            n = rounded(x * scale[:, None], OPERANDS, EMULATE)
            if SAVE:
                at = (layer * K + k).to(tl.int64) * B
                tl.store(normed_ptr + at * S + lane[:, None] * S + wide[None, :], n, alive[:, None])
                tl.store(scale_ptr + at + lane, scale, alive)
            x = add_block(
                x, n, up_ptr, up_bias_ptr, down_ptr, down_bias_ptr, layer, S, H, CHUNK, ACTIVATION, ACC, OPERANDS, EMULATE, FAST,
                PRECISION, STAGES,
            )  # fmt: skip
        scale = inverse_root_mean_square(x, S)
        n = rounded(x * scale[:, None], OPERANDS, EMULATE)
        if SAVE:
            at = (L * K + k).to(tl.int64) * B
            tl.store(normed_ptr + at * S + lane[:, None] * S + wide[None, :], n, alive[:, None])
            tl.store(scale_ptr + at + lane, scale, alive)
        y = n.to(ACC)
        kappa = tl.sum(y * tl.load(head_ptr + wide)[None, :], 1) + tl.load(head_bias_ptr + D)
        mu = tl.sum(y * tl.load(head_ptr + S + wide)[None, :], 1) + tl.load(head_bias_ptr + D + 1)
        log_sigma = tl.sum(y * tl.load(head_ptr + 2 * S + wide)[None, :], 1) + tl.load(head_bias_ptr + D + 2)
        direction = tl.load(direction_ptr + model * S * D + wide[:, None] * D + col[None, :])
        v = tl.dot(n, direction, input_precision=PRECISION, out_dtype=ACC) + tl.load(head_bias_ptr + col)[None, :]
        v, v_inverse = toward(v, SHORTEST)
        truth_ptr = frames_ptr + (newest + 1) * D + lane[:, None] * frames_row + col[None, :]
        truth = tl.load(truth_ptr, alive[:, None], 0)
        u, u_inverse = toward(truth - tl.load(truth_ptr - D, alive[:, None], 0), SHORTEST)
        away = 0.5 * tl.sum((v - u) * (v - u), 1)
        length = mu / (1.0 + tl.abs(mu) / BOUND)
        if SAMPLED:
            sigma = tl.load(spread_ptr + model) * tl.exp(log_sigma / (1.0 + tl.abs(log_sigma) / BOUND))
            length += sigma * tl.load(noise_ptr + (model * K + k) * B + first + lane, alive, 0)
            v = tl.where(((v_inverse == 0)[:, None] & (col == 0)[None, :]), 1.0, v)  # no direction: the first axis
            gap, sine = draw_cosine(concentration(kappa, D), counter, alive, seed_ptr, D, ROWS, ROUNDS, COSINE, HALF_PI)
            v = turned(v, tl.load(normal_ptr, alive[:, None], 0), gap, sine, ACC)
            tl.debug_barrier()  # before the state takes the place of the normals
        length = tl.minimum(tl.exp(length), LONGEST)
        state = load_frame(frames_ptr, predicted_ptr, given_ptr, lane, col, frames_row, K * D, alive, newest, B, W, D)
        state += length[:, None] * v
        tl.store(predicted_ptr + k * D + lane[:, None] * (K * D) + col[None, :], state, alive[:, None])
        if SAMPLED:  # not kept while the direction was drawn
            truth = tl.load(truth_ptr, alive[:, None], 0)
        state -= truth
        at = fields_ptr + k * B + lane
        tl.store(at, kappa, alive)
        tl.store(at + plane, mu, alive)
        tl.store(at + 2 * plane, log_sigma, alive)
        tl.store(at + 3 * plane, tl.where((v_inverse > 0) & (u_inverse > 0), away, 1.0), alive)
        tl.store(at + 4 * plane, tl.sum(state * state, 1), alive)
        tl.debug_barrier()  # the next step reads the state that other threads of this block wrote
