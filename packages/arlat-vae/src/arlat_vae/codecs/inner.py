"""A VAE of another codec's latents, as a codec: posterior mean in, both decoders out."""

from __future__ import annotations

from pathlib import Path

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.types import Codec, LatentSpec, fingerprint
from arlat_data.codecs import build_codec
from torch import Tensor

from arlat_vae import checkpoint
from arlat_vae.checkpoint import UNKNOWN, Training
from arlat_vae.inner import InnerVAE


class Config(BaseConfig):
    """`inner=FOLDER` or `inner=FOLDER|CODEC`, a folder that `arlat vae train data.latents_dir=STORE` made (RUN/inner)."""

    dim: int | None = None
    """Dimension that the folder is expected to have; any by default."""
    beta: float | None = None
    """Weight of the KL that it is expected to have been trained with."""
    ar_loss: str = ""
    """AR losses that it is expected to have been trained with."""
    folder: Path
    """Holds inner.json and inner.safetensors."""
    inner: str | None = None
    """The codec that is wrapped, as text; by default the one of the store, where that needs no folder."""


def latent_spec(model: InnerVAE, training: Training = UNKNOWN) -> LatentSpec:
    """What the posterior means of `model` are."""
    config, inner = model.config, model.config.inner
    return inner.model_copy(
        update={
            "codec": f"inner:{config.bottleneck.dim}{training.options()}|{inner.codec}",
            "space": f"posterior mean of {inner.space}",
            "dim": config.bottleneck.dim,
            "fingerprint": fingerprint({"inner": 1, **config.model_dump(mode="json")}, model.state_dict()),
        }
    )


class Inner:
    """A codec seen through an InnerVAE without its noise."""

    def __init__(self, inner: Codec, model: InnerVAE, device: str = "cpu", training: Training = UNKNOWN) -> None:
        try:
            model.config.inner.require(inner.spec, "The inner VAE")
        except ValueError as error:
            raise UserError(str(error)) from error
        self.inner, self.model = inner, model.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        self._spec = latent_spec(model, training)

    @property
    def spec(self) -> LatentSpec:
        """The wrapped codec's rates, the VAE's dimension, and the hash of its weights."""
        return self._spec

    def frames(self, samples: int) -> int:
        """The wrapped codec's."""
        return self.inner.frames(samples)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """[b n] -> posterior means [b t dim]."""
        return self.project(self.inner.encode(audio))

    @torch.no_grad()
    def project(self, latents: Tensor) -> Tensor:
        """The wrapped codec's latents [b t d] -> posterior means [b t dim]."""
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0, self.spec.dim)
        return self.model.encode(latents.to(self._device, torch.float32)).mean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[b t dim] -> [b n]."""
        if latents.shape[1] == 0:
            return self.inner.decode(latents.new_zeros(len(latents), 0, self.inner.spec.dim))
        return self.inner.decode(self.model.decode(latents.to(self._device, torch.float32)))


def build(config: Config, device: str) -> Inner:
    """Reads the folder that training wrote and builds the codec inside."""
    model, training = checkpoint.load_inner(config.folder)
    checkpoint.require(config.model_dump(), model.config.bottleneck.dim, training, config.folder)
    text = config.inner or model.config.inner.codec
    try:
        inner = build_codec(text, device)
    except UserError as error:
        if config.inner:
            raise
        raise UserError(
            f"The inner VAE {config.folder} was trained on {text!r}, which cannot be built from its name alone. "
            f"Name it with its folder, inner={config.folder}|CODEC=FOLDER. ({error})"
        ) from error
    return Inner(inner, model, device, training)
