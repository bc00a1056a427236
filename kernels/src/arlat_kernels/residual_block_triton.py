"""The residual block in Triton, for a tile of rows whose stream stays in registers: hidden units exist only CHUNK at a time,
weights stream through shared memory.

Imported only where Triton is installed.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, OPERANDS: tl.constexpr, EMULATE: tl.constexpr):
    """x as a matrix product takes it. EMULATE: bfloat16 by its bits, in float32, as the interpreter can neither round nor
    multiply bfloat16."""
    if EMULATE:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(OPERANDS)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1/(1 + exp(−x)). FAST: by the device's tanh, one instruction with an error below bfloat16's rounding."""
    if FAST:
        half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * half + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activated(h, ACTIVATION: tl.constexpr, FAST: tl.constexpr):
    """act(h) and its slope, for each of `residual_block.ACTIVATIONS`."""
    if ACTIVATION == "silu":
        part = sigmoid(h, FAST)
        a = h * part
        return a, part + a * (1.0 - part)
    else:
        tl.static_assert(ACTIVATION == "relu2")
        a = tl.maximum(h, 0.0)
        return a * a, 2.0 * a


@triton.jit
def inverse_root_mean_square(x, S: tl.constexpr):
    """1/√(mean x² + 1e-6) of each row; the constant by a division of numbers that float32 holds."""
    square = tl.sum(x * x, 1)
    return 1.0 / tl.sqrt(square / S + (square * 0.0 + 1.0) / 1000000.0)


@triton.jit
def add_block(
    x,  # [ROWS S]
    n,  # [ROWS S] operands: norm(x)
    up_ptr,  # [L H S] operands
    up_bias_ptr,  # [L H]
    down_ptr,  # [L H S] operands
    down_bias_ptr,  # [L S]
    layer,
    S: tl.constexpr,
    H: tl.constexpr,
    CHUNK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    EMULATE: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x + down·act(up·n + up_bias) + down_bias of one layer."""
    wide, chunk = tl.arange(0, S), tl.arange(0, CHUNK)
    x += tl.load(down_bias_ptr + layer * S + wide)[None, :]
    for h in tl.range(0, H, CHUNK, num_stages=STAGES):
        unit = layer * H + h + chunk
        up = tl.load(up_ptr + unit[:, None] * S + wide[None, :])
        hidden = tl.dot(n, tl.trans(up), input_precision=PRECISION, out_dtype=ACC)
        a, _ = activated(hidden + tl.load(up_bias_ptr + unit)[None, :], ACTIVATION, FAST)
        down = tl.load(down_ptr + unit[:, None] * S + wide[None, :])
        x = tl.dot(rounded(a, OPERANDS, EMULATE), down, x, input_precision=PRECISION, out_dtype=ACC)
    return x
