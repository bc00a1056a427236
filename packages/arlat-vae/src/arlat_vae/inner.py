"""A small temporal VAE of latents that are there already, [b t d] of a store: the cheap way to try a bottleneck, without audio."""

from __future__ import annotations

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.seed import seeded
from arlat_core.types import LatentSpec
from pydantic import Field
from torch import Tensor, nn

from arlat_vae.bottleneck import Bottleneck, BottleneckConfig, Posterior, build_bottleneck
from arlat_vae.transformer import Transformer


class Shape(BaseConfig):
    """Its size."""

    width: int = Field(default=128, gt=0)
    """Width of the transformers."""
    layers: int = Field(default=2, ge=0)
    """Transformer layers on either side; without any the VAE is linear and sees one frame."""
    heads: int = Field(default=4, gt=0)
    """Attention heads."""
    window_frames: int = Field(default=32, gt=0)
    """Frames that an attention layer sees."""
    layer_scale: float = Field(default=0.1, gt=0)
    """First value of the layer scales."""
    bottleneck: BottleneckConfig = BottleneckConfig()
    """The law of a latent frame."""


class Config(Shape):
    """Its size, and the latents that it is for."""

    inner: LatentSpec
    """The latents that it encodes."""

    @property
    def frame_rate(self) -> float:
        """Frames per second: those of the latents."""
        return self.inner.frame_rate


class InnerVAE(nn.Module):
    """Latents [b t d] in a store's units to their laws [b t dim] and back, causal; `mean` and `deviation` [d] are the store's."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        dim = config.inner.dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        self.enter = nn.Linear(dim, config.width)
        self.encoder = transformer(config)
        self.bottleneck: Bottleneck = build_bottleneck(config.width, config.bottleneck)
        self.leave = nn.Linear(config.bottleneck.dim, config.width)
        self.decoder = transformer(config)
        self.out = nn.Linear(config.width, dim)

    def encode(self, latents: Tensor) -> Posterior:
        """The law of every frame of [b t d], from frames up to it."""
        law: Posterior = self.bottleneck(self.encoder(self.enter((latents - self.mean) / self.deviation)))
        return law

    def decode(self, z: Tensor) -> Tensor:
        """[b t dim] -> [b t d]."""
        hidden: Tensor = self.out(self.decoder(self.leave(z)))
        return hidden * self.deviation + self.mean

    def error(self, latents: Tensor, decoded: Tensor) -> Tensor:
        """Mean square of the difference in standard deviations; 1 for the store's mean."""
        return ((decoded - latents) / self.deviation).square().mean()


def transformer(config: Config) -> Transformer:
    """The transformer of either side."""
    return Transformer(
        config.layers, config.width, config.heads, config.window_frames, 4 * config.width, config.layer_scale
    )


def build(config: Config, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> InnerVAE:
    """An untrained VAE of latents with these moments [d], whose weights are a function of the generator."""
    with seeded(generator):
        model = InnerVAE(config)
    model.mean.copy_(mean)
    model.deviation.copy_(deviation)
    return model
