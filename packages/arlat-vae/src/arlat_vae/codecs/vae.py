"""A VAE of arlat as a codec: the posterior mean in, the decoder out, causal."""

from __future__ import annotations

from pathlib import Path

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.types import LatentSpec, fingerprint
from torch import Tensor

from arlat_vae import checkpoint
from arlat_vae.checkpoint import UNKNOWN, Training
from arlat_vae.model import VAE


class Config(BaseConfig):
    """`vae=FOLDER`, a folder that `arlat vae train` made (RUN/vae); options are what it is expected to be, as stores name it."""

    dim: int | None = None
    """Dimension that the folder is expected to have; any by default."""
    beta: float | None = None
    """Weight of the KL that it is expected to have been trained with."""
    ar_loss: str = ""
    """AR losses that it is expected to have been trained with."""
    folder: Path
    """Holds vae.json and vae.safetensors."""


class VAECodec:
    """A VAE without its noise."""

    def __init__(self, model: VAE, device: str = "cpu", training: Training = UNKNOWN) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        config = model.config
        self._spec = LatentSpec(
            codec=f"vae:{config.bottleneck.dim}{training.options()}",
            space="posterior mean",
            dim=config.bottleneck.dim,
            frame_rate=config.frame_rate,
            sample_rate=config.sample_rate,
            fingerprint=fingerprint({"vae": 1, **config.model_dump(mode="json")}, model.state_dict()),
            causal=True,
        )

    @property
    def spec(self) -> LatentSpec:
        """The VAE's rates and dimension, and the hash of its weights."""
        return self._spec

    def frames(self, samples: int) -> int:
        """⌈samples / hop⌉."""
        return -(-samples // self.model.config.hop)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """[b n] -> posterior means [b t d]."""
        return self.model.encode(audio.to(self._device, torch.float32)).mean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[b t d] -> [b t·hop] in [-1, 1]."""
        return self.model.decode(latents.to(self._device, torch.float32)).clamp(-1.0, 1.0)


def build(config: Config, device: str) -> VAECodec:
    """Reads the folder that training wrote."""
    model, training = checkpoint.load(config.folder)
    checkpoint.require(config, model.config.bottleneck.dim, training, config.folder)
    return VAECodec(model, device, training)
