"""Audio and pictures of held-out crops while a training runs: RUN/samples, the same crops at every look."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from pathlib import Path

import torch
from arlat_core.files import atomic_write
from arlat_data.codecs import build_codec
from torch import Tensor

PIXELS = 4  # a side of one band and frame
LOUDEST = 10.0  # ln of magnitude above digital silence that is white


def write_wav(path: Path, audio: Tensor, sample_rate: int) -> None:
    """Samples [n], cut at full scale, as 16-bit PCM."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((audio.cpu().clamp(-1, 1) * 32767).round().to(torch.int16).numpy().astype("<i2").tobytes())
    atomic_write(path, buffer.getvalue())


def write_png(path: Path, picture: Tensor) -> None:
    """Grey levels [rows columns] of 0 to 1 as an 8-bit PNG."""
    levels = (picture.cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    rows = torch.nn.functional.pad(levels, (1, 0)).numpy().tobytes()  # each row after its filter's number, 0: none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 8, 0, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    atomic_write(path, b"\x89PNG\r\n\x1a\n" + image)


def mel_picture(audio: Tensor, sample_rate: int) -> Tensor:
    """Log-mel of samples [n] as a picture [rows columns], low bands at the bottom, digital silence 0."""
    codec = build_codec(f"mel:sample_rate={sample_rate},hop={sample_rate // 100}")
    mel = codec.encode(audio.cpu()[None])[0]  # [t, bands]
    picture = ((mel - mel.new_tensor(1e-5).log()) / LOUDEST).T.flip(0)
    return picture.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)


def write_samples(folder: Path, audio: Tensor, decoded: Tensor, sample_rate: int) -> None:
    """Crops [b n] and what they were decoded to: NN.wav, NN-original.wav, and NN.png with the original above."""
    for number, (one, other) in enumerate(zip(audio, decoded, strict=True)):
        write_wav(folder / f"{number:02d}-original.wav", one, sample_rate)
        write_wav(folder / f"{number:02d}.wav", other, sample_rate)
        above, below = mel_picture(one, sample_rate), mel_picture(other, sample_rate)
        line = above.new_ones(PIXELS, above.shape[1])
        write_png(folder / f"{number:02d}.png", torch.cat([above, line, below]))
