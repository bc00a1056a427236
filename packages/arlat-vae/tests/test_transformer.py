"""The sliding window is exact, positions are relative, and a stream in any pieces gives what the whole gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from arlat_vae.transformer import Attention, Transformer, rotate
from torch import Tensor

Reach = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [1, 3, 5, 50])
def test_a_frame_sees_its_window(reached: Reach, window: int) -> None:
    torch.manual_seed(0)
    layer = Attention(8, 2, window)
    frames = 13
    seen = reached(lambda x: layer(x.transpose(1, 2)).transpose(1, 2), noise(1, 8, frames))
    now, then = torch.arange(frames)[:, None], torch.arange(frames)
    assert torch.equal(seen, (then <= now) & (then > now - window))


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = Attention(4, 1, 3)
    x = noise(1, 6, 4)
    query, key, value = layer.enter(x)[0].chunk(3, -1)
    query, key = (rotate(part[None, None], 0)[0, 0] for part in (query, key))
    rows = []
    for t in range(6):
        first = max(0, t - 2)
        weight = (query[t] @ key[first : t + 1].T / 2.0).softmax(-1)
        rows.append(weight @ value[first : t + 1])
    torch.testing.assert_close(layer(x)[0], layer.leave(torch.stack(rows)))


def test_rotation_keeps_lengths_and_knows_only_differences() -> None:
    query, key = noise(1, 1, 1, 8), noise(1, 1, 1, 8, seed=1)

    def product(a: int, b: int) -> Tensor:
        return (rotate(query, a) * rotate(key, b)).sum()

    torch.testing.assert_close(rotate(query, 7).norm(), query.norm())
    torch.testing.assert_close(product(9, 4), product(5, 0))
    assert (product(9, 4) - product(9, 3)).abs() > 1e-3


@pytest.mark.parametrize("pieces", [[1] * 23, [23], [5, 1, 17], [9, 14]])
def test_stream_is_the_whole_and_its_state_is_bounded(pieces: list[int]) -> None:
    torch.manual_seed(0)
    model = Transformer(2, 8, 2, 4, 16, 0.7)
    x = noise(2, 23, 8)
    state, outputs = model.initial(2), []
    for piece in x.split(pieces, 1):
        y, state = model.step(piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), model(x), atol=1e-5, rtol=0)
    assert all(keys.shape == (2, 2, 3, 4) for keys, _ in state)


def test_layer_scale_makes_a_new_layer_nearly_the_identity() -> None:
    torch.manual_seed(0)
    x = noise(1, 9, 8)
    change = (Transformer(1, 8, 2, 4, 32, 1e-3)(x) - x).norm() / x.norm()
    assert 0 < change < 5e-3


def test_heads_must_fit() -> None:
    with pytest.raises(ValueError, match="10 units cannot be split into 4 heads"):
        Attention(10, 4, 3)
