"""One audio file to mono float32 samples, or to a sentence that says why not.

What is done to samples, and what is not (each is told in `Audio.note`):

- Several channels are averaged. Channels that are silent beside the loudest (60 dB down) are left out, and where the
  average keeps less than 40 % of the channels' power (antiphase wiring; microphones apart, whose delays make a comb),
  the loudest channel is taken instead. Two unrelated channels keep 50 %.
- Samples beyond full scale (float files, lossy decoders) are scaled down as a whole to peak 1, never clipped; a peak
  above 16 is refused, since such a file holds integers or another unit.
- A DC offset, a low level and single full-scale samples stay as they are.

Refused: NaN and infinity, files shorter than they announce, FLAC whose MD5 is wrong, constant signals (digital
silence), more than 1 % of samples on the rails (clipping), longer than 3 hours, and files that change under the reader.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from arlat_data.containers import Announced, AudioError, announced

__all__ = ["Audio", "AudioError", "AudioInfo", "audio_info", "read_audio", "resample"]

BLOCK_FRAMES = 1 << 20
MAX_SECONDS = 3 * 3600
MAX_PEAK = 16.0
SILENT_CHANNEL = 1e-6  # of the loudest channel's power, 60 dB
KEPT_POWER = 0.4  # of the channels' mean power; two channels of equal level keep less below correlation -0.2
CLIPPED_FRACTION = 0.01
CLIPPED_PEAK = 0.5  # below it, samples at the file's extremes say nothing: quiet files have few levels
QUIET_DB = -60.0
OFFSET = 0.02
MAX_KERNEL = 1 << 26  # elements of a resampling filter, 256 MB


@dataclass(frozen=True)
class Audio:
    """Mono float32 samples [n] in [-1, 1] at `rate` Hz; `note` says what was done to them, empty if nothing."""

    samples: Tensor
    rate: int
    note: str = ""


class Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from front to back; soundfile else seeks after each block, which a lossy decoder feels."""

    def seekable(self) -> bool:
        """Always False."""
        return False


@dataclass(frozen=True)
class AudioInfo:
    """Length in frames (samples per channel), rate in Hz and number of channels, by the header."""

    frames: int
    rate: int
    channels: int


def audio_info(path: Path) -> AudioInfo:
    """Reads a file's header and checks that the announced data is there; decodes only where the header has no length."""
    check_regular(path)
    promised(path)
    with open_sound(path) as file:
        frames = int(file.frames)
        if not 0 <= frames <= MAX_SECONDS * file.samplerate:
            frames = sum(len(block) for block in blocks(file, "float32"))
        return AudioInfo(frames, int(file.samplerate), int(file.channels))


def read_audio(path: Path) -> Audio:
    """Decodes a file whole to mono; raises AudioError with the reason when it cannot be read rightly."""
    before = check_regular(path)
    promise = promised(path)
    frames, rate = decode(path, promise)
    after = check_regular(path)
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise AudioError("the file changed while it was read")
    if len(frames) == 0:
        raise AudioError("the file holds 0 samples")
    if not np.isfinite(frames).all():
        raise AudioError(f"{int((~np.isfinite(frames)).sum())} samples are NaN or infinite")
    notes = [promise.note] if promise.note else []
    mono = downmix(frames, notes)
    mono = check_levels(mono, notes)
    return Audio(torch.from_numpy(mono), rate, "; ".join(notes))


def check_regular(path: Path) -> os.stat_result:
    """Stats a file, following links; raises AudioError for what is missing, forbidden or no regular file."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise AudioError("a dangling link" if path.is_symlink() else "no such file") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("not a regular file")
    if not os.access(path, os.R_OK):
        raise AudioError("cannot be opened: Permission denied")
    return status


def promised(path: Path) -> Announced:
    """What the header announces; an error of the system becomes an AudioError."""
    try:
        return announced(path)
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from error


def open_sound(path: Path) -> Sequential:
    """Opens a file with libsndfile; the name goes as bytes, since it may be no valid Unicode."""
    try:
        return Sequential(os.fsencode(path))
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"not readable as audio: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """libsndfile's sentence without the path in front of it."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(". ")


def decode(path: Path, promise: Announced) -> tuple[np.ndarray, int]:
    """Decodes all frames to float32 [n c], and proves FLAC by its MD5 and every format by its announced length."""
    digest = hashlib.md5(usedforsecurity=False)
    is_flac = promise.bits > 0
    parts: list[np.ndarray] = []
    with open_sound(path) as file:
        rate, expected = int(file.samplerate), int(file.frames)
        if rate <= 0:
            raise AudioError(f"the sample rate is {rate} Hz")
        try:
            for block in blocks(file, "int32" if is_flac else "float32"):
                if is_flac:
                    digest.update(flac_bytes(block, promise.bits))
                    block = block.astype(np.float32) / np.float32(2**31)
                parts.append(block)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise AudioError(f"damaged: {reason(error)}") from error
        channels = int(file.channels)
    frames = np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)
    if expected < 1 << 62 and len(frames) != expected:
        raise AudioError(f"truncated: {expected} samples announced, {len(frames)} decoded")
    if promise.md5 is not None and digest.digest() != promise.md5:
        raise AudioError("damaged: the decoded samples do not have the MD5 that the FLAC header gives")
    return frames, rate


def blocks(file: Sequential, dtype: str) -> list[np.ndarray]:
    """Reads to the end in blocks [≤ 2^20 c]: a header's length may be unknown, and then is no size to allocate."""
    found: list[np.ndarray] = []
    total = 0
    while True:
        block = file.read(BLOCK_FRAMES, dtype=dtype, always_2d=True)
        if len(block) == 0:
            return found
        found.append(block)
        total += len(block)
        if total > MAX_SECONDS * file.samplerate:
            raise AudioError(f"longer than {MAX_SECONDS // 3600} hours; cut it into shorter files")


def flac_bytes(block: np.ndarray, bits: int) -> bytes:
    """Samples [n c], left-justified in int32, as FLAC's MD5 counts them: little-endian, interleaved, whole bytes."""
    values = block >> (32 - bits)
    if bits <= 8:
        return values.astype(np.int8).tobytes()
    if bits <= 16:
        return values.astype("<i2").tobytes()
    if bits <= 24:
        return np.ascontiguousarray(values.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return values.astype("<i4").tobytes()


def downmix(frames: np.ndarray, notes: list[str]) -> np.ndarray:
    """Channels [n c] to mono [n] by the rules at the head of this module."""
    count = frames.shape[1]
    if count == 1:
        return np.ascontiguousarray(frames[:, 0])
    power = np.array([np.square(frames[:, i], dtype=np.float64).mean() for i in range(count)])
    loud = np.flatnonzero(power > SILENT_CHANNEL * power.max())
    if power.max() == 0 or len(loud) == 1:
        if power.max() > 0:
            notes.append(f"only channel {loud[0] + 1} of {count} has sound and is used")
        return np.ascontiguousarray(frames[:, int(power.argmax())])
    mixed = frames[:, loud].mean(axis=1, dtype=np.float32)
    kept = float(np.square(mixed, dtype=np.float64).mean() / power[loud].mean())
    if kept < KEPT_POWER:
        best = int(power.argmax())
        notes.append(
            f"the {count} channels cancel (their mean keeps {kept:.0%} of the power); channel {best + 1} is used"
        )
        return np.ascontiguousarray(frames[:, best])
    silent = f", without {count - len(loud)} silent ones" if len(loud) < count else ""
    notes.append(f"mean of {count} channels{silent}")
    return np.ascontiguousarray(mixed)


def check_levels(samples: np.ndarray, notes: list[str]) -> np.ndarray:
    """Refuses silence and clipping, scales what exceeds full scale, and notes an odd level. [n] -> [n]"""
    low, high = float(samples.min()), float(samples.max())
    peak = max(-low, high)
    if len(samples) > 1 and low == high:
        raise AudioError("silent: every sample is zero" if peak == 0 else f"silent: every sample is {low:.4g}")
    if peak > MAX_PEAK:
        raise AudioError(f"the peak is {peak:.4g}, full scale is 1: the samples seem to be in another unit")
    railed = int(
        ((samples >= 0.9999 * high) & (high >= CLIPPED_PEAK) | (samples <= 0.9999 * low) & (low <= -CLIPPED_PEAK)).sum()
    )
    if railed > max(2, CLIPPED_FRACTION * len(samples)):
        raise AudioError(
            f"clipped: {railed / len(samples):.1%} of the samples sit at the extremes {low:.4g} and {high:.4g}"
        )
    full = int((np.abs(samples) >= 1 - 2**-15).sum())
    if peak > 1:
        notes.append(f"scaled by {1 / peak:.4g}, since the peak was {peak:.4g}")
        samples = samples / np.float32(peak)
    elif full:
        notes.append(f"{full} samples at full scale")
    mean = float(samples.mean(dtype=np.float64))
    level = 10 * math.log10(max(float(np.square(samples, dtype=np.float64).mean()), 1e-20))
    if abs(mean) > OFFSET:
        notes.append(f"DC offset {mean:+.3f}")
    if level < QUIET_DB:
        notes.append(f"very quiet ({level:.0f} dBFS)")
    return samples


def resample(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """[... n] -> [... ceil(n · to / from)] by a Kaiser-windowed sinc (64 zero crossings, rolloff 0.9476, β = 14.77).

    The filter is that of resampy's and librosa's "kaiser_best". Overshoot beyond the input's peak and full scale is cut.
    Raises AudioError for rates whose ratio needs a filter bank of more than 2^26 elements.
    """
    if from_rate == to_rate or samples.shape[-1] == 0:
        return samples
    from torchaudio.functional import resample as kaiser

    common = math.gcd(from_rate, to_rate)
    old, new = from_rate // common, to_rate // common
    width = math.ceil(64 * old / min(old, new))
    if new * (2 * width + old) > MAX_KERNEL:
        raise AudioError(f"{from_rate} Hz cannot be brought to {to_rate} Hz: no small ratio ({new}/{old})")
    limit = max(1.0, float(samples.abs().max()))
    length = -(-samples.shape[-1] * to_rate // from_rate)
    # torchaudio computes the length in float32, one too short for some clips of 4 s: it gets more, and is cut here.
    padded = torch.nn.functional.pad(samples, (0, 64 * old))
    out: Tensor = kaiser(
        padded,
        from_rate,
        to_rate,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    # torchaudio rounds the length in float32: from 2^17 samples on it can be one short or one long
    samples_out = -(-samples.shape[-1] * new // old)
    out = torch.nn.functional.pad(out, (0, max(0, samples_out - out.shape[-1])))[..., :samples_out]
    return out[..., :length].clamp(-limit, limit)
