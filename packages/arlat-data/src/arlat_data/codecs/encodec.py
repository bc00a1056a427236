"""EnCodec 24 kHz's continuous latents (128-d, 75 Hz), before the quantiser, through transformers or the encodec package."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any, Literal

import torch.nn.functional as F
from arlat_core.config import UserError
from arlat_core.registry import missing_extra
from arlat_core.types import LatentSpec, fingerprint
from torch import Tensor, nn

from arlat_data.codecs._frames import frame_count
from arlat_data.codecs._transformers import PretrainedConfig, load_model


class Config(PretrainedConfig):
    """`encodec=FOLDER`, or `encodec=facebook/encodec_24khz` where the hub's cache has it."""

    library: Literal["transformers", "encodec"] = "transformers"
    """Whose network runs; weights come from the same folder and results agree."""


class Encodec:
    """The encoder and decoder of an EnCodec model that is mono, not normalised and not chunked."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, spec: LatentSpec, device: str = "cpu") -> None:
        self._encoder = encoder.to(device).eval().requires_grad_(False)
        self._decoder = decoder.to(device).eval().requires_grad_(False)
        self._device = device
        self._spec = spec
        self._hop = round(spec.sample_rate / spec.frame_rate)

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(samples, self._hop)

    def encode(self, audio: Tensor) -> Tensor:
        frames = self.frames(audio.shape[-1])
        if frames == 0:
            return audio.new_zeros(len(audio), 0, self._spec.dim)
        padded = F.pad(audio.to(self._device), (0, frames * self._hop - audio.shape[-1]))
        z: Tensor = self._encoder(padded[:, None])  # [b, d, t]
        return z.transpose(1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0)
        sound: Tensor = self._decoder(latents.to(self._device).transpose(1, 2))  # [b, 1, n]
        return sound[:, 0]


def spec_of(model: Any) -> LatentSpec:
    """The spec of a transformers EncodecModel; raises UserError for the 48 kHz kind, which scales and chunks its input."""
    config = model.config
    if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
        raise UserError(
            f"Only mono EnCodec without normalisation and chunks is supported (facebook/encodec_24khz); this one has "
            f"{config.audio_channels} channels, normalize={config.normalize}, chunk_length_s={config.chunk_length_s}."
        )
    weights = {k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "decoder."))}
    return LatentSpec(
        codec="encodec",
        space="pre-quantiser",
        dim=config.hidden_size,
        frame_rate=config.sampling_rate / math.prod(config.upsampling_ratios),
        sample_rate=config.sampling_rate,
        fingerprint=fingerprint({"encodec": 1}, weights),
        # Its convolutions are causal, but reflect the clip's first frames to the left of its start: those see the future.
        causal=config.use_causal_conv and config.pad_mode != "reflect" and config.norm_type == "weight_norm",
    )


def package_networks(model: Any) -> tuple[nn.Module, nn.Module]:
    """The encodec package's encoder and decoder with the weights of a transformers EncodecModel."""
    try:
        from encodec.modules.seanet import SEANetDecoder, SEANetEncoder
    except ImportError as error:
        raise missing_extra("arlat-data", "encodec", error) from error
    config = model.config
    options = {
        "channels": config.audio_channels,
        "dimension": config.hidden_size,
        "n_filters": config.num_filters,
        "n_residual_layers": config.num_residual_layers,
        "ratios": list(config.upsampling_ratios),
        "norm": config.norm_type,
        "kernel_size": config.kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
        "dilation_base": config.dilation_growth_rate,
        "causal": config.use_causal_conv,
        "pad_mode": config.pad_mode,
        "true_skip": not config.use_conv_shortcut,
        "compress": config.compress,
        "lstm": config.num_lstm_layers,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package uses torch's old weight_norm
        encoder: nn.Module = SEANetEncoder(**options)
        decoder: nn.Module = SEANetDecoder(**options, trim_right_ratio=config.trim_right_ratio)
    for target, source in ((encoder, model.encoder), (decoder, model.decoder)):
        target.load_state_dict(_package_names(source.state_dict(), set(target.state_dict())))
    return encoder, decoder


def _package_names(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Renames transformers' weights to the package's, whose convolutions sit two wrappers deep."""
    renamed = {}
    for name, tensor in state.items():
        key = re.sub(r"^layers\.", "model.", name)
        key = key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )
        deep = [key.replace(".conv.", f".{wrapper}.{wrapper}.", 1) for wrapper in ("conv", "convtr")]
        norm = key.replace(".norm.", ".conv.norm.", 1)
        key = next((option for option in (*deep, norm, key) if option in expected), key)
        renamed[key] = tensor
    return renamed


def build(config: Config, device: str) -> Encodec:
    """Loads an EncodecModel from a folder or the hub's cache."""
    model = load_model(config, "encodec", "EncodecModel")
    spec = spec_of(model)
    encoder, decoder = package_networks(model) if config.library == "encodec" else (model.encoder, model.decoder)
    return Encodec(encoder, decoder, spec, device)
