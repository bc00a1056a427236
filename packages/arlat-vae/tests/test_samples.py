"""Samples are the audio that they name, at the same place for the same step; pictures show what is heard."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import soundfile
import torch
from arlat_core.testing.codec import example_audio
from arlat_vae.samples import PIXELS, mel_picture, write_png, write_samples
from torch import Tensor


def read_png(path: Path) -> Tensor:
    """Grey levels of a PNG without filters, every chunk's checksum checked."""
    data, chunks = path.read_bytes(), {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    data = data[8:]
    while data:
        (length,) = struct.unpack(">I", data[:4])
        assert struct.unpack(">I", data[8 + length : 12 + length])[0] == zlib.crc32(data[4 : 8 + length])
        chunks[data[4:8]] = data[8 : 8 + length]
        data = data[12 + length :]
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 0, 0, 0, 0]
    levels = torch.frombuffer(bytearray(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8).view(height, width + 1)
    assert int(levels[:, 0].max()) == 0
    return levels[:, 1:]


def test_a_png_holds_its_levels(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", torch.tensor([[0.0, 1.0, 2.0], [0.5, -1.0, 0.2]]))
    assert read_png(tmp_path / "a.png").tolist() == [[0, 255, 255], [128, 0, 51]]


def test_a_tone_is_a_line_at_its_height() -> None:
    time = torch.arange(24_000) / 24_000
    rows = [
        int(mel_picture(0.3 * torch.sin(2 * torch.pi * hertz * time), 24_000).mean(1).argmax()) // PIXELS
        for hertz in (3000, 300)
    ]
    assert 10 < rows[0] < 50
    assert 65 < rows[1] < 80
    assert float(mel_picture(torch.zeros(2400), 24_000).abs().max()) < 1e-6


def test_samples_are_the_audio_and_the_same_bytes_again(tmp_path: Path) -> None:
    audio = example_audio(2, 4800, 24_000)
    for folder in ("a", "b"):
        write_samples(tmp_path / folder, audio, 0.5 * audio, 24_000)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"0{item}{end}" for item in (0, 1) for end in ("-original.wav", ".png", ".wav")]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    for number in (0, 1):
        for name, gain in ((f"0{number}-original.wav", 1.0), (f"0{number}.wav", 0.5)):
            found, rate = soundfile.read(tmp_path / "a" / name, dtype="float32")
            assert rate == 24_000
            torch.testing.assert_close(torch.from_numpy(found), gain * audio[number], atol=5e-5, rtol=0)
    assert read_png(tmp_path / "a" / "00.png").shape == ((2 * 80 + 1) * PIXELS, 20 * PIXELS)
