"""Philox gives the published words, and what is made of them has its law."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_kernels.philox import MASK, cos_sin, minus_log, normals, philox, random_words

# Known-answer vectors of philox4x32-10 in Random123: counter, key, result.
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: str, key: str, result: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert " ".join(f"{int(word):08x}" for word in philox((c0, c1, c2, c3), (k0, k1))) == result


def test_counters_broadcast_and_use_every_bit_of_row_and_seed() -> None:
    seed, step = torch.tensor([-7]), torch.arange(3)
    row = torch.tensor([[5], [5 + 2**32]])
    made = random_words(seed, row, step, 1)
    assert made[0].shape == (2, 3)
    alone = philox(
        tuple(torch.tensor(word) for word in (5, 2, 1, 1)),  # type: ignore[arg-type]
        (torch.tensor(MASK - 6), torch.tensor(MASK)),
    )
    assert [int(word[1, 2]) for word in made] == [int(word) for word in alone]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_both_ends_of_the_uniform_keep_their_digits(dtype: torch.dtype, tolerance: float) -> None:
    ends = [0, 1, 1000, 2**31 - 1, 2**31, MASK - 1000, MASK - 1, MASK]
    got = minus_log(torch.tensor(ends), dtype)
    for value, word in zip(got.tolist(), ends, strict=True):
        complement = (MASK - word + 0.5) * 2.0**-32
        exact = -math.log1p(-complement) if word >= 2**31 else -math.log((word + 0.5) * 2.0**-32)
        assert 0 < value < 23
        assert value == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1.2e-7), (torch.float64, 1e-15)])
def test_cos_and_sin_over_the_turn(dtype: torch.dtype, tolerance: float) -> None:
    word = torch.cat([torch.arange(0, 2**32, 9_999_991), torch.tensor([0, 2**29, 2**30, 2**31, 3 * 2**30, MASK])])
    cos, sin = cos_sin(word, dtype)
    angle = (word.double() + 0.5) * (2 * math.pi * 2.0**-32)
    assert float((cos.double() - torch.cos(angle)).abs().max()) < tolerance
    assert float((sin.double() - torch.sin(angle)).abs().max()) < tolerance


def test_normals_are_normal_and_independent() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    g = normals(torch.tensor([3]), torch.arange(20_000), 7, 1, torch.float64)
    assert g.shape == (20_000, 7)
    for column in g.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    covariance = g.T @ g / len(g)
    assert float((covariance - torch.eye(7)).abs().max()) < 5 * math.sqrt(2 / len(g))
    assert torch.equal(normals(torch.tensor([3]), torch.arange(100, 200), 5, 1, torch.float64), g[100:200, :5])
    narrow = normals(torch.tensor([3]), torch.arange(20_000), 7, 1, torch.float32)
    assert float((narrow.double() - g).abs().max()) < 2e-6
