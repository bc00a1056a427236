"""A stack of gated recurrent units on a residual stream: x₀ = A·(frame, step), x ← x + GRU(norm(x)), a head on norm(x).

Source: Cho et al., 2014, "Learning phrase representations using RNN encoder-decoder".
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from arlat_dynamics.base import UNBOUNDED, WindowSource
from arlat_dynamics.headed import HeadConfig, begin
from arlat_dynamics.streaming import Last, StreamingModel


class Config(BaseConfig):
    """Shape of a GRU."""

    dim: int = Field(gt=0)
    """D."""
    width: int = Field(default=256, gt=0)
    """Units of each layer, and width of the residual stream."""
    depth: int = Field(default=2, gt=0)
    """Layers."""
    head: HeadConfig = HeadConfig()
    """The law of a step."""


class Memory(NamedTuple):
    """State of a GRU: the newest frame, and the units [b width] of each layer."""

    last: Last
    units: tuple[Tensor, ...]


class Layer(nn.Module):
    """x + GRU(norm(x)) over a sequence; plain operations, as `torch.compile` takes no `nn.GRU`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x [b t width] and the units h [b width] before it; what the stream becomes, and the units after it."""
        cell = self.cell
        entering = linear(self.norm(x), cell.weight_ih, cell.bias_ih)  # all frames at once
        every = []
        for now in entering.unbind(1):
            reset, keep, new = now.chunk(3, -1)
            old_reset, old_keep, old_new = linear(h, cell.weight_hh, cell.bias_hh).chunk(3, -1)
            proposed = torch.tanh(new + torch.sigmoid(reset + old_reset) * old_new)
            h = proposed + torch.sigmoid(keep + old_keep) * (h - proposed)
            every.append(h)
        return x + torch.stack(every, 1), h


class GRU(StreamingModel):
    """p(Δ | all frames so far) by a GRU and a head."""

    plugin: ClassVar[str] = "gru"

    def __init__(self, config: Config) -> None:
        super().__init__(config.dim, config.width, config.head)
        self.config, self.context = config, UNBOUNDED
        self.enter = nn.Linear(2 * config.dim, config.width)
        self.layers = nn.ModuleList(Layer(config.width) for _ in range(config.depth))

    def settings(self) -> Config:
        """The shape."""
        return self.config

    def initial(self, batch: int) -> Memory:
        """All units at 0."""
        return Memory(self.unseen(batch), tuple(self.nothing(batch, self.config.width) for _ in self.layers))

    def read(self, state: Memory, x: Tensor) -> tuple[Memory, Tensor]:
        """Reads x [b t d]; the state after it and normalised features [b t width] after every frame."""
        last, entering = self.entering(state.last, x)
        stream, units = self.enter(entering), []
        for layer, before in zip(self.layers, state.units, strict=True):
            stream, after = layer(stream, before)
            units.append(after)
        return Memory(last, tuple(units)), self.norm(stream)


def build(settings: dict[str, object]) -> GRU:
    """A model of the shape `settings`, untrained."""
    return GRU(Config.model_validate(settings))


def start(
    settings: dict[str, object],
    windows: WindowSource,
    rows: Tensor,
    validation_rows: Tensor,
    generator: torch.Generator,
) -> GRU:
    """An untrained model at the scales of the windows at `rows`; its weights are a function of the generator."""
    return begin(build, settings, windows, rows, generator)
