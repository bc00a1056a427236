"""The gradient kernels of `residual_rollout`: a sweep back through the steps, then weight gradients of all steps at once.

The sweep takes a tile of rows from the last step to the first, recomputes hidden units and leaves behind the gradient of
every block's output. With those there is no recurrence left: the gradients of a chunk of hidden units are sums over steps
and rows, which `blocks_kernel` makes in parts, as `window_kernel` does for one frame of the window, and no atomics are needed: the same inputs give the same bits.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from arlat_kernels.residual_block_triton import activated, rounded
from arlat_kernels.residual_rollout_forward_triton import load_frame, toward


@triton.jit
def through_norm(grad, n, scale, S: tl.constexpr):
    """The gradient of x for that of n = norm(x) = scale·x."""
    y = n.to(grad.dtype)
    return scale[:, None] * (grad - y * (tl.sum(grad * y, 1) / S)[:, None])


@triton.jit
def product_from_memory(
    x_ptr,  # [ROWS S] operands
    weight_ptr,  # [CHUNK S] operands
    lane,
    inside,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x·weightᵀ [ROWS CHUNK] of tiles that are read COLUMNS at a time, so that no thread holds a whole row of x."""
    row = tl.arange(0, CHUNK)
    total = tl.zeros([ROWS, CHUNK], ACC)
    for c in tl.range(0, S, COLUMNS, num_stages=STAGES):
        part = (c + tl.arange(0, COLUMNS))[None, :]
        x = tl.load(x_ptr + lane[:, None] * S + part, inside, 0)
        weight = tl.load(weight_ptr + row[:, None] * S + part)
        total = tl.dot(x, tl.trans(weight), total, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def sweep_kernel(
    frames_ptr,  # [M B W+K D], strides of model and row given
    given_ptr,  # [M K B] int8
    enter_ptr,  # [M W D S] operands
    up_ptr,  # [M L H S] operands
    up_bias_ptr,  # [M L H]
    down_ptr,  # [M L H S] operands
    direction_ptr,  # [M S D] operands
    head_ptr,  # [M D+3 S]
    head_bias_ptr,  # [M D+3]
    predicted_ptr,  # [M B K D]
    fields_ptr,  # [5 M K B]
    normed_ptr,  # [M L+1 K B S] operands
    scale_ptr,  # [M L+1 K B]
    grad_predicted_ptr,  # [M B K D]
    grad_fields_ptr,  # [5 M K B]
    grad_state_ptr,  # [M B K D] out: whole gradient of the predicted states
    grad_stream_ptr,  # [M L+1 K B S] operands, out: of x before the first block and after each
    grad_direction_ptr,  # [M K B D] operands, out: of v before it is normalised
    grad_scalars_ptr,  # [3 M K B] out: whole gradient of κ, mu, log_sigma
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
    REREAD: tl.constexpr,  # n and g from memory again for every chunk of units, where two tiles are too much for the registers
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
    wide, col, chunk = tl.arange(0, S), tl.arange(0, D), tl.arange(0, CHUNK)
    streams = lane[:, None] * S + wide[None, :]
    frames_ptr += model * frames_model + first * frames_row
    predicted_ptr += (model * B + first) * K * D
    grad_predicted_ptr += (model * B + first) * K * D
    grad_state_ptr += (model * B + first) * K * D
    given_ptr += model * K * B + first
    enter_ptr += model * W * D * S
    up_ptr += model * L * H * S
    down_ptr += model * L * H * S
    up_bias_ptr += model * L * H
    head_ptr += model * (D + 3) * S + D * S
    head_bias_ptr += model * (D + 3)
    normed_ptr += (model * (L + 1) * K * B + first) * S
    scale_ptr += model * (L + 1) * K * B + first
    grad_stream_ptr += (model * (L + 1) * K * B + first) * S
    grad_direction_ptr += (model * K * B + first) * D
    fields_ptr += model * K * B + first
    grad_fields_ptr += model * K * B + first
    grad_scalars_ptr += model * K * B + first
    plane = tl.num_programs(1).to(tl.int64) * K * B
    for back in range(K):
        k = K - 1 - back
        at = k * B + lane
        # The state that step k predicted: as a result, and where it was not replaced, by every later window that held it.
        own = alive & (k + 1 < K) & (tl.load(given_ptr + at, alive, 1) == 0)
        of_error = 2.0 * tl.load(grad_fields_ptr + 4 * plane + at, alive, 0)
        for c in tl.range(0, D, COLUMNS):
            part = c + tl.arange(0, COLUMNS)
            states = lane[:, None] * (K * D) + part[None, :]
            grad = tl.load(grad_state_ptr + (k + 1) * D + states, own[:, None], 0)
            # Feature j holds the state with the sign + in step k + j and with − in the next: one difference of gradients.
            g = tl.load(grad_stream_ptr + (k + 1).to(tl.int64) * B * S + streams, own[:, None], 0)
            enter = tl.load(enter_ptr + part[:, None] * S + wide[None, :])
            grad = tl.dot(g, tl.trans(enter), grad, input_precision=PRECISION, out_dtype=ACC)
            for j in tl.range(1, W, num_stages=1):
                after = own & (k + 1 + j < K)
                later = tl.load(grad_stream_ptr + (k + 1 + j).to(tl.int64) * B * S + streams, after[:, None], 0)
                enter = tl.load(enter_ptr + (j * D + part)[:, None] * S + wide[None, :])
                change = rounded(g.to(ACC) - later.to(ACC), OPERANDS, EMULATE)
                grad = tl.dot(change, tl.trans(enter), grad, input_precision=PRECISION, out_dtype=ACC)
                g = later
            grad += tl.load(grad_predicted_ptr + k * D + states, inside, 0)
            error = tl.load(predicted_ptr + k * D + states, inside, 0)
            error -= tl.load(frames_ptr + (W + k) * D + lane[:, None] * frames_row + part[None, :], inside, 0)
            tl.store(grad_state_ptr + k * D + states, grad + of_error[:, None] * error, inside)
        tl.debug_barrier()
        # The head.
        level = (L * K + k).to(tl.int64) * B
        n = tl.load(normed_ptr + level * S + streams, inside, 0)
        direction = tl.load(direction_ptr + model * S * D + wide[:, None] * D + col[None, :])
        v = tl.dot(n, direction, input_precision=PRECISION, out_dtype=ACC) + tl.load(head_bias_ptr + col)[None, :]
        v, v_inverse = toward(v, SHORTEST)
        truth_ptr = frames_ptr + (W + k) * D + lane[:, None] * frames_row + col[None, :]
        u, u_inverse = toward(tl.load(truth_ptr, inside, 0) - tl.load(truth_ptr - D, inside, 0), SHORTEST)
        grad = tl.load(grad_state_ptr + k * D + lane[:, None] * (K * D) + col[None, :], inside, 0)
        mu = tl.load(fields_ptr + plane + at, alive, 0)
        damping = 1.0 + tl.abs(mu) / BOUND
        whole = tl.exp(mu / damping)
        of_mu = tl.where(whole <= LONGEST, whole * tl.sum(grad * v, 1), 0.0) / (damping * damping)
        of_mu += tl.load(grad_fields_ptr + plane + at, alive, 0)
        of_kappa = tl.load(grad_fields_ptr + at, alive, 0)
        of_log_sigma = tl.load(grad_fields_ptr + 2 * plane + at, alive, 0)
        tl.store(grad_scalars_ptr + at, of_kappa, alive)
        tl.store(grad_scalars_ptr + plane + at, of_mu, alive)
        tl.store(grad_scalars_ptr + 2 * plane + at, of_log_sigma, alive)
        of_gap = tl.where(u_inverse > 0, tl.load(grad_fields_ptr + 3 * plane + at, alive, 0), 0.0)
        grad = tl.minimum(whole, LONGEST)[:, None] * grad + of_gap[:, None] * (v - u)
        grad = (grad - v * tl.sum(grad * v, 1)[:, None]) * v_inverse[:, None]
        of_v = rounded(grad, OPERANDS, EMULATE)
        tl.store(grad_direction_ptr + at.to(tl.int64)[:, None] * D + col[None, :], of_v, inside)
        x = tl.dot(of_v, tl.trans(direction), input_precision=PRECISION, out_dtype=ACC)
        x += of_kappa[:, None] * tl.load(head_ptr + wide)[None, :]
        x += of_mu[:, None] * tl.load(head_ptr + S + wide)[None, :]
        x += of_log_sigma[:, None] * tl.load(head_ptr + 2 * S + wide)[None, :]
        x = through_norm(x, n, tl.load(scale_ptr + level + lane, alive, 0), S)
        # The blocks, last one first; x is the gradient of the stream.
        for back_layer in range(L):
            layer = L - 1 - back_layer
            g = rounded(x, OPERANDS, EMULATE)
            after = ((layer + 1) * K + k).to(tl.int64) * B
            tl.store(grad_stream_ptr + after * S + streams, g, inside)
            level = (layer * K + k).to(tl.int64) * B
            if REREAD:
                tl.debug_barrier()  # g comes back from memory, from other threads of this block
            else:
                n = tl.load(normed_ptr + level * S + streams, inside, 0)
            inner = tl.zeros([ROWS, S], ACC)
            for h in tl.range(0, H, CHUNK, num_stages=STAGES):
                unit = layer * H + h + chunk
                if REREAD:
                    at_chunk = (layer * H + h) * S
                    hidden = product_from_memory(
                        normed_ptr + level * S, up_ptr + at_chunk, lane, inside, S, ROWS, CHUNK, COLUMNS, ACC, PRECISION,
                        STAGES,
                    )  # fmt: skip
                    of_a = product_from_memory(
                        grad_stream_ptr + after * S, down_ptr + at_chunk, lane, inside, S, ROWS, CHUNK, COLUMNS, ACC,
                        PRECISION, STAGES,
                    )  # fmt: skip
                    up = tl.load(up_ptr + unit[:, None] * S + wide[None, :])
                else:
                    up = tl.load(up_ptr + unit[:, None] * S + wide[None, :])
                    hidden = tl.dot(n, tl.trans(up), input_precision=PRECISION, out_dtype=ACC)
                    down = tl.load(down_ptr + unit[:, None] * S + wide[None, :])
                    of_a = tl.dot(g, tl.trans(down), input_precision=PRECISION, out_dtype=ACC)
                _, slope = activated(hidden + tl.load(up_bias_ptr + unit)[None, :], ACTIVATION, FAST)
                of_hidden = rounded(of_a * slope, OPERANDS, EMULATE)
                inner = tl.dot(of_hidden, up, inner, input_precision=PRECISION, out_dtype=ACC)
            if REREAD:
                n = tl.load(normed_ptr + level * S + streams, inside, 0)
            x += through_norm(inner, n, tl.load(scale_ptr + level + lane, alive, 0), S)
        tl.store(grad_stream_ptr + k.to(tl.int64) * B * S + streams, rounded(x, OPERANDS, EMULATE), inside)
        tl.debug_barrier()  # the next step reads gradients that other threads of this block wrote


@triton.jit
def blocks_kernel(
    normed_ptr,  # [M L+1 N S] operands, N = K·B
    grad_stream_ptr,  # [M L+1 N S] operands
    up_ptr,  # [M L H S] operands
    up_bias_ptr,  # [M L H]
    down_ptr,  # [M L H S] operands
    grad_up_ptr,  # [PARTS M L H S] out
    grad_up_bias_ptr,  # [PARTS M L H] out
    grad_down_ptr,  # [PARTS M L H S] out
    N,
    L,
    tiles,  # of rows, that one part sums
    S: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    EMULATE: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Transposed products: units in rows, so that what one product gives is the left side of the next as it stands.
    unit = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    block = tl.program_id(1).to(tl.int64)  # model·L + layer
    model = block // L
    part = tl.program_id(2).to(tl.int64)
    level = model * (L + 1) + (block - model * L)
    wide, lane = tl.arange(0, S), tl.arange(0, ROWS)
    weight = unit[:, None] * S + wide[None, :]
    up = tl.load(up_ptr + block * H * S + weight)
    down = tl.load(down_ptr + block * H * S + weight)
    bias = tl.load(up_bias_ptr + block * H + unit)
    grad_up = tl.zeros([CHUNK, S], ACC)
    grad_down = tl.zeros([CHUNK, S], ACC)
    grad_bias = tl.zeros([CHUNK], ACC)
    normed_ptr += level * N * S
    grad_stream_ptr += (level + 1) * N * S
    for t in tl.range(0, tiles, num_stages=STAGES):
        row = (part * tiles + t) * ROWS + lane
        inside = (row < N)[:, None]
        at = row[:, None] * S + wide[None, :]
        n = tl.load(normed_ptr + at, inside, 0)
        g = tl.load(grad_stream_ptr + at, inside, 0)
        hidden = tl.dot(up, tl.trans(n), input_precision=PRECISION, out_dtype=ACC)
        of_a = tl.dot(down, tl.trans(g), input_precision=PRECISION, out_dtype=ACC)
        a, slope = activated(hidden + bias[:, None], ACTIVATION, FAST)
        of_hidden = of_a * slope  # 0 in rows beyond the last
        grad_bias += tl.sum(of_hidden, 1)
        of_hidden = rounded(of_hidden, OPERANDS, EMULATE)
        grad_up = tl.dot(of_hidden, n, grad_up, input_precision=PRECISION, out_dtype=ACC)
        a = rounded(a, OPERANDS, EMULATE)
        grad_down = tl.dot(a, g, grad_down, input_precision=PRECISION, out_dtype=ACC)
    at = part * tl.num_programs(1) + block
    tl.store(grad_up_ptr + at * H * S + weight, grad_up)
    tl.store(grad_down_ptr + at * H * S + weight, grad_down)
    tl.store(grad_up_bias_ptr + at * H + unit, grad_bias)


@triton.jit
def window_kernel(
    frames_ptr,  # [M B W+K D], strides of model and row given
    predicted_ptr,  # [M B K D]
    given_ptr,  # [M K B] int8
    grad_stream_ptr,  # [M L+1 K B S] operands
    grad_enter_ptr,  # [PARTS M W S D] out
    B,
    K,
    W,
    L,
    tiles,  # of rows, that one part sums
    frames_model,
    frames_row,
    D: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    EMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    j = tl.program_id(0)
    model = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2).to(tl.int64)
    wide, col = tl.arange(0, S), tl.arange(0, D)
    frames_ptr += model * frames_model
    predicted_ptr += model * B * K * D
    given_ptr += model * K * B
    grad_stream_ptr += model * (L + 1) * K * B * S
    total = tl.zeros([S, D], ACC)
    for t in tl.range(0, tiles, num_stages=1):
        row = (part * tiles + t) * ROWS + tl.arange(0, ROWS)
        alive = row < K * B
        k, b = row // B, row % B
        g = tl.load(grad_stream_ptr + row[:, None] * S + wide[None, :], alive[:, None], 0)
        newer = W - 1 + k - tl.maximum(j - 1, 0)
        step = load_frame(frames_ptr, predicted_ptr, given_ptr, b, col, frames_row, K * D, alive, newer, B, W, D)
        older = alive & (j > 0)  # the newest frame is a feature by itself
        step -= load_frame(frames_ptr, predicted_ptr, given_ptr, b, col, frames_row, K * D, older, newer - 1, B, W, D)
        step = rounded(step, OPERANDS, EMULATE)
        total = tl.dot(tl.trans(g), step, total, input_precision=PRECISION, out_dtype=ACC)
    at = (part * tl.num_programs(1) + model) * W + j
    tl.store(grad_enter_ptr + at * S * D + wide[:, None] * D + col[None, :], total)
