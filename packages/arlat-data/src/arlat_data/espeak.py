"""One run of espeak-ng in a process of its own: JSON on stdin, 16-bit samples on stdout, nothing but the standard library.

espeak-ng carries state from one utterance to the next, even through its own Terminate and Initialize, so the same
sentence sounds different the second time; in a fresh process the same jobs give the same samples. See `voices`.

stdin: {"library": path, "data": path, "jobs": [{"voice", "text", "rate", "pitch", "range"}, …]}.
stdout: per job the number of bytes (uint32, little-endian), then that many bytes of int16 mono at 22 050 Hz.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any

RATE_HZ = 22050
SYNCHRONOUS, DO_NOT_EXIT = 2, 0x8000
RATE, PITCH, RANGE = 1, 3, 4
UTF8 = 1
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(library: str, data: str, jobs: list[dict[str, Any]]) -> Iterator[bytes]:
    """Yields each job's samples as bytes; raises RuntimeError when espeak-ng refuses something."""
    engine = ctypes.CDLL(library)
    engine.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    rate = engine.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
    if rate != RATE_HZ:
        raise RuntimeError(f"espeak-ng starts at {rate} Hz, expected {RATE_HZ}; its data folder is {data}")
    engine.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else Initialize's: the breath of some voices changes by the second
    samples = bytearray()

    def receive(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return 0

    callback = CALLBACK(receive)
    engine.espeak_SetSynthCallback(callback)
    for job in jobs:
        samples.clear()
        text = str(job["text"]).encode()
        codes = [
            engine.espeak_SetVoiceByName(str(job["voice"]).encode()),
            engine.espeak_SetParameter(RATE, int(job["rate"]), 0),
            engine.espeak_SetParameter(PITCH, int(job["pitch"]), 0),
            engine.espeak_SetParameter(RANGE, int(job["range"]), 0),
            engine.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None),
            engine.espeak_Synchronize(),
        ]
        if any(codes) or not samples:
            raise RuntimeError(f"espeak-ng answers {codes} with {len(samples)} bytes to {job}")
        yield bytes(samples)


def main() -> int:
    """Reads the jobs and writes the samples; the library's own chatter goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    for samples in speak(request["library"], request["data"], request["jobs"]):
        out.write(struct.pack("<I", len(samples)) + samples)
    out.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
