"""The contract of a codec: `check_codec(build(...))` is all the test that a new one needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arlat_core.types import Codec, LatentSpec


def check_codec(codec: Codec, tolerance: float = 1e-5, decode_tolerance: float = 1e-4) -> None:
    """Raises AssertionError, with values, when `codec` breaks the contract of `Codec`.

    Lengths 0, 1, hop−1, hop, hop+1 and a few frames; shapes, dtype and finiteness; determinism; batch = single; prefix =
    whole where `spec.causal`; round-trip length. Tolerances are relative to the largest magnitude (at least 1).
    """
    assert isinstance(codec.spec, LatentSpec), f"spec must be a LatentSpec, got {type(codec.spec).__name__}"
    hop = codec.spec.sample_rate / codec.spec.frame_rate
    assert codec.frames(0) == 0, f"frames(0) must be 0, got {codec.frames(0)}"
    empty = codec.encode(torch.zeros(2, 0))
    assert empty.shape == (2, 0, codec.spec.dim), f"encode of 0 samples gave {tuple(empty.shape)}"
    assert codec.decode(empty).shape == (2, 0), f"decode of 0 frames gave {tuple(codec.decode(empty).shape)}"
    whole = math.ceil(hop - 1e-6)
    for samples in sorted({1, max(1, whole - 1), whole, whole + 1, 5 * whole + 7}):
        _check_length(codec, samples, hop)
    audio = example_audio(3, 6 * whole + 11, codec.spec.sample_rate)
    _check_repeats(codec, audio)
    _check_batch(codec, audio, tolerance, decode_tolerance)
    if codec.spec.causal:
        _check_causal(codec, audio, hop, tolerance)


def example_audio(batch: int, samples: int, sample_rate: int, seed: int = 0) -> Tensor:
    """Voiced-like sound [b n]: ten harmonics of a low pitch under a slow envelope, and some noise, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / sample_rate
    pitch = 90 + 120 * torch.rand(batch, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(batch, 10, 1, generator=generator)
    harmonic = torch.arange(1, 11)[None, :, None]
    tone = (torch.sin(2 * math.pi * pitch[..., None] * harmonic * time + phase) / harmonic).sum(1)
    envelope = 0.6 + 0.4 * torch.sin(2 * math.pi * 3.0 * time)
    return 0.2 * envelope * tone + 0.01 * torch.randn(batch, samples, generator=generator)


def _check_length(codec: Codec, samples: int, hop: float) -> None:
    """One clip length: frame count, shapes, dtype, finiteness, and the length of the round trip."""
    spec = codec.spec
    z = codec.encode(example_audio(2, samples, spec.sample_rate))
    frames = codec.frames(samples)
    assert frames >= 1, f"frames({samples}) is {frames}: a clip that is not empty has at least one frame"
    assert frames * hop >= samples - 1e-6, f"{frames} frames of {hop} samples do not cover {samples} samples"
    assert z.shape == (2, frames, spec.dim), (
        f"encode of {samples} samples gave {tuple(z.shape)}, not {(2, frames, spec.dim)}"
    )
    assert z.dtype == torch.float32, f"encode gave {z.dtype}, not float32"
    assert torch.isfinite(z).all(), f"encode of {samples} samples gave values that are not finite"
    y = codec.decode(z)
    expected = round(frames * hop)
    assert y.shape == (2, expected), f"decode of {frames} frames gave {tuple(y.shape)}, not {(2, expected)}"
    assert y.dtype == torch.float32, f"decode gave {y.dtype}, not float32"
    assert torch.isfinite(y).all(), f"decode of {frames} frames gave values that are not finite"


def _check_repeats(codec: Codec, audio: Tensor) -> None:
    """The same call gives the same bits, whatever the state of the global generator, and leaves its input alone."""
    before = audio.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = codec.encode(audio)
        sound = codec.decode(first)
        torch.manual_seed(2)
        assert torch.equal(first, codec.encode(audio)), "encode is not deterministic"
        assert torch.equal(sound, codec.decode(first)), "decode is not deterministic"
    assert torch.equal(audio, before), "encode changed its input"


def _check_batch(codec: Codec, audio: Tensor, tolerance: float, decode_tolerance: float) -> None:
    """An item's frames and samples are the same alone and in a batch."""
    z = codec.encode(audio)
    y = codec.decode(z)
    for item in range(len(audio)):
        one = slice(item, item + 1)
        _close(codec.encode(audio[one]), z[one], tolerance, "encode: an item alone against the same in a batch")
        _close(codec.decode(z[one]), y[one], decode_tolerance, "decode: an item alone against the same in a batch")


def _check_causal(codec: Codec, audio: Tensor, hop: float, tolerance: float) -> None:
    """The future does not change the past: other audio after frame t, or none, leaves frames 0 … t as they are."""
    z = codec.encode(audio)
    for frames in (1, 3):
        end = math.ceil(frames * hop - 1e-6)
        other = audio.clone()
        other[:, end:] = -other[:, end:].flip(-1)
        _close(
            codec.encode(other)[:, :frames], z[:, :frames], tolerance, f"causal: frames up to {frames}, other future"
        )
        prefix = codec.encode(audio[:, :end])
        _close(prefix[:, :frames], z[:, :frames], tolerance, f"causal: frames up to {frames}, prefix alone")


def _close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Compares with a tolerance relative to the largest magnitude, at least 1."""
    scale = max(1.0, float(expected.abs().max()))
    error = float((got - expected).abs().max()) / scale
    assert error <= tolerance, f"{what}: relative difference {error:.2e}, allowed {tolerance:.0e}"
