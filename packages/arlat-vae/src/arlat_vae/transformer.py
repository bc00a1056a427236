"""A causal sliding-window transformer on [b t h]: rotary positions, layer scale, and the state as a value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arlat_vae.causal import Causal, Chain

Cache = tuple[Tensor, Tensor]


def rotate(x: Tensor, first: int) -> Tensor:
    """Rotates the pairs (i, i + d/2) of x [b heads t d] by the angle (first + t)·10000^(−2i/d) (arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    rate = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    position = first + torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    angle = position[:, None] * rate  # [t, d/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Attention(Causal[Cache]):
    """Frame t attends to frames t − window + 1 … t.

    The state holds the newest window − 1 keys and values [b heads ≤window−1 d], keys not yet rotated: only differences
    of positions count, so a stream may run for ever and nothing in it grows.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"{width} units cannot be split into {heads} heads of an even size.")
        self.heads, self.window = heads, window
        self.enter = nn.Linear(width, 3 * width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)

    def initial(self, batch: int) -> Cache:
        """No frames."""
        empty = self.enter.weight.new_zeros(batch, self.heads, 0, self.leave.in_features // self.heads)
        return empty, empty

    def step(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """[b t h], in blocks of at most a window, so that memory grows with t and not with t²."""
        outputs = []
        for block in torch.split(x, self.window, 1):
            y, state = self._block(block, state)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    def _block(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """At most `window` frames."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.enter(x).chunk(3, -1)
        )  # [b, heads, t, d]
        before = state[0].shape[2]
        key, value = torch.cat([state[0], key], 2), torch.cat([state[1], value], 2)
        now = before + torch.arange(x.shape[1], device=x.device)[:, None]
        then = torch.arange(key.shape[2], device=x.device)
        seen = (then <= now) & (then > now - self.window)  # [t, before + t]
        y = F.scaled_dot_product_attention(rotate(query, before), rotate(key, 0), value, attn_mask=seen)
        kept = max(0, key.shape[2] - self.window + 1)
        out: Tensor = self.leave(y.transpose(1, 2).flatten(2))
        return out, (key[:, :, kept:], value[:, :, kept:])


class Layer(Causal[Cache]):
    """x ← x + s₁ ⊙ attention(norm(x)), then x ← x + s₂ ⊙ mlp(norm(x)); the scales s start small (arXiv:2103.17239)."""

    def __init__(self, width: int, heads: int, window: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, window)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), scale)) for _ in range(2))
        self.enter = nn.Linear(width, hidden, bias=False)
        self.leave = nn.Linear(hidden, width, bias=False)

    def initial(self, batch: int) -> Cache:
        """The attention's."""
        return self.attention.initial(batch)

    def step(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """[b t h] -> [b t h]."""
        y, state = self.attention.step(self.norms[0](x), state)
        x = x + self.scales[0] * y
        return x + self.scales[1] * self.leave(F.gelu(self.enter(self.norms[1](x)))), state


class Transformer(Chain):
    """`layers` layers, each with its own window of `window` frames."""

    def __init__(self, layers: int, width: int, heads: int, window: int, hidden: int, scale: float) -> None:
        super().__init__(Layer(width, heads, window, hidden, scale) for _ in range(layers))
