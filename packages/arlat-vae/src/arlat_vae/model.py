"""The VAE: audio [b n] to latents [b t d] at 12.5 Hz and back, streamed or whole.

Encoder: causal convolutions down to one vector a frame, a causal transformer on the frames, the bottleneck. The decoder
mirrors it. Frame t depends on audio up to its own end, and decoded sample s on frames up to s's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.seed import seeded
from pydantic import Field, model_validator
from torch import Tensor, nn

from arlat_vae.bottleneck import Bottleneck, BottleneckConfig, Posterior, build_bottleneck
from arlat_vae.causal import Causal
from arlat_vae.convolution import decoder_stack, encoder_stack, widths
from arlat_vae.transformer import Transformer

LEVEL = 0.1  # usual root-mean-square level of speech: inside, sound is divided by it


class Config(BaseConfig):
    """Shape of a VAE."""

    sample_rate: int = Field(default=24_000, gt=0)
    """Sample rate in Hz."""
    ratios: tuple[int, ...] = Field(default=(6, 5, 4, 4, 4), min_length=1)
    """Up-sampling factors from the latent to the audio, which the encoder mirrors; their product is the samples a frame."""
    channels: int = Field(default=64, gt=0)
    """Channels at the audio's rate; doubled at each down-sampling."""
    max_channels: int = Field(default=1024, gt=0)
    """Channels at most."""
    kernel: int = Field(default=7, gt=0)
    """Kernel of the convolution next to the audio."""
    residual_kernel: int = Field(default=3, gt=0)
    """Kernel inside residual units."""
    frame_kernel: int = Field(default=3, gt=0)
    """Kernel of the convolution next to the transformer."""
    width: int = Field(default=512, gt=0)
    """Width of the transformers."""
    layers: int = Field(default=8, ge=0)
    """Transformer layers on either side."""
    heads: int = Field(default=8, gt=0)
    """Attention heads."""
    window_frames: int = Field(default=250, gt=0)
    """Frames that an attention layer sees: 20 s at 12.5 Hz."""
    layer_scale: float = Field(default=0.01, gt=0)
    """First value of the layer scales."""
    bottleneck: BottleneckConfig = BottleneckConfig()
    """The law of a latent frame."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.ratios) < 1:
            raise ValueError(f"ratios are {self.ratios}; each must be 1 or more, for instance (6, 5, 4, 4, 4)")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} cannot be split into {self.heads} heads of an even size")
        return self

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop


SIZES: dict[str, Config] = {
    "tiny": Config(channels=8, max_channels=64, width=64, layers=1, heads=2),
    "small": Config(channels=32, max_channels=256, width=256, layers=4, heads=4),
    "base": Config(),
}


@dataclass(frozen=True)
class EncoderState:
    """Samples that do not fill a frame yet [b <hop], and the states of convolutions and transformer."""

    pending: Tensor
    convolutions: tuple[Any, ...]
    transformer: tuple[Any, ...]


class Encoder(nn.Module):
    """Audio to features of its frames."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.hop, self.width = config.hop, config.width
        kernels = (config.kernel, config.residual_kernel, config.frame_kernel)
        channels = widths(config.channels, config.max_channels, config.ratios)
        self.convolutions = encoder_stack(channels, config.ratios[::-1], kernels, config.width)
        self.transformer = transformer(config)

    def initial(self, batch: int) -> EncoderState:
        """Nothing heard."""
        convolutions = self.convolutions.initial(batch)
        return EncoderState(convolutions[0].new_zeros(batch, 0), convolutions, self.transformer.initial(batch))

    def step(self, audio: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Any number of samples [b n] -> features of the frames that they complete [b t h]."""
        heard = torch.cat([state.pending, audio.to(state.pending)], 1)
        ready = heard.shape[1] - heard.shape[1] % self.hop
        if ready == 0:
            nothing = heard.new_zeros(len(heard), 0, self.width)
            return nothing, EncoderState(heard, state.convolutions, state.transformer)
        x, convolutions = self.convolutions.step(heard[:, None, :ready] / LEVEL, state.convolutions)
        y, frames = self.transformer.step(x.transpose(1, 2), state.transformer)  # [b, t, h]
        return y, EncoderState(heard[:, ready:], convolutions, frames)


class Decoder(nn.Module):
    """Latents to audio."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        kernels = (config.kernel, config.residual_kernel, config.frame_kernel)
        channels = widths(config.channels, config.max_channels, config.ratios)
        self.enter = nn.Linear(config.bottleneck.dim, config.width)
        self.transformer = transformer(config)
        self.convolutions = decoder_stack(channels, config.ratios[::-1], kernels, config.width)

    def initial(self, batch: int) -> tuple[Any, ...]:
        """Nothing decoded."""
        return self.transformer.initial(batch), self.convolutions.initial(batch)

    def step(self, z: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """[b t d] -> audio [b t·hop]."""
        if z.shape[1] == 0:
            return z.new_zeros(len(z), 0), state
        x, frames = self.transformer.step(self.enter(z), state[0])
        y, convolutions = self.convolutions.step(x.transpose(1, 2), state[1])
        return LEVEL * y[:, 0], (frames, convolutions)


class VAE(nn.Module):
    """Encoder, bottleneck and decoder; `decode(encode(audio).sample(generator))` is what training runs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.bottleneck: Bottleneck = build_bottleneck(config.width, config.bottleneck)
        self.decoder = Decoder(config)

    def encode(self, audio: Tensor) -> Posterior:
        """The laws of the frames that cover audio [b n]; zeros fill the last frame."""
        padded = F.pad(audio, (0, -audio.shape[-1] % self.config.hop))
        return self.encode_step(padded, self.encoder.initial(len(audio)))[0]

    def decode(self, z: Tensor) -> Tensor:
        """[b t d] -> [b t·hop], not clamped."""
        return self.decode_step(z, self.decoder.initial(len(z)))[0]

    def encode_step(self, audio: Tensor, state: EncoderState) -> tuple[Posterior, EncoderState]:
        """The next samples of a stream -> the laws of the frames that they complete, and the state after them."""
        hidden, after = self.encoder.step(audio, state)
        return self.bottleneck(hidden), after

    def decode_step(self, z: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """The next frames of a stream -> their samples, and the state after them."""
        return self.decoder.step(z, state)


def transformer(config: Config) -> Causal[tuple[Any, ...]]:
    """The transformer of either side."""
    return Transformer(
        config.layers, config.width, config.heads, config.window_frames, 4 * config.width, config.layer_scale
    )


def sized(size: str, **changes: Any) -> Config:
    """The shape named `size`, with `changes`; raises UserError for an unknown name."""
    if size not in SIZES:
        raise UserError(f"There is no VAE size {size!r}. Known: {', '.join(SIZES)}.")
    return Config.model_validate(SIZES[size].model_dump() | changes)


def build(config: Config, generator: torch.Generator) -> VAE:
    """An untrained VAE whose weights are a function of the generator."""
    with seeded(generator):
        return VAE(config)
