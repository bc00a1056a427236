"""Scalars as TensorBoard reads them, written without it: records of Event messages, in order, one file a process's life.

A record is the payload's length (8 bytes, little endian), its masked CRC-32C, the payload and its masked CRC-32C; the payload
is a protocol buffer of tensorflow/core/util/event.proto: wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

POLYNOMIAL = 0x82F63B78  # Castagnoli's, reversed
START = 1  # of SessionLog.SessionStatus: what other files say of this step and later ones is void


def _table() -> list[int]:
    """The remainder of each byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    """The CRC as records have it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    """A number ≥ 0 in groups of seven bits, the lowest first.

    >>> varint(300)
    b'\\xac\\x02'
    """
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


class EventFile:
    """`folder`/events.out.tfevents.STEP of a training that goes on from `step`; one that is there is written anew."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{step:010d}"
        self.path.write_bytes(b"")
        self._append(field(3, b"brain.Event:2"))
        self._append(varint(2 << 3) + varint(step + 1) + field(7, varint(1 << 3) + varint(START)))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of one step, by name."""
        values = [
            field(1, field(1, name.encode()) + varint(2 << 3 | 5) + struct.pack("<f", value))
            for name, value in scalars.items()
        ]
        self._append(varint(2 << 3) + varint(step) + field(5, b"".join(values)))

    def _append(self, message: bytes) -> None:
        """Adds one event of now."""
        payload = varint(1 << 3 | 1) + struct.pack("<d", time.time()) + message
        length = struct.pack("<Q", len(payload))
        with self.path.open("ab") as file:
            file.write(length + masked(length) + payload + masked(payload))
