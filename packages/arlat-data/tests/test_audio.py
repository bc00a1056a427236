"""Every odd file is read rightly or refused with its reason; damage that libsndfile passes over is found."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from arlat_data import audio as audio_module
from arlat_data.audio import AudioError, audio_info, read_audio, resample
from arlat_data.containers import announced, ogg_checksum
from torch import Tensor


class Right(NamedTuple):
    """A file that must be read: samples, rate, part of its note ('' = no note), least correlation with the original."""

    samples: int
    rate: int
    note: str = ""
    like: float | None = None


DIGITS = {
    "8k_0_george_5.wav": 5145, "8k_0_jackson_5.wav": 4591, "8k_0_lucas_5.wav": 4830, "8k_0_nicolas_5.wav": 3251,
    "8k_0_theo_5.wav": 3311, "8k_0_yweweler_5.wav": 3227, "8k_7_george_5.wav": 4960, "8k_7_jackson_5.wav": 3566,
    "8k_7_lucas_5.wav": 4314, "8k_7_nicolas_5.wav": 2444, "8k_7_theo_5.wav": 2922, "8k_7_yweweler_5.wav": 3778,
}  # fmt: skip
# str: part of the reason. `like`: correlation, without a shift, with the clip that most of the files were made from.
ODD: dict[str, Right | str] = {
    **{name: Right(samples, 8000) for name, samples in DIGITS.items()},
    "ODD.md": "not readable as audio",
    "UPPER.FLAC": Right(242000, 16000, like=1.0),
    "aac.m4a": "AAC",
    "clipped_hard_synthetic.flac": "clipped: 38.1%",
    "clipped_real_1963-142393-0000.flac": Right(103600, 16000),
    "clipped_real_5561-39621-0000.flac": Right(43360, 16000),
    "corrupt_body.flac": "damaged",
    "corrupt_magic.flac": "not readable as audio",
    "corrupt_md5.flac": "MD5",
    "corrupt_streaminfo.flac": Right(242000, 16000, like=1.0),
    "corrupt_streaminfo_rate.flac": "not readable as audio",
    "dc_offset.flac": Right(242000, 16000, "DC offset +0.244", 1.0),
    "eight_channels.flac": Right(32000, 16000, "channel 1 is used", 1.0),
    "empty_0s.flac": "empty",
    "empty_0s.wav": "0 samples",
    "flac_named.wav": Right(242000, 16000, like=1.0),
    "float64.wav": Right(32000, 16000, like=1.0),
    "float_over_full_scale.wav": Right(48000, 16000, "scaled by 0.1063", 1.0),
    "inf_float32.wav": "2 samples are NaN or infinite",
    "meeting_overlap_float32_ami.wav": Right(480001, 16000),
    "mono_11k025_8bit.wav": Right(22050, 11025, like=0.96),
    "mono_48k_24bit.flac": Right(550949, 48000, "5 samples at full scale"),
    "mono_96k_24bit.wav": Right(192000, 96000, like=0.99),
    "mp3.mp3": Right(64000, 16000, like=0.98),
    "mulaw_8k.wav": Right(121000, 8000, like=0.93),
    "nan_float32.wav": "10 samples are NaN or infinite",
    "near_silence_noise.flac": Right(48000, 16000, "very quiet (-90 dBFS)"),
    "opus.opus": Right(64000, 16000, like=0.94),
    "short_0p05s.flac": Right(800, 16000),
    "short_1sample.wav": Right(1, 16000),
    "silence_3s.flac": "silent: every sample is zero",
    "stereo_44k1_24bit_jfk.flac": Right(485100, 44100, "mean of 2 channels"),
    "stereo_antiphase.flac": Right(242000, 16000, "channel 1 is used", 1.0),
    "stereo_one_channel_silent.flac": Right(242000, 16000, "only channel 1 of 2 has sound", 1.0),
    "text_renamed.flac": "not readable as audio",
    "truncated_60pct.flac": "damaged",
    "truncated_60pct.wav": "truncated: the header announces 484000 bytes",
    "vorbis.ogg": Right(64000, 16000, like=0.98),
    "zero_bytes.flac": "empty",
}


@pytest.fixture(scope="module")
def odd() -> Path:
    shared = Path(os.environ.get("ARLAT_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
    if not shared.is_dir():
        pytest.skip(f"{shared} is missing")
    return shared / "data/odd"


@pytest.fixture(scope="module")
def original(odd: Path) -> Tensor:
    return read_audio(odd / "UPPER.FLAC").samples


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two signals cut to the shorter one, at lag 0."""
    n = min(len(a), len(b))
    return float(torch.corrcoef(torch.stack([a[:n].double(), b[:n].double()]))[0, 1])


def noise(samples: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_every_odd_file_has_an_expectation(odd: Path) -> None:
    assert sorted(path.name for path in odd.iterdir()) == sorted(ODD)


@pytest.mark.parametrize("name", sorted(ODD))
def test_an_odd_file_is_right_or_refused(odd: Path, original: Tensor, name: str) -> None:
    expected = ODD[name]
    if isinstance(expected, str):
        with pytest.raises(AudioError, match=expected.replace("(", "\\(")):
            read_audio(odd / name)
        return
    audio = read_audio(odd / name)
    assert (len(audio.samples), audio.rate) == (expected.samples, expected.rate)
    assert audio.samples.dtype == torch.float32
    assert audio.samples.abs().max() <= 1
    assert (expected.note in audio.note) if expected.note else audio.note == ""
    info = audio_info(odd / name)
    assert (info.frames, info.rate) == (expected.samples, expected.rate)
    if expected.like is not None:
        found = correlation(resample(audio.samples, audio.rate, 16000), original)
        assert found >= expected.like - 1e-4


def test_levels_are_those_of_the_file(odd: Path, original: Tensor) -> None:
    """An antiphase pair, a silent channel and eight delayed channels come out at the level of the one voice in them."""
    for name in ("stereo_antiphase.flac", "stereo_one_channel_silent.flac", "flac_named.wav", "eight_channels.flac"):
        samples = read_audio(odd / name).samples
        assert torch.equal(samples, original[: len(samples)]), name


def test_info_is_the_header(odd: Path) -> None:
    info = audio_info(odd / "stereo_44k1_24bit_jfk.flac")
    assert (info.frames, info.rate, info.channels) == (485100, 44100, 2)
    with pytest.raises(AudioError, match="truncated"):
        audio_info(odd / "truncated_60pct.wav")


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_md5_of_a_flac_is_that_of_its_samples(tmp_path: Path, subtype: str, channels: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.tile(noise(5000)[:, None], channels), 16000, subtype=subtype)
    assert announced(path).md5 is not None
    assert len(read_audio(path).samples) == 5000
    data = bytearray(path.read_bytes())
    data[26:42] = bytes(16)  # an absent MD5 is allowed
    path.write_bytes(data)
    assert len(read_audio(path).samples) == 5000
    data[26] = 1
    path.write_bytes(data)
    with pytest.raises(AudioError, match="MD5"):
        read_audio(path)


def test_a_flac_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(5000), 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # total samples 0: unknown, as encoders write to a pipe
    path.write_bytes(data)
    assert len(read_audio(path).samples) == 5000
    assert audio_info(path).frames == 5000


FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("RF64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"),
    ("W64", "PCM_16"), ("NIST", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "subtype"), FORMATS)
def test_a_cut_file_is_refused_in_every_format(tmp_path: Path, container: str, subtype: str) -> None:
    whole, cut = tmp_path / "whole.x", tmp_path / "cut.x"
    soundfile.write(str(whole), noise(32000), 16000, format=container, subtype=subtype)
    assert abs(len(read_audio(whole).samples) - 32000) <= 1024
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(AudioError):
        read_audio(cut)


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
def test_flipped_bytes_are_found_where_the_format_has_a_checksum(tmp_path: Path, container: str, subtype: str) -> None:
    path = tmp_path / "a.x"
    soundfile.write(str(path), noise(32000), 16000, format=container, subtype=subtype)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(AudioError, match="damaged"):
        read_audio(path)


def test_a_missing_ogg_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(str(path), noise(64000), 16000, format="OGG", subtype="VORBIS")
    data = path.read_bytes()
    starts = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    path.write_bytes(data[: starts[3]] + data[starts[4] :])
    with pytest.raises(AudioError, match="page 3 is missing"):
        read_audio(path)


def test_ogg_checksum_is_the_textbook_one() -> None:
    page, remainder = bytes(range(60)), 0
    for byte in page:  # one bit after the other, by the definition
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x04C11DB7 if remainder & 0x80000000 else 0)) & 0xFFFFFFFF
    assert ogg_checksum(page) == remainder


def wav(path: Path, samples: np.ndarray, announced_bytes: int | None = None, tail: bytes = b"") -> Path:
    """Writes a 16-bit WAV whose data chunk announces what the test wants."""
    body = (samples * 32767).astype("<i2").tobytes()
    size = len(body) if announced_bytes is None else announced_bytes
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36, b"WAVE", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16, b"data", size
    )
    path.write_bytes(head + body + tail)
    return path


def test_wav_headers_of_recorders(tmp_path: Path) -> None:
    streamed = read_audio(wav(tmp_path / "pipe.wav", noise(4000), 0xFFFFFFFF))
    assert len(streamed.samples) == 4000
    assert "no length" in streamed.note
    with pytest.raises(AudioError, match="not finished"):
        read_audio(wav(tmp_path / "crashed.wav", noise(4000), 0))
    tagged = read_audio(wav(tmp_path / "tagged.wav", noise(4000), tail=struct.pack("<4sI", b"LIST", 4) + b"INFO"))
    assert len(tagged.samples) == 4000
    (tmp_path / "head.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0")
    with pytest.raises(AudioError, match="cut off before"):
        read_audio(tmp_path / "head.wav")


def test_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"

    def read(samples: np.ndarray) -> audio_module.Audio:
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        return read_audio(path)

    over = noise(16000)
    over[100] = 1.25  # what a lossy decoder overshoots
    assert float(read(over).samples.abs().max()) == 1.0
    np.testing.assert_allclose(read(over).samples.numpy(), over / 1.25, atol=1e-7)
    with pytest.raises(AudioError, match="another unit"):
        read(noise(16000) * 32768)
    with pytest.raises(AudioError, match=r"silent: every sample is 0\.25"):
        read(np.full(16000, 0.25, np.float32))
    with pytest.raises(AudioError, match="clipped"):
        read(np.clip(noise(16000, scale=0.6), -0.9, 0.9))
    assert read(np.clip(noise(16000, scale=0.3), -0.9, 0.9)).note == ""
    quiet = np.sign(noise(16000)) / 2**14  # two levels only, but no clipping
    assert "very quiet" in read(quiet).note


def test_unrelated_channels_are_averaged_and_delayed_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    left, right = noise(16000, 1), noise(16000, 2)
    soundfile.write(path, np.stack([left, right], 1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path).samples.numpy(), (left + right) / 2, atol=1e-7)
    quieter = np.stack([0.5 * left, -0.9 * left, 0 * left], 1)
    soundfile.write(path, quieter, 16000, subtype="FLOAT")
    audio = read_audio(path)
    np.testing.assert_allclose(audio.samples.numpy(), quieter[:, 1], atol=1e-7)
    assert "channel 2 is used" in audio.note


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wav(tmp_path / "a.wav", noise(4000))
    plain = soundfile.SoundFile.read

    def read(self: soundfile.SoundFile, *args: object, **kwargs: object) -> np.ndarray:
        block: np.ndarray = plain(self, *args, **kwargs)
        with path.open("ab") as file:
            file.write(b"more")
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(AudioError, match="changed while it was read"):
        read_audio(path)


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    expected = {
        "pipe.wav": "not a regular",
        "gone.wav": "dangling",
        "loop.wav": "cannot be opened",
        "no.wav": "no such",
    }
    for name, reason in expected.items():
        with pytest.raises(AudioError, match=reason):
            read_audio(tmp_path / name)
    path = wav(tmp_path / "a.wav", noise(4000))
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser reads everything
    with pytest.raises(AudioError, match="Permission denied"):
        read_audio(path)


@pytest.mark.parametrize("name", ["naïve 音声.wav", 'it\'s "$HOME" `x`;.wav', os.fsdecode(b"caf\xe9.wav"), "a\nb.wav"])
def test_names(tmp_path: Path, name: str) -> None:
    assert len(read_audio(wav(tmp_path / name, noise(4000))).samples) == 4000


def test_twenty_minutes(odd: Path, original: Tensor, tmp_path: Path) -> None:
    path, times = tmp_path / "long.flac", 80  # 80 × 15.125 s of real speech, end to end
    soundfile.write(path, np.tile(original.numpy(), times), 16000)
    audio = read_audio(path)
    assert len(audio.samples) == times * len(original)
    assert len(audio.samples) / audio.rate > 1200
    assert torch.equal(audio.samples[-len(original) :], original)


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_blocks_leave_no_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, subtype: str) -> None:
    path = tmp_path / "a.x"
    soundfile.write(str(path), noise(48000), 16000, format=container, subtype=subtype)
    whole = read_audio(path).samples
    monkeypatch.setattr(audio_module, "BLOCK_FRAMES", 1000)
    assert torch.equal(read_audio(path).samples, whole)


def test_a_file_beyond_three_hours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_module, "MAX_SECONDS", 1)
    with pytest.raises(AudioError, match="cut it into shorter files"):
        read_audio(wav(tmp_path / "a.wav", noise(16001)))


@pytest.mark.parametrize(
    ("old", "new"), [(48000, 16000), (22050, 24000), (8000, 24000), (44100, 16000), (11025, 24000)]
)
def test_resampling_keeps_a_sine_and_cuts_what_does_not_fit(old: int, new: int) -> None:
    time = torch.arange(old, dtype=torch.float64) / old
    sine = (0.5 * torch.sin(2 * torch.pi * 440 * time)).float()
    out = resample(sine, old, new)
    truth = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(new, dtype=torch.float64) / new)
    assert out.shape == (new,)
    middle = slice(new // 10, -new // 10)
    assert (out[middle] - truth[middle]).abs().max() < 2e-4
    if new < old:
        high = (0.5 * torch.sin(2 * torch.pi * 0.55 * new * time)).float()
        assert resample(high, old, new)[middle].abs().max() < 1e-3


def test_resampling_edges() -> None:
    samples = torch.tensor([0.25])
    assert resample(samples, 16000, 24000).shape == (2,)
    assert resample(torch.zeros(0), 16000, 24000).shape == (0,)
    assert resample(samples, 16000, 16000) is samples
    square = torch.ones(400).where(torch.arange(400) % 40 < 20, -torch.ones(400))
    assert resample(square, 16000, 24000).abs().max() <= 1
    with pytest.raises(AudioError, match="no small ratio"):
        resample(torch.zeros(100), 44101, 24000)


@pytest.mark.parametrize(("samples", "old", "new"), [(90569, 22050, 16000), (120427, 22050, 24000), (7, 3, 2)])
def test_resampled_lengths_are_exact(samples: int, old: int, new: int) -> None:
    """torchaudio alone computes the length in float32, which is one sample short for the first two."""
    time = torch.arange(samples) / old
    out = resample(0.5 * torch.sin(2 * torch.pi * 440 * time), old, new)
    assert len(out) == -(-samples * new // old)
