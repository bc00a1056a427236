"""Causal convolutions see exactly what they should, and a stream in any pieces gives what the whole gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from arlat_vae.convolution import CausalConv, CausalTransposedConv, decoder_stack, encoder_stack
from torch import Tensor

Reach = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(1, 1, 1), (7, 1, 1), (3, 1, 4), (8, 4, 1), (5, 2, 3), (4, 4, 1)]
)
def test_a_convolution_sees_its_kernel_and_nothing_ahead(
    reached: Reach, kernel: int, stride: int, dilation: int
) -> None:
    torch.manual_seed(0)
    layer = CausalConv(1, 2, kernel, stride, dilation)
    seen = reached(layer, noise(1, 1, 12 * stride))
    expected = torch.zeros_like(seen)
    for output in range(len(expected)):
        for tap in range(kernel):
            place = (output + 1) * stride - 1 - tap * dilation
            if place >= 0:
                expected[output, place] = True
    assert torch.equal(seen, expected)


def test_a_convolution_is_torch_s_on_left_padded_input() -> None:
    layer = CausalConv(2, 3, 5, 2)
    x = noise(2, 2, 20)
    expected = F.conv1d(F.pad(x, (3, 0)), layer.conv.weight, layer.conv.bias, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (6, 2), (3, 3), (5, 4)])
def test_a_transposed_convolution_writes_ahead_and_never_back(reached: Reach, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = CausalTransposedConv(1, 2, kernel, stride)
    seen = reached(layer, noise(1, 1, 7))
    expected = torch.zeros(7 * stride, 7, dtype=torch.bool)
    for place in range(7):
        expected[place * stride : place * stride + kernel, place] = True
    assert torch.equal(seen, expected)


def test_stacks_are_mirrors_and_stream_in_any_pieces() -> None:
    torch.manual_seed(0)
    shape = ([4, 8, 8], (2, 3), (7, 3, 3))
    encoder, decoder = encoder_stack(*shape, 5), decoder_stack(*shape, 5)
    x = noise(2, 1, 60)
    hidden = encoder(x)
    sound = decoder(hidden)
    assert hidden.shape == (2, 5, 10)
    assert sound.shape == (2, 1, 60)
    state, back, pieces, sounds = encoder.initial(2), decoder.initial(2), [], []
    for piece in x.split([6, 18, 12, 24], -1):
        y, state = encoder.step(piece, state)
        pieces.append(y)
    for piece in hidden.split([3, 1, 1, 5], -1):
        y, back = decoder.step(piece, back)
        sounds.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), hidden, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(sounds, -1), sound, atol=1e-6, rtol=0)


def test_fresh_layers_keep_the_level() -> None:
    torch.manual_seed(0)
    x = noise(2, 64, 600)
    for layer in (CausalConv(64, 128, 8, 4, gain=0.5), CausalTransposedConv(64, 128, 8, 4, gain=0.5)):
        assert float(layer(x).detach()[..., 8:].std()) == pytest.approx(0.5, rel=0.05)


def test_a_state_is_a_value() -> None:
    layer = CausalTransposedConv(1, 1, 4, 2)
    _, state = layer.step(noise(1, 1, 3), layer.initial(1))
    kept = state.clone()
    first, _ = layer.step(noise(1, 1, 5), state)
    second, _ = layer.step(noise(1, 1, 5), state)
    assert torch.equal(state, kept)
    assert torch.equal(first, second)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="skips samples at stride 4"):
        CausalConv(1, 1, 3, 4)
    with pytest.raises(ValueError, match="leaves gaps at stride 4"):
        CausalTransposedConv(1, 1, 3, 4)
    layer = CausalConv(1, 1, 4, 2)
    with pytest.raises(ValueError, match="5 samples are no positive multiple of the stride 2"):
        layer(noise(1, 1, 5))
