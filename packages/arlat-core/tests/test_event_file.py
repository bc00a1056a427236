"""Event files hold what was added, in records whose checksums are right."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from arlat_core.event_file import EventFile, masked, varint


def records(data: bytes) -> list[bytes]:
    """Payloads, without the wall time before the rest."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == masked(data[:8])
        payload, data = data[12 : 12 + length], data[12 + length :]
        assert data[:4] == masked(payload)
        assert payload[:1] == b"\x09"
        assert struct.unpack("<d", payload[1:9])[0] > 1e9
        found.append(payload[9:])
        data = data[4:]
    return found


def test_scalars_are_where_the_format_says(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "a", 0)
    events.add(300, {"train/mel": 1.5})
    version, start, scalar = records(events.path.read_bytes())
    assert version == b"\x1a\x0dbrain.Event:2"
    assert start == b"\x10\x01\x3a\x02\x08\x01"  # step 1, session_log {status: START}
    value = b"\x0a\x09train/mel\x15" + struct.pack("<f", 1.5)
    assert scalar == b"\x10\xac\x02\x2a" + varint(len(value) + 2) + b"\x0a" + varint(len(value)) + value


def test_a_file_per_start_and_the_same_start_anew(tmp_path: Path) -> None:
    for start in (0, 7, 7):
        EventFile(tmp_path, start).add(start + 1, {"x": 1.0})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["events.out.tfevents.0000000000", "events.out.tfevents.0000000007"]
    assert all(len(records(path.read_bytes())) == 3 for path in tmp_path.iterdir())


def test_the_mask_is_the_published_one() -> None:
    """The mask of crc32c: rotated right by 15 bits, plus 0xa282ead8."""
    crc = 0xE3069283
    assert masked(b"123456789") == struct.pack("<I", ((crc >> 15) + (crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**40])
def test_varints_come_back(value: int) -> None:
    groups = varint(value)
    assert sum((byte & 127) << 7 * place for place, byte in enumerate(groups)) == value
    assert [byte >> 7 for byte in groups] == [1] * (len(groups) - 1) + [0]
