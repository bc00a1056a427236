"""Mimi's continuous latents (512-d, 12.5 Hz, 24 kHz): after the encoder transformer and the downsampling, before the quantiser.

`mimi=FOLDER` decodes them without the quantiser's error; `mimi:levels=8=FOLDER` through its first 8 levels, the codec as it is used.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from arlat_core.config import UserError
from arlat_core.types import LatentSpec, fingerprint
from pydantic import Field
from torch import Tensor, nn

from arlat_data.codecs._frames import frame_count, whole_hop
from arlat_data.codecs._transformers import PretrainedConfig, load_model


class Config(PretrainedConfig):
    """`mimi=FOLDER`, or `mimi=kyutai/mimi` where the hub's cache has it; `mimi:levels=8=FOLDER`."""

    levels: int | None = Field(None, ge=1)
    """Quantiser levels that decoding goes through, the semantic one among them; without, decoding does not quantise."""


class Mimi:
    """transformers' MimiModel without its quantiser: its public methods only pass through tokens, so its parts are chained here."""

    def __init__(self, model: Any, device: str = "cpu", levels: int | None = None) -> None:
        """`model` is a MimiModel of either module layout, on any device; it is moved to `device`.

        Raises UserError for `levels` that its quantiser does not have.
        """
        self._device = device
        model = model.to(device).eval().requires_grad_(False)
        self._parts = parts(model)
        self._quantizer = model.quantizer
        self._levels = require_levels(levels, model.quantizer)
        weights = self._parts if levels is None else {**self._parts, "quantizer": model.quantizer}
        self._hop = whole_hop(model.config.sampling_rate, model.config.frame_rate, "mimi")
        self._spec = LatentSpec(
            codec="mimi" if levels is None else f"mimi:levels={levels}",
            space="pre-quantiser",
            dim=model.config.hidden_size,
            frame_rate=model.config.frame_rate,
            sample_rate=model.config.sampling_rate,
            # Zero padding on the left, causal attention: true of Mimi, and read from the configuration for relatives.
            causal=bool(model.config.use_causal_conv) and model.config.pad_mode != "reflect",
            fingerprint=fingerprint(
                {"mimi": 1} if levels is None else {"mimi": 1, "levels": levels}, canonical_state(weights)
            ),
        )

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(samples, self._hop)

    def encode(self, audio: Tensor) -> Tensor:
        frames = self.frames(audio.shape[-1])
        if frames == 0:
            return audio.new_zeros(len(audio), 0, self._spec.dim)
        # A clip that is no multiple of the hop makes each layer pad for itself, some by repeating: zeros once, before all.
        padded = F.pad(audio.to(self._device), (0, frames * self._hop - audio.shape[-1]))
        hidden = self._parts["encoder"](padded[:, None])  # [b, d, t·k]
        hidden = self._parts["encoder_transformer"](hidden.transpose(1, 2))[0].transpose(1, 2)
        z: Tensor = self._parts["downsample"](hidden)  # [b, d, t]
        return z.transpose(1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0)
        z = latents.to(self._device).transpose(1, 2)  # [b, d, t]
        return self.synthesise(self.bridge(z) if self._levels is None else self.quantise(z, self._levels))

    def bridge(self, z: Tensor) -> Tensor:
        """[b d t] -> [b d t]: out_proj(in_proj(z)) summed over the branches, what the quantiser would give with no error.

        The decoder expects that sum, and never saw z itself.
        """
        semantic: Tensor = self._parts["semantic"](z)
        acoustic: Tensor = self._parts["acoustic"](z)
        return semantic + acoustic

    def quantise(self, z: Tensor, levels: int) -> Tensor:
        """[b d t] -> [b d t]: what the first `levels` codebooks keep of z."""
        codes = self._quantizer.encode(z, levels)  # [levels, b, t]
        kept: Tensor = self._quantizer.decode(codes.transpose(0, 1))
        return kept

    def synthesise(self, quantised: Tensor) -> Tensor:
        """Latents as the quantiser gives them [b d t] -> [b n]."""
        hidden = self._parts["upsample"](quantised)
        hidden = self._parts["decoder_transformer"](hidden.transpose(1, 2))[0].transpose(1, 2)
        sound: Tensor = self._parts["decoder"](hidden)  # [b, 1, n]
        return sound[:, 0]


def require_levels(levels: int | None, quantizer: Any) -> int | None:
    """The levels, once it is known that the quantiser has so many; UserError otherwise."""
    least, most = quantizer.num_semantic_quantizers, quantizer.max_num_quantizers
    if levels is not None and not least <= levels <= most:
        raise UserError(f"This Mimi has {least} to {most} quantiser levels, but levels={levels} was asked for.")
    return levels


def parts(model: Any) -> dict[str, nn.Module]:
    """MimiModel's modules by the names of the older layout.

    Before the 5.x split everything hangs on the model itself; 5.23 has `model.encoder.{encoder_seanet,
    encoder_transformer, downsample}` and `model.decoder.{upsample, decoder_transformer, decoder_seanet}`.
    """
    older = "encoder_transformer" in dict(model.named_children())
    encoder, decoder = (model, model) if older else (model.encoder, model.decoder)
    quantizer = model.quantizer
    return {
        "encoder": model.encoder if older else encoder.encoder_seanet,
        "encoder_transformer": encoder.encoder_transformer,
        "downsample": encoder.downsample or nn.Identity(),
        "upsample": decoder.upsample or nn.Identity(),
        "decoder_transformer": decoder.decoder_transformer,
        "decoder": model.decoder if older else decoder.decoder_seanet,
        "semantic": branch(quantizer.semantic_residual_vector_quantizer),
        "acoustic": branch(quantizer.acoustic_residual_vector_quantizer),
    }


def branch(quantizer: Any) -> nn.Module:
    """out_proj(in_proj(·)) of one residual quantiser; it has neither where its space has the latents' own dimension."""
    if quantizer.input_proj is None:
        return nn.Identity()
    return nn.Sequential(quantizer.input_proj, quantizer.output_proj)


def canonical_state(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Weights under names that do not depend on the layout, so that both give one fingerprint."""
    return {
        f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()
    }


def build(config: Config, device: str) -> Mimi:
    """Loads a MimiModel from a folder or the hub's cache."""
    return Mimi(load_model(config, "mimi", "MimiModel"), device, config.levels)
