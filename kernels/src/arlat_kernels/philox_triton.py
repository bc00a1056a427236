"""Philox4x32-10 counters and what is made of their words, in Triton: the same draws as `philox` in plain torch.

Imported only where Triton is installed.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

HALF_PI = 1.5707963267948966


@triton.jit
def random_words(seed_ptr, row, step, STREAM: tl.constexpr):
    """Words of counter (row low, step, stream, row high), `row` int64 and `step` uint32 of shapes that broadcast."""
    low = (row & 0xFFFFFFFF).to(tl.uint32)
    high = (row >> 32).to(tl.uint32)
    low, step = tl.broadcast(low, step)
    high, step = tl.broadcast(high, step)
    return tl.philox(tl.load(seed_ptr), low, step, (high * 0 + STREAM).to(tl.uint32), high)


@triton.jit
def minus_log(word, ACC: tl.constexpr):
    """−log of (word + ½)·2⁻³², with all digits at both ends."""
    low = word < 2147483648
    small = (tl.where(low, word, 0xFFFFFFFF - word).to(tl.int32).to(ACC) + 0.5) * 2.3283064365386963e-10  # exactly 2⁻³²
    # log(1−x) as log(r)·x/(1−r), r the rounded 1−x: its rounding cancels.
    rest = 1.0 - small
    same = rest == 1.0
    near = tl.where(same, small, -tl.log(rest) * small / tl.where(same, 1.0, 1.0 - rest))
    return tl.where(low, -tl.log(small), near)


@triton.jit
def cos_sin(word, ACC: tl.constexpr, HALF_PI: tl.constexpr, TERMS: tl.constexpr):
    """cos and sin of 2π(word + ½)·2⁻³² by Taylor polynomials on an eighth of a turn; tl.cos would need a stack."""
    shifted = word + 536870912  # 2²⁹
    quadrant = (shifted >> 30).to(tl.int32)
    part = ((shifted & 1073741823).to(tl.int32) - 536870912).to(ACC) + 0.5
    angle = part * tl.full(part.shape, HALF_PI / 1073741824.0, ACC)
    square = angle * angle
    cos = tl.full(part.shape, 1.0, ACC)
    sin = tl.full(part.shape, 1.0, ACC)
    for j in tl.static_range(TERMS):
        cos = 1.0 - square * cos * tl.full(part.shape, 1.0 / ((2 * (TERMS - j)) * (2 * (TERMS - j) - 1)), ACC)
        sin = 1.0 - square * sin * tl.full(part.shape, 1.0 / ((2 * (TERMS - j)) * (2 * (TERMS - j) + 1)), ACC)
    sin = sin * angle
    odd = (quadrant & 1) == 1
    first = tl.where(odd, sin, cos)
    second = tl.where(odd, cos, sin)
    return tl.where((quadrant == 1) | (quadrant == 2), -first, first), tl.where(quadrant >= 2, -second, second)


@triton.jit
def normal_tile(w0, w1, w2, w3, ACC: tl.constexpr, HALF_PI: tl.constexpr, TERMS: tl.constexpr):
    """Standard normals [R 4·C] of words [R C], four per counter, by Box and Muller's formula."""
    length = tl.sqrt(2.0 * minus_log(w0, ACC))
    cos, sin = cos_sin(w1, ACC, HALF_PI, TERMS)
    g0, g1 = length * cos, length * sin
    length = tl.sqrt(2.0 * minus_log(w2, ACC))
    cos, sin = cos_sin(w3, ACC, HALF_PI, TERMS)
    return tl.interleave(tl.interleave(g0, length * cos), tl.interleave(g1, length * sin))


def terms(wide: bool) -> int:
    """TERMS of the Taylor polynomials of `cos_sin` in float64 (`wide`) or float32."""
    return 9 if wide else 5
