"""What the header of an audio file promises, read from its bytes: libsndfile delivers a cut file without a word."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGICS = (
    b"RIFF",
    b"RIFX",
    b"RF64",
    b"FORM",
    b"fLaC",
    b"OggS",
    b"ID3",
    b".snd",
    b"riff\x2e\x91\xcf\x11",
    b"caff",
    b"NIST_1A",
)
TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # each byte with its bits in reverse
UNKNOWN_SIZE = 0x7FFFF000  # recorders that write to a pipe announce 0x7ffff000 … 0x80000000 or 0xffffffff bytes


class AudioError(Exception):
    """Why one file is not usable; the message alone is shown beside the file's name."""


@dataclass(frozen=True)
class Announced:
    """A header's promises; `md5` [16 bytes] and `bits` are those of a FLAC file, None and 0 elsewhere."""

    note: str = ""
    md5: bytes | None = None
    bits: int = 0


def looks_like_audio(path: Path) -> bool:
    """Whether the first bytes are those of a container that this module or libsndfile knows."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(MAGICS) or head[4:8] == b"ftyp"


def announced(path: Path) -> Announced:
    """Checks a file's structure against its length on disk.

    Raises AudioError when data is missing that the header announces, or when the header was never finished.
    """
    size = path.stat().st_size
    if size == 0:
        raise AudioError("the file is empty (0 bytes)")
    with path.open("rb") as file:
        start = skip_id3(file)
        file.seek(start)
        magic = file.read(4)
        if magic == b"fLaC":
            return flac(file)
        file.seek(0)
        magic = file.read(4)
        if magic in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
            return chunks(file, magic, size)
        if magic == b".snd":
            return sun(file, size)
        if magic == b"OggS":
            return ogg(file, size)
        if magic == b"riff":
            return wave64(file, size)
        if magic == b"NIST":
            file.seek(7)
            return sphere(file, size)
        if file.read(4) == b"ftyp":
            raise AudioError("MP4/AAC audio, which libsndfile cannot read; convert it to FLAC")
    return Announced()


def skip_id3(file: BinaryIO) -> int:
    """Offset behind an ID3v2 tag, 0 without one."""
    head = file.read(10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    a, b, c, d = head[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def flac(file: BinaryIO) -> Announced:
    """Reads STREAMINFO, which stands right behind the marker; an all-zero MD5 means that the encoder gave none."""
    head = file.read(4)
    info = file.read(34)
    if len(info) < 34 or head[0] & 0x7F != 0:
        raise AudioError("the FLAC header is cut off or has no STREAMINFO")
    bits = ((info[12] & 1) << 4 | info[13] >> 4) + 1
    return Announced(md5=None if info[18:34] == bytes(16) else info[18:34], bits=bits)


def chunks(file: BinaryIO, magic: bytes, size: int) -> Announced:
    """Walks the chunks of a WAV (RIFF, RIFX, RF64) or AIFF (FORM) file and checks the audio chunk's length."""
    big = magic in (b"RIFX", b"FORM")
    audio = b"SSND" if magic == b"FORM" else b"data"
    position, long_size = 12, None
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(">4sI" if big else "<4sI", file.read(8))
        if name == b"ds64":
            long_size = int(struct.unpack("<QQ", file.read(16))[1])
        if name == audio:
            if magic == b"RF64" and length == 0xFFFFFFFF and long_size is not None:
                length = long_size
            return audio_chunk(length, size - position - 8)
        position += 8 + length + (length & 1)
    raise AudioError("the file has no audio data: it is cut off before its sound begins")


def audio_chunk(length: int, present: int) -> Announced:
    """Compares the audio chunk's announced `length` with the bytes `present` behind its header."""
    if length > present:
        if length == 0xFFFFFFFF or UNKNOWN_SIZE <= length <= 0x80000000:
            return Announced(note="the header gives no length; read to the end of the file")
        raise AudioError(
            f"truncated: the header announces {length} bytes of audio, the file has {present} ({present / length:.0%})"
        )
    if length == 0 and present > 0:
        raise AudioError(f"the header announces 0 bytes of audio but {present} follow: the recording was not finished")
    return Announced()


def sun(file: BinaryIO, size: int) -> Announced:
    """Checks the data size of a Sun/NeXT .au file (0xffffffff means unknown)."""
    head = file.read(8)
    if len(head) < 8:
        raise AudioError("the AU header is cut off")
    offset, length = struct.unpack(">II", head)
    return audio_chunk(length, max(0, size - offset))


def wave64(file: BinaryIO, size: int) -> Announced:
    """Walks the chunks of a Sony Wave64 file: 16 bytes of name, 8 of size (with this header), aligned to 8."""
    position = 40
    while position + 24 <= size:
        file.seek(position)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name[:4] == b"data":
            return audio_chunk(max(0, length - 24), size - position - 24)
        position += max(24, (length + 7) // 8 * 8)
    raise AudioError("the file has no audio data: it is cut off before its sound begins")


def sphere(file: BinaryIO, size: int) -> Announced:
    """Checks the sample count of a NIST SPHERE file, unless it is compressed."""
    head = file.read(1024).decode("ascii", "replace")
    fields = dict(re.findall(r"^(\w+) -\S+ (.*)$", head, re.MULTILINE))
    start = re.match(r"\s*(\d+)", head)
    try:
        length = int(fields["sample_count"]) * int(fields.get("channel_count", 1)) * int(fields["sample_n_bytes"])
    except (KeyError, ValueError):
        return Announced(note="the header gives no length; read to the end of the file")
    if start is None or fields.get("sample_coding", "pcm") not in ("pcm", "ulaw", "alaw", "mu-law"):
        return Announced()
    return audio_chunk(length, max(0, size - int(start[1])))


def ogg(file: BinaryIO, size: int) -> Announced:
    """Walks the pages of an Ogg file: each with its checksum, none missing, and the last ends the stream."""
    position, ended = 0, False
    expected: dict[int, int] = {}
    while position + 27 <= size:
        file.seek(position)
        head = file.read(27)
        if head[:4] != b"OggS":
            raise AudioError(f"damaged: no Ogg page at byte {position}")
        serial, number, checksum = struct.unpack("<III", head[14:26])
        if number != expected.get(serial, number):
            raise AudioError(f"damaged: Ogg page {expected[serial]} is missing, page {number} follows")
        lengths = file.read(head[26])
        body = file.read(sum(lengths))
        position += 27 + head[26] + sum(lengths)
        if position > size:
            break
        if ogg_checksum(head[:22] + bytes(4) + head[26:] + lengths + body) != checksum:
            raise AudioError(f"damaged: Ogg page {number} has a wrong checksum")
        expected[serial] = number + 1
        ended = bool(head[5] & 4)
    if position != size or not ended:
        raise AudioError("truncated: the Ogg file does not end with its stream's last page")
    return Announced()


def ogg_checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page whose checksum field is zero.

    It is zlib's with every bit order turned round and neither start nor end inverted.
    """
    turned = zlib.crc32(page.translate(TURNED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)
