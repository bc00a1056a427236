"""The VAE: streamed = offline in odd pieces, the future never changes the past, any length, sizes."""

from __future__ import annotations

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.testing.codec import example_audio
from arlat_vae.bottleneck import BottleneckConfig
from arlat_vae.model import SIZES, VAE, Config, build, sized
from pydantic import ValidationError
from torch import Tensor


def sound(batch: int, samples: int) -> Tensor:
    return example_audio(batch, samples, 2400)


def spread(vae: VAE) -> VAE:
    """Weights at which every path carries something: a fresh transformer is nearly the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in vae.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    return vae


@pytest.mark.parametrize("pieces", [[1], [7], [24], [25], [1, 100, 3], [500]])
@torch.no_grad()
def test_streamed_is_offline(vae: VAE, pieces: list[int]) -> None:
    spread(vae)
    audio = sound(2, 24 * 17)
    whole = vae.encode(audio)
    state, laws, start, turn = vae.encoder.initial(2), [], 0, 0
    while start < audio.shape[1]:
        law, state = vae.encode_step(audio[:, start : start + pieces[turn % len(pieces)]], state)
        laws.append(law)
        start, turn = start + pieces[turn % len(pieces)], turn + 1
    mean = torch.cat([law.mean for law in laws], 1)
    torch.testing.assert_close(mean, whole.mean, atol=1e-5, rtol=1e-5)
    state, sounds = vae.decoder.initial(2), []
    for law in laws:
        piece, state = vae.decode_step(law.mean, state)
        assert piece.shape[1] == 24 * law.mean.shape[1]
        sounds.append(piece)
    torch.testing.assert_close(torch.cat(sounds, 1), vae.decode(mean), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_real_size_streams() -> None:
    vae = spread(build(sized("tiny"), torch.Generator().manual_seed(0)))
    audio = example_audio(1, 1920 * 6, 24_000)
    whole = vae.encode(audio).mean
    state, back, pieces, sounds = vae.encoder.initial(1), vae.decoder.initial(1), [], []
    for piece in audio.split(1111, 1):
        law, state = vae.encode_step(piece, state)
        sound_of_it, back = vae.decode_step(law.mean, back)
        pieces.append(law.mean)
        sounds.append(sound_of_it)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)
    expected = vae.decode(whole)
    torch.testing.assert_close(torch.cat(sounds, 1), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@torch.no_grad()
def test_a_frame_ends_with_its_own_samples(vae: VAE) -> None:
    spread(vae)
    audio = sound(1, 24 * 9)
    z = vae.encode(audio).mean
    for frame in (0, 3, 8):
        for place, first in ((24 * frame, frame), (24 * frame + 23, frame)):
            other = audio.clone()
            other[0, place] += 0.5
            moved = (vae.encode(other).mean - z)[0].abs().amax(-1) > 0
            assert not moved[:first].any()
            assert moved[first]


@torch.no_grad()
def test_a_sample_hears_no_later_frame(vae: VAE) -> None:
    spread(vae)
    z = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(0))
    audio = vae.decode(z)
    for frame in (0, 4, 8):
        other = z.clone()
        other[0, frame] += 0.5
        moved = (vae.decode(other) - audio)[0].abs() > 0
        assert not moved[: 24 * frame].any()
        assert moved[24 * frame]


@torch.no_grad()
def test_the_past_is_forgotten_after_the_receptive_field(vae: VAE) -> None:
    """Convolutions see 140 samples (7, +2, +7, +2·4, +3·4, +2·8, +5·8, +2·24), two windows of 4 frames 6 frames more."""
    spread(vae)
    audio = sound(1, 24 * 20)
    other = audio.clone()
    other[0, 23] += 0.5
    moved = (vae.encode(other).mean - vae.encode(audio).mean)[0].abs().amax(-1) > 0
    last = (23 + 140) // 24 - 1 + 6  # the last frame whose convolutions begin at sample 23 or before, and 6 more
    assert torch.equal(moved, torch.arange(20) <= last)


@pytest.mark.parametrize("samples", [1, 23, 24, 25, 100])
@torch.no_grad()
def test_any_length_is_covered(vae: VAE, samples: int) -> None:
    z = vae.encode(sound(2, samples)).mean
    assert z.shape == (2, -(-samples // 24), 3)
    assert vae.decode(z).shape == (2, 24 * z.shape[1])
    padded = torch.nn.functional.pad(sound(2, samples), (0, -samples % 24))
    assert torch.equal(vae.encode(padded).mean, z)


@torch.no_grad()
def test_an_empty_clip_has_no_frames(vae: VAE) -> None:
    law = vae.encode(torch.zeros(2, 0))
    assert law.mean.shape == (2, 0, 3)
    assert vae.decode(law.mean).shape == (2, 0)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 0.3925), ("small", 10.91), ("base", 97.58)])
def test_sizes(size: str, millions: float) -> None:
    config = sized(size)
    assert (config.hop, config.frame_rate, config.bottleneck.dim) == (1920, 12.5, 32)
    with torch.device("meta"):
        parameters = sum(value.numel() for value in VAE(config).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("size", ["tiny", "small"])
@torch.no_grad()
def test_a_fresh_model_already_passes_sound_on(size: str) -> None:
    """Frames of speech-like sound differ by a good part of σ, and the decoder answers at the level of speech."""
    vae = build(sized(size), torch.Generator().manual_seed(0))
    audio = example_audio(4, 24_000, 24_000)
    law = vae.encode(audio)
    assert 0.1 < float(law.mean.flatten(0, 1).std(0).mean()) < 2.0
    torch.testing.assert_close(law.sigma.mean(), torch.tensor(0.5), atol=0.25, rtol=0)
    assert 0.2 < float(vae.decode(law.mean).std() / audio.std()) < 5.0


def test_sizes_take_changes() -> None:
    config = sized("tiny", bottleneck={"dim": 64, "kind": "sigma"})
    assert config.bottleneck == BottleneckConfig(dim=64, kind="sigma")
    assert config.channels == SIZES["tiny"].channels
    with pytest.raises(UserError, match=r"'huge'. Known: tiny, small, base"):
        sized("huge")


def test_weights_are_a_function_of_the_generator(small: Config) -> None:
    first, second, other = (build(small, torch.Generator().manual_seed(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("key", "value"), [("ratios", ()), ("ratios", (4, 0)), ("heads", 3), ("channels", 0)])
def test_impossible_shapes_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key if key != "heads" else "3 heads"):
        Config(**{key: value})


def test_half_precision_runs_and_is_near(vae: VAE) -> None:
    audio = sound(2, 24 * 6)
    with torch.autocast("cpu", torch.bfloat16):
        law = vae.encode(audio)
        out = vae.decode(law.sample(torch.Generator().manual_seed(0)))
        law.kl().mean().backward()
    assert torch.isfinite(out).all()
    torch.testing.assert_close(law.mean.float(), vae.encode(audio).mean, atol=0.05, rtol=0.05)
