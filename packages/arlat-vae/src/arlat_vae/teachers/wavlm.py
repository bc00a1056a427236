"""Hidden states of a WavLM (arXiv:2110.13900): 50 frames a second of 16 kHz audio."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from arlat_core.config import UserError
from arlat_data.codecs._transformers import PretrainedConfig, load_model
from torch import Tensor

from arlat_vae.crops import Clips
from arlat_vae.teacher import TeacherConfig

SAMPLE_RATE = 16_000


class Pretrained(PretrainedConfig):
    """Where the weights are."""

    brought_by: ClassVar[tuple[str, str | None]] = ("arlat-vae", "semantic")

    def spelled(self, name: str, folder: str, revision: str | None = None) -> str:
        """As settings of `arlat vae train`."""
        return f"teacher.folder={folder}" + ("" if revision is None else f" --teacher.hub teacher.revision={revision}")


class WavLM:
    """transformers' WavLMModel, one of its hidden layers."""

    def __init__(self, model: Any, layer: int | None, device: str = "cpu") -> None:
        config = model.config
        if layer is not None and layer > config.num_hidden_layers:
            raise UserError(f"teacher.layer is {layer}, but this WavLM has layers 0 to {config.num_hidden_layers}.")
        self._model = model.to(device).eval().requires_grad_(False)
        self._layer = config.num_hidden_layers if layer is None else layer
        self._hop, reach = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            reach += (kernel - 1) * self._hop
            self._hop *= stride
        self._reach = reach
        # What the model's own feature extractor does: each clip to mean 0 and variance 1, for those with layer norms.
        self._normalised = config.feat_extract_norm == "layer"
        self.sample_rate, self.frame_rate, self.dim = SAMPLE_RATE, SAMPLE_RATE / self._hop, int(config.hidden_size)
        self.first_seconds = reach / 2 / SAMPLE_RATE

    @torch.no_grad()
    def features(self, audio: Tensor) -> Tensor:
        """[b n] at 16 kHz -> [b t F]."""
        if self._normalised:
            audio = (audio - audio.mean(1, keepdim=True)) / (audio.var(1, keepdim=True, correction=0) + 1e-7).sqrt()
        audio = F.pad(audio, (0, max(0, self._reach - audio.shape[1])))
        with torch.autocast(audio.device.type, enabled=False):
            hidden: Tensor = self._model(audio, output_hidden_states=True).hidden_states[self._layer]
        if not math.isfinite(float(hidden.abs().max())):
            raise UserError("The teacher's features are not finite: its weights are broken. Fetch them anew.")
        return hidden


def build(config: TeacherConfig, clips: Clips, sample_rate: int, device: str) -> WavLM:
    """Reads a WavLM from a folder or the hub's cache; nothing is downloaded unasked."""
    where = Pretrained(folder=config.folder, revision=config.revision, hub=config.hub)
    return WavLM(load_model(where, "wavlm", "WavLMModel"), config.layer, device)
