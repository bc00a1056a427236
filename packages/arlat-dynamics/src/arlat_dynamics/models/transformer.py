"""A causal transformer: pre-norm, rotary positions, and in every layer a sliding window of keys and values as the state.

x₀ = A·(frame, step); x ← x + attention(norm(x)), x ← x + W2·silu(W1·norm(x)) for every layer; a head on norm(x).
With `short_context` a second, small one sees only the newest frames, without the noise of training (`unroll_noised`), and
its stream is added. Sources: Su et al., 2021, "RoFormer" (rotary positions); Rouard et al., 2025, "Continuous audio
language models" (the clean short context).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import Affine, StepDistribution
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from arlat_dynamics.base import WindowSource
from arlat_dynamics.block import Block
from arlat_dynamics.headed import HeadConfig, begin
from arlat_dynamics.streaming import Last, StreamingModel

HIDDEN = 4  # units inside a block, as a multiple of the width
LONGEST_TURN = 10_000.0  # rotary angles fall from 1 to about 1 / this per frame
SHORT_DEPTH = 2  # layers of the short transformer


class Config(BaseConfig):
    """Shape of a transformer."""

    dim: int = Field(gt=0)
    """D."""
    width: int = Field(default=256, gt=0)
    """Width of the residual stream, a multiple of 2 · heads."""
    depth: int = Field(default=4, gt=0)
    """Layers."""
    heads: int = Field(default=4, gt=0)
    """Attention heads."""
    window: int = Field(default=64, ge=2)
    """Frames that each layer sees; the whole sees depth · (window − 1) + 1."""
    short_context: int | None = Field(default=None, ge=0)
    """Newest frames that the second, clean transformer sees (CALM: 10); none or 0 for no such transformer."""
    head: HeadConfig = HeadConfig()
    """The law of a step."""

    @model_validator(mode="after")
    def fits(self) -> Config:
        """Rotary positions turn pairs of a head's coordinates; a step needs two frames."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is no multiple of 2 · heads = {2 * self.heads}; give one that is")
        if self.short_context == 1:
            raise ValueError("a short_context of 1 frame has no step; give at least 2, or 0 for none")
        return self


class Cache(NamedTuple):
    """Keys and values [b heads w−1 e] of a layer's newest frames, oldest first, before rotation."""

    keys: Tensor
    values: Tensor


class Memory(NamedTuple):
    """State of one stack of layers: the newest frame, how many frames [b] it has read, and every layer's cache."""

    last: Last
    read: Tensor
    caches: tuple[Cache, ...]


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Turns pairs of coordinates of x [... t e] by angles that are proportional to position [t]."""
    half = x.shape[-1] // 2
    rate = LONGEST_TURN ** (-torch.arange(half, device=x.device) / half)
    angle = position[:, None] * rate  # [t, e/2]
    first, second = x.chunk(2, -1)
    turned = torch.cat(
        [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()],
        -1,
    )
    return turned.to(x.dtype)


class Layer(nn.Module):
    """One layer, in which a frame sees itself and the `window` − 1 frames before it.

    Positions are counted from the oldest slot of the cache: rotary attention depends on differences alone, so no count
    grows without bound.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.size, self.kept = heads, width // heads, window - 1
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.block = Block(width, HIDDEN * width)

    def cache(self, like: Tensor) -> Cache:
        """The cache before the first frame, for the batch of like [b]."""
        shape = (len(like), self.heads, self.kept, self.size)
        return Cache(like.new_zeros(shape), like.new_zeros(shape))

    def visible(self, count: Tensor, frames: int) -> Tensor:
        """Which slots [b 1 frames kept+frames] each new frame sees, where count [b] frames have been read before."""
        slot = torch.arange(self.kept + frames, device=count.device)
        query = torch.arange(frames, device=count.device)[:, None]
        near = (slot >= query) & (slot <= query + self.kept)
        filled = slot >= self.kept - count[:, None]
        return (near & filled[:, None])[:, None]

    def forward(self, x: Tensor, cache: Cache, count: Tensor) -> tuple[Tensor, Cache]:
        """x [b t width] after the frames of the cache; what the stream becomes, and the cache after it."""
        frames = x.shape[1]
        parts = self.project(self.norm(x)).unflatten(-1, (3, self.heads, self.size)).movedim(1, -2)  # [b 3 heads t e]
        query, keys, values = parts.unbind(1)
        keys, values = torch.cat([cache.keys, keys], -2), torch.cat([cache.values, values], -2)
        slot = torch.arange(self.kept + frames, device=x.device)
        seen = scaled_dot_product_attention(
            rotate(query, slot[self.kept :]).to(keys.dtype),
            rotate(keys, slot),
            values,
            attn_mask=self.visible(count, frames),
        )
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        kept = Cache(keys[..., frames:, :].contiguous(), values[..., frames:, :].contiguous())  # no view of all frames
        return self.block(x), kept


class Stack(nn.Module):
    """Layers with a window each; as the step to a frame enters with it, the whole sees Σ (window − 1) + 2 frames."""

    def __init__(self, dim: int, width: int, heads: int, windows: Sequence[int]) -> None:
        super().__init__()
        self.context = sum(window - 1 for window in windows) + 2
        self.enter = nn.Linear(2 * dim, width)
        self.layers = nn.ModuleList(Layer(width, heads, window) for window in windows)

    def caches(self, like: Tensor) -> tuple[Cache, ...]:
        """Empty caches for the batch of like [b]."""
        return tuple(layer.cache(like) for layer in self.layers)  # type: ignore[operator]

    def forward(self, entering: Tensor, count: Tensor, caches: tuple[Cache, ...]) -> tuple[Tensor, tuple[Cache, ...]]:
        """The stream [b t width] after entering [b t 2d], and the caches after it."""
        stream, after = self.enter(entering), []
        for layer, cache in zip(self.layers, caches, strict=True):
            stream, kept = layer(stream, cache, count)
            after.append(kept)
        return stream, tuple(after)


def short_windows(context: int) -> list[int]:
    """Windows of SHORT_DEPTH layers that together see exactly `context` frames.

    >>> short_windows(10)
    [5, 5]
    """
    reach = context - 2
    return [1 + (reach + later) // SHORT_DEPTH for later in range(SHORT_DEPTH)]


class Transformer(StreamingModel):
    """p(Δ | newest `context` frames) by one causal transformer, or by a long and a short one, and a head."""

    plugin: ClassVar[str] = "transformer"

    def __init__(self, config: Config) -> None:
        super().__init__(config.dim, config.width, config.head)
        self.config = config
        windows = [
            [config.window - 1, *[config.window] * (config.depth - 1)]
        ]  # the first layer sees steps: a frame more
        if config.short_context:
            windows.append(short_windows(config.short_context))
        self.stacks = nn.ModuleList(Stack(config.dim, config.width, config.heads, each) for each in windows)
        self.context = max(stack.context for stack in self.stacks)  # type: ignore[type-var,assignment]

    def settings(self) -> Config:
        """The shape."""
        return self.config

    def initial(self, batch: int) -> tuple[Memory, ...]:
        """Empty caches."""
        return tuple(
            Memory(self.unseen(batch), self.nothing(batch).long(), stack.caches(self.nothing(batch)))  # type: ignore[operator]
            for stack in self.stacks
        )

    def read(self, state: tuple[Memory, ...], x: Tensor) -> tuple[tuple[Memory, ...], Tensor]:
        """Reads x [b t d]; the state after it and normalised features [b t width] after every frame."""
        return self.read_apart(state, [x for _ in self.stacks])

    def read_apart(self, state: tuple[Memory, ...], x: Sequence[Tensor]) -> tuple[tuple[Memory, ...], Tensor]:
        """`read` where the stacks, the long one first, see different frames [b t d]."""
        streams, after = [], []
        for stack, memory, seen in zip(self.stacks, state, x, strict=True):
            last, entering = self.entering(memory.last, seen)
            stream, caches = stack(entering, memory.read, memory.caches)
            count = (memory.read + seen.shape[1]).clamp_max(self.context)
            streams.append(stream)
            after.append(Memory(last, count, caches))
        return tuple(after), self.norm(torch.stack(streams).sum(0))

    def unroll_noised(self, noised: Tensor, clean: Tensor) -> tuple[tuple[Memory, ...], StepDistribution]:
        """`unroll` in which the long transformer sees `noised` [b t d], and the short one, where there is one, `clean`.

        The laws are of the displacement after a noised frame, as in every model. A model that sees the newest frame
        without noise need not guess that noise: its laws are those after the clean frame, moved by what lies between.
        """
        if not self.config.short_context:
            return super().unroll_noised(noised, clean)
        state, features = self.read_apart(self.initial(len(noised)), [noised, clean])
        return state, Affine(self.law(features), clean - noised, torch.eye(self.dim).to(clean))

    def start_noised(self, noised: Tensor, clean: Tensor) -> tuple[tuple[Memory, ...], Tensor]:
        """The state before the newest frame, and that frame: without noise where there is a short transformer, which sees none."""
        if not self.config.short_context:
            return super().start_noised(noised, clean)
        before = self.initial(len(noised))
        if noised.shape[1] > 1:
            before = self.read_apart(before, [noised[:, :-1], clean[:, :-1]])[0]
        return before, clean[:, -1]


def build(settings: dict[str, object]) -> Transformer:
    """A model of the shape `settings`, untrained."""
    return Transformer(Config.model_validate(settings))


def start(
    settings: dict[str, object],
    windows: WindowSource,
    rows: Tensor,
    validation_rows: Tensor,
    generator: torch.Generator,
) -> Transformer:
    """An untrained model at the scales of the windows at `rows`; its weights are a function of the generator."""
    return begin(build, settings, windows, rows, generator)
