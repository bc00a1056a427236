"""Crops: a function of the counter, uniform over places, never silent where sound is near, never beyond full scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from arlat_data.audio import read_audio, resample
from arlat_data.corpus import scan
from arlat_vae.crops import Clips, CropConfig, Stream, batch, counter, crop, prepare
from torch import Tensor


def clips(*parts: Tensor) -> Clips:
    length = torch.tensor([len(part) for part in parts])
    samples = (torch.cat(parts) * 32767).round().to(torch.int16).numpy()
    return Clips(samples, length.cumsum(0) - length, length)


def ramp(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count) / 32767


def test_crops_are_a_function_of_the_counter() -> None:
    source = clips(0.1 * torch.randn(5000, generator=torch.Generator().manual_seed(0)))

    def drawn(seed: int, step: int, stream: Stream, attempt: int = 0, rows: tuple[int, ...] = (0, 1, 2)) -> Tensor:
        return batch(source, 100, CropConfig(), [counter(seed, step, stream, row, attempt) for row in rows])

    assert torch.equal(drawn(1, 2, "crops"), drawn(1, 2, "crops"))
    others = [drawn(2, 2, "crops"), drawn(1, 3, "crops"), drawn(1, 2, "held_out"), drawn(1, 2, "crops", 1)]
    assert not any(torch.equal(drawn(1, 2, "crops"), other) for other in others)
    assert torch.equal(drawn(1, 2, "crops", rows=(0, 2)), drawn(1, 2, "crops")[::2])


def test_every_place_is_as_likely_and_no_crop_crosses_clips() -> None:
    source = clips(ramp(3000, 7), ramp(16_000, 4), ramp(30_000, 2))
    config = CropConfig(gain_db=0)
    generator = torch.Generator().manual_seed(0)
    counts: dict[int, int] = {}
    for _ in range(3000):
        found = crop(source, 4, config, generator)
        steps = found.diff()[found[1:] > 0] * 32767
        torch.testing.assert_close(steps, torch.ones_like(steps), atol=0.02, rtol=0)
        first = round(float(found[0]) * 32767)
        counts[first] = counts.get(first, 0) + 1
    assert set(counts) == {3000, 3001, 3002, 3003, 16_000, 30_000}  # four places, one, and one
    assert all(abs(value - 500) < 5 * 500**0.5 for value in counts.values())


def test_a_short_clip_is_filled_with_zeros() -> None:
    found = crop(clips(torch.full((3,), 0.5)), 5, CropConfig(gain_db=0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_silence_is_drawn_anew() -> None:
    speech = 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    source = clips(torch.zeros(1000), speech)
    quiet = [float(crop(source, 50, CropConfig(), torch.Generator().manual_seed(i)).abs().max()) for i in range(200)]
    assert sum(value == 0 for value in quiet) <= 6  # 2⁻⁸ of them, where it would be half
    silent = crop(clips(torch.zeros(100)), 50, CropConfig(), torch.Generator().manual_seed(0))
    assert torch.equal(silent, torch.zeros(50))


def test_sound_that_is_not_finite_is_never_a_crop() -> None:
    broken = Clips(np.full(100, np.nan, np.float32), torch.tensor([0]), torch.tensor([100]))
    assert torch.equal(crop(broken, 10, CropConfig(), torch.Generator()), torch.zeros(10))


def test_gain_varies_and_never_clips() -> None:
    tone = 0.4 * torch.sin(torch.arange(1000) / 3)
    peaks = [
        float(crop(clips(tone), 200, CropConfig(gain_db=20), torch.Generator().manual_seed(i)).abs().max())
        for i in range(100)
    ]
    assert max(peaks) <= 1.0 + 1e-6
    assert sum(peak > 0.999 for peak in peaks) > 10
    assert 0.04 * 0.9 < min(peaks) < 0.1


def test_speech_is_prepared_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for speaker, rate in ((1, 16_000), (2, 24_000)):
        (tmp_path / "a" / str(speaker) / "1").mkdir(parents=True)
        sound = 0.3 * np.sin(np.arange(rate // 2 + speaker) * 0.2) + 0.01 * generator.normal(size=rate // 2 + speaker)
        soundfile.write(tmp_path / "a" / str(speaker) / "1" / f"{speaker}-1-0000.flac", sound, rate)
    utterances = list(scan(tmp_path / "a").utterances)
    found = prepare(utterances, 24_000, tmp_path / "train")
    for index, utterance in enumerate(utterances):
        audio = read_audio(utterance.path)
        expected = resample(audio.samples, audio.rate, 24_000)
        assert int(found.length[index]) == len(expected)
        torch.testing.assert_close(found.read(index, 0, len(expected)), expected, atol=2e-5, rtol=0)
    before = (tmp_path / "train.npy").stat().st_mtime_ns
    again = prepare(utterances, 24_000, tmp_path / "train")
    assert np.array_equal(again.samples, found.samples)
    assert (tmp_path / "train.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="read-only"):
        again.samples[0] = 1
