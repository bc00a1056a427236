"""Frame-rate matching by striding, decoded by linear interpolation: only every `factor`-th frame is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from arlat_data.codecs import build_codec
from arlat_data.codecs._frames import GroupConfig, Grouped


class Config(GroupConfig):
    """`stride:FACTOR|CODEC`."""


class Stride(Grouped):
    """The newest of each `factor` frames of `inner`, so that a frame ends where its audio ends."""

    name = "stride"

    def join(self, frames: Tensor) -> Tensor:
        return frames[:, :, -1].contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        return self.inner.decode(self._interpolate(latents))

    def _interpolate(self, z: Tensor) -> Tensor:
        """[b t d] -> [b t*factor d] through the kept frames, the first one held back to the start."""
        frames = z.shape[1]
        position = (torch.arange(frames * self.factor, device=z.device) + 1) / self.factor - 1  # 0 at kept frame 0
        position = position.clamp(min=0)
        low = position.floor().long()
        high = (low + 1).clamp(max=frames - 1)
        weight = (position - low).to(z.dtype)[:, None]
        return z[:, low] * (1 - weight) + z[:, high] * weight


def build(config: Config, device: str) -> Stride:
    """Builds the wrapped codec and the wrapper."""
    return Stride(build_codec(config.inner, device), config.factor)
