"""The codec grammar, the log-mel codec and the wrappers that change the frame rate."""

from __future__ import annotations

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.testing import check_codec
from arlat_core.testing.codec import example_audio
from arlat_data.codecs import build_codec
from arlat_data.codecs.leaky import integrate
from arlat_data.codecs.mel import Config, Mel
from arlat_data.codecs.pool import Pool
from arlat_data.codecs.stride import Stride


@pytest.mark.parametrize(
    "text",
    [
        "mel",
        "mel:bins=128",
        "stack:8|mel",
        "pool:8|mel",
        "stride:4|mel",
        "rate:12.5,kind=pool|mel",
        "stack:2|pool:4|mel",
        "leaky:0.7|pool:8|mel",
    ],
)
def test_contract(text: str) -> None:
    check_codec(build_codec(text))


@pytest.mark.parametrize(
    ("text", "codec", "dim", "frame_rate"),
    [
        ("mel", "mel", 80, 100.0),
        ("mel:128", "mel:bins=128", 128, 100.0),
        ("stack:8|mel", "stack:8|mel", 640, 12.5),
        (" pool:8 | mel ", "pool:8|mel", 80, 12.5),
        ("rate:12.5|mel", "stack:8|mel", 640, 12.5),
        ("rate:100|mel", "mel", 80, 100.0),
        ("stride:2|stack:2|mel", "stride:2|stack:2|mel", 160, 25.0),
        ("leaky:-0.50|mel", "leaky:-0.5|mel", 80, 100.0),
    ],
)
def test_names_rebuild_the_codec(text: str, codec: str, dim: int, frame_rate: float) -> None:
    spec = build_codec(text).spec
    assert (spec.codec, spec.dim, spec.frame_rate) == (codec, dim, frame_rate)
    assert build_codec(spec.codec).spec == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "NAME"),
        ("mel||", "cannot|wraps nothing"),
        ("nosuch", "Known:.*mel.*stack"),
        ("mel=FOLDER", "takes no folder"),
        ("mel|mel", "wraps nothing"),
        ("mel:bins=128,bins=80", "twice"),
        ("mel:bins=80,7", "no name"),
        ("mel:colour=3", "colour.*Known keys: bins"),
        ("mel:bins=many", "bins"),
        ("stack:8", "inner"),
        ("stack|mel", "factor"),
        ("stack:2.5|mel", "factor"),
        ("rate:30|mel", "100, 50, 33.3333, 25"),
        ("rate:200|mel", "100, 50"),
        ("leaky:1|mel", "keep"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        build_codec(text)


def test_mel_options_that_change_encoding_change_the_fingerprint() -> None:
    prints = {Mel(Config(**options)).spec.fingerprint for options in ({}, {"bins": 128}, {"hop": 300}, {"n_fft": 2048})}
    assert len(prints) == 4
    assert Mel(Config(iterations=3)).spec.fingerprint == Mel(Config()).spec.fingerprint


def test_every_mel_band_sees_a_bin() -> None:
    z = Mel(Config(bins=128)).encode(torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0)))
    assert z[:, 5:].mean((0, 1)).min() > -6.0


def test_stack_loses_nothing_and_pool_repeats() -> None:
    audio = example_audio(1, 24_000, 24_000)
    inner = build_codec("mel")
    z = inner.encode(audio)
    stacked = build_codec("stack:8|mel").encode(audio)
    assert torch.equal(stacked[0, 0].reshape(8, 80), z[0, :8])
    assert torch.equal(stacked[0, -1].reshape(8, 80)[4:], z[0, -1:].expand(4, 80))  # 100 = 12·8 + 4
    pooled = Pool(inner, 8).encode(audio)
    torch.testing.assert_close(pooled[0, 1], z[0, 8:16].mean(0))


def test_leaky_latents_are_known_better_and_are_the_same_sound() -> None:
    """White noise through it is AR(1); undone, it is what it was."""
    noise = torch.randn(1, 4000, 2, generator=torch.Generator().manual_seed(0))
    z = integrate(noise, 0.7)
    lagged = (z[:, 1:] * z[:, :-1]).mean() / z.square().mean()
    assert float(lagged) == pytest.approx(0.7, abs=0.03)
    audio = example_audio(1, 24_000, 24_000)
    inner, leaky = build_codec("pool:8|mel"), build_codec("leaky:0.7|pool:8|mel")
    x, y = inner.encode(audio), leaky.encode(audio)
    torch.testing.assert_close(y[:, 1:] - 0.7 * y[:, :-1], x[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(leaky.decode(y), inner.decode(x), rtol=1e-3, atol=1e-3)


def test_stride_interpolates_a_line_exactly() -> None:
    stride = Stride(build_codec("mel"), 4)
    line = torch.arange(20.0)[None, :, None].expand(1, 20, 80)
    inner = stride._interpolate(line[:, 3::4])
    torch.testing.assert_close(inner[:, 3:], line[:, 3:])
    assert inner.shape == (1, 20, 80)


def test_check_codec_finds_what_is_wrong() -> None:
    class Peeking(Mel):
        def encode(self, audio: torch.Tensor) -> torch.Tensor:
            return super().encode(audio.flip(-1))

    class Leaking(Mel):
        def encode(self, audio: torch.Tensor) -> torch.Tensor:
            z = super().encode(audio)
            return z - z.mean(0, keepdim=True)

    class Random(Mel):
        def encode(self, audio: torch.Tensor) -> torch.Tensor:
            return super().encode(audio) + torch.randn(()) * 1e-3

    class Short(Mel):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return super().decode(latents)[:, :-1]

    for broken, words in ((Peeking, "causal"), (Leaking, "batch"), (Random, "deterministic"), (Short, "decode of")):
        with pytest.raises(AssertionError, match=words):
            check_codec(broken(Config()))
