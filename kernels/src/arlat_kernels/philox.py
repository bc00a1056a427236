"""Philox4x32-10, the counter-based generator, in plain torch: the same bits as Triton's `tl.philox` and CUDA's.

Words are int64 tensors that hold unsigned 32-bit numbers. Nothing here reads a value on the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for every counter (four words that broadcast) and key (two); Salmon et al., 2011."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The low 64 bits of a signed product are those of the unsigned one; the mask drops the sign's copies.
        first, second = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = ((second >> 32) & MASK) ^ c1 ^ k0, second & MASK
        c2, c3 = ((first >> 32) & MASK) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def random_words(seed: Tensor, row: Tensor, step: Tensor, stream: int) -> Words:
    """Words of counter (row mod 2^32, step, stream, row div 2^32) and key `seed` (int64 [1], low word first)."""
    zero = torch.zeros_like(row)
    return philox((row & MASK, step, zero + stream, (row >> 32) & MASK), (seed & MASK, (seed >> 32) & MASK))


def minus_log(word: Tensor, dtype: torch.dtype) -> Tensor:
    """−log U with U = (word + ½)·2⁻³², never 0 or 1; a narrow dtype keeps its digits at both ends."""
    low = word < 2**31
    small = (torch.where(low, word, MASK - word).to(dtype) + 0.5) * 2.0**-32
    return -torch.where(low, torch.log(small), torch.log1p(-small))


def cos_sin(word: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π(word + ½)·2⁻³²; the reduction to an eighth of a turn is exact, in integers."""
    shifted = word + 2**29
    quadrant = (shifted >> 30) & 3
    angle = (((shifted & (2**30 - 1)) - 2**29).to(dtype) + 0.5) * (math.pi / 2 * 2.0**-30)
    cos, sin = torch.cos(angle), torch.sin(angle)
    odd = (quadrant & 1) == 1
    first, second = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where((quadrant == 1) | (quadrant == 2), -first, first), torch.where(quadrant >= 2, -second, second)


def normals(seed: Tensor, row: Tensor, count: int, stream: int, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Independent standard normals [n count] for rows [n], four per counter from `first` on, by Box and Muller's formula."""
    quad = torch.arange(first, first + (count + 3) // 4, device=row.device)
    words = random_words(seed, row.unsqueeze(-1), quad, stream)
    parts = []
    for radius, angle in (words[:2], words[2:]):
        length = torch.sqrt(2 * minus_log(radius, dtype))
        cos, sin = cos_sin(angle, dtype)
        parts += [length * cos, length * sin]
    return torch.stack(parts, -1).flatten(-2)[..., :count]
