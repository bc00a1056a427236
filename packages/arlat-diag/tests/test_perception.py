"""Metrics against known answers, and the statuses of what has no score."""

from __future__ import annotations

import math
import os
import sys
import types
from pathlib import Path

import pytest
import soundfile
import torch
from arlat_core.testing.codec import example_audio
from arlat_data.audio import read_audio, resample
from arlat_diag import perception
from arlat_diag.perception import RATE, score
from torch import Tensor


@pytest.fixture(scope="module")
def data() -> Path:
    folder = Path(os.environ.get("ARLAT_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder / "data"


@pytest.fixture(scope="module")
def speech(data: Path) -> Tensor:
    samples, rate = soundfile.read(min((data / "speech").glob("*/*/*.flac")), dtype="float32", frames=3 * RATE)
    assert rate == RATE
    return torch.from_numpy(samples)


def noise(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(sound: Tensor) -> Tensor:
    """Noise of the sound's own power about the mean, orthogonal to it."""
    s, n = sound.double() - sound.double().mean(), noise(sound).double()
    n = n - n.mean()
    n = n - (n @ s) / (s @ s) * s
    return n * s.norm() / n.norm()


@pytest.mark.parametrize("ratio_db", [-10.0, 0.0, 25.0])
def test_si_sdr_is_the_ratio_that_was_mixed_at_any_scale_and_offset(ratio_db: float) -> None:
    sound = example_audio(1, 2 * RATE, RATE)[0]
    mixed = sound.double() + orthogonal(sound) * 10 ** (-ratio_db / 20)
    for decoded in (mixed, 0.1 * mixed + 0.2, -3 * mixed):
        assert perception.si_sdr(sound, decoded) == pytest.approx(ratio_db, abs=1e-4)


def test_si_sdr_of_the_original_itself_has_no_value() -> None:
    sound = example_audio(1, RATE, RATE)[0]
    assert score(perception.si_sdr, sound, 0.5 * sound).status == "infinite: the decoded sound is the original"


def test_mel_distance_of_half_the_level_is_ln_two() -> None:
    sound = 0.3 * noise(torch.zeros(2 * RATE)).clamp(-3, 3)
    assert perception.mel_distance(sound, sound) == 0.0
    assert perception.mel_distance(sound, sound / 2) == pytest.approx(math.log(2), rel=0.01)


@pytest.mark.parametrize(("metric", "best"), [("pesq_wb", 4.643888), ("stoi", 1.0), ("estoi", 1.0)])
def test_perceptual_metrics_are_best_on_the_original_and_fall_with_noise(
    metric: str, best: float, speech: Tensor
) -> None:
    pytest.importorskip("pesq", reason="arlat-diag[perceptual] is not installed")
    pytest.importorskip("pystoi", reason="arlat-diag[perceptual] is not installed")
    found = [score(perception.METRICS[metric], speech, speech + x * noise(speech)).value for x in (0, 1e-3, 1e-2, 1e-1)]
    assert found[0] == pytest.approx(best, abs=1e-5)
    assert found == sorted(found, reverse=True)
    assert found[3] < 0.7 * best


def raw(path: Path) -> Tensor:
    """The first channel as it stands in the file, at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(torch.from_numpy(samples[:, 0].copy()), rate, RATE)


@pytest.mark.parametrize(
    ("file", "status"),
    [
        ("silence_3s.flac", "silent: original"),
        ("near_silence_noise.flac", "silent: original"),
        ("short_0p05s.flac", "too short"),
        ("short_1sample.wav", "too short"),
        ("8k_0_george_5.wav", "ok"),
        ("8k_0_nicolas_5.wav", "too short"),
        ("nan_float32.wav", "non-finite: original"),
        ("inf_float32.wav", "non-finite: original"),
        ("clipped_hard_synthetic.flac", "ok"),
        ("clipped_real_5561-39621-0000.flac", "ok"),
        ("dc_offset.flac", "ok"),
        ("float_over_full_scale.wav", "ok"),
    ],
)
def test_odd_files_have_a_score_or_a_status_and_never_a_zero(file: str, status: str, data: Path) -> None:
    sound = raw(data / "odd" / file)[: 3 * RATE]
    decoded = sound + 1e-2 * noise(sound)
    for metric in ("si_sdr", "mel_distance"):
        found = score(perception.METRICS[metric], sound, decoded)
        assert (found.status, found.value is None) == (status, status != "ok")
        assert found.value is None or (math.isfinite(found.value) and found.value != 0)


@pytest.mark.parametrize(
    "file", ["stereo_44k1_24bit_jfk.flac", "stereo_antiphase.flac", "clipped_real_1963-142393-0000.flac"]
)
def test_stereo_and_clipped_speech_is_scored_by_all(file: str, data: Path) -> None:
    pytest.importorskip("pesq", reason="arlat-diag[perceptual] is not installed")
    pytest.importorskip("pystoi", reason="arlat-diag[perceptual] is not installed")
    audio = read_audio(data / "odd" / file)
    sound = resample(audio.samples, audio.rate, RATE)[: 3 * RATE]
    found = {
        name: score(perception.METRICS[name], sound, sound + 1e-3 * noise(sound))
        for name in ("pesq_wb", "stoi", "estoi")
    }
    assert {item.status for item in found.values()} == {"ok"}
    assert all(item.value is not None and item.value > 0.8 for item in found.values())


def test_silence_of_the_decoder_and_what_is_not_finite_are_named(speech: Tensor) -> None:
    silent, broken = torch.zeros_like(speech), speech.clone()
    broken[7] = math.nan
    for name, metric in perception.METRICS.items():
        assert score(metric, speech, silent).status == "silent: decoded", name
        assert score(metric, speech, broken).status == "non-finite: decoded", name
    assert score(lambda a, b: math.inf, speech, speech).status == "non-finite"


def test_lengths_that_differ_are_the_programmers_mistake(speech: Tensor) -> None:
    with pytest.raises(ValueError, match="equal length"):
        score(perception.si_sdr, speech, speech[:-1])


def test_little_speech_between_silence_is_too_short_for_stoi(speech: Tensor) -> None:
    pytest.importorskip("pystoi", reason="arlat-diag[perceptual] is not installed")
    loud = int(speech.square().unfold(0, 2000, 1000).sum(-1).argmax()) * 1000
    sound = torch.zeros_like(speech)
    sound[loud : loud + 2000] = speech[loud : loud + 2000]
    found = score(perception.stoi, sound, sound + 1e-4 * noise(sound))
    assert found.status == "too short: less than 0.4 s of speech"
    assert found.value is None


@pytest.mark.parametrize(
    ("package", "metric", "extra"),
    [
        ("pesq", "pesq_wb", "perceptual"),
        ("pystoi", "stoi", "perceptual"),
        ("pystoi", "estoi", "perceptual"),
        ("distillmos", "mos", "mos"),
    ],
)
def test_a_missing_package_is_not_run(
    package: str, metric: str, extra: str, speech: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    perception.mos_model.cache_clear()
    found = score(perception.METRICS[metric], speech, speech + 0.01 * noise(speech))
    assert (found.value, found.status) == (None, f"not run: install arlat-diag[{extra}]")


def test_mos_loads_its_model_once_quietly_and_hears_the_decoded_sound_alone(
    speech: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Double(torch.nn.Module):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            print("weights loaded from somewhere")
            type(self).made += 1

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            assert x.shape == (1, len(speech))
            return 1 + 4 * x.abs().amax(1, keepdim=True)

    package = types.ModuleType("distillmos")
    package.ConvTransformerSQAModel = Double  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "distillmos", package)
    perception.mos_model.cache_clear()
    decoded = 0.5 * speech / speech.abs().max()
    assert [score(perception.mos, original, decoded).value for original in (speech, noise(speech))] == [3.0, 3.0]
    perception.mos_model.cache_clear()
    assert Double.made == 1
    assert capsys.readouterr().out == ""


def test_mos_of_speech_is_above_that_of_noisy_speech(speech: Tensor) -> None:
    pytest.importorskip("distillmos", reason="arlat-diag[mos] is not installed")
    perception.mos_model.cache_clear()
    clean, noisy = (score(perception.mos, speech, sound).value for sound in (speech, speech + 0.05 * noise(speech)))
    assert clean is not None
    assert noisy is not None
    assert 5 > clean > noisy + 0.5 > 1.5
