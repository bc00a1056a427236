"""A conditional normalising flow: one pass from noise to a step, with an exact density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from arlat_core.distributions.base import Index, StepDistribution, normal, require, soft_bound

LOG_2PI = math.log(2 * math.pi)
STRETCH = 2.0  # |log scale| of one coupling stays below this, softly
NODES = 256  # fixed noise whose images stand for the law where no generator is at hand
BLOCK = 64  # of them at a time
LENGTHS = 4  # every so many of them serve to bound the length of `point`
QUANTILE = 0.75  # of their lengths: far enough below 95 % for NODES / LENGTHS of them
SEED = 0  # of the fixed noise


class Couplings(NamedTuple):
    """What the laws of a flow share: l coupling layers with k units each.

    inward [l d k] and outward [l k 2d] weights; held [l d] bool, the coordinates that a layer reads and leaves alone; nodes
    [NODES d], fixed noise.
    """

    inward: Tensor
    outward: Tensor
    held: Tensor
    nodes: Tensor


def fixed_noise(dim: int) -> Tensor:
    """NODES points [NODES dim] that stand for a standard normal law: scrambled Sobol points, the second half mirroring the first."""
    sobol = torch.quasirandom.SobolEngine(dim, scramble=True, seed=SEED)  # type: ignore[no-untyped-call]
    even: Tensor = sobol.draw(NODES // 2, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    half: Tensor = torch.special.ndtri(even).float()
    return torch.cat([half, -half])


@dataclass(frozen=True)
class Flow(StepDistribution):
    """The law of loc + exp(log_scale)·(f_l ∘ … ∘ f_1)(e) with e ~ N(0, I): loc and log_scale [... d], bias [... l k].

    A layer leaves the coordinates that it holds, h, as they are, and maps the others by e·exp(s) + t, where
    (t, s) = softsign(h·inward + bias)·outward and s is bounded softly; log p(Δ) = log N(e) − Σ s − Σ log_scale at the e that
    Δ came from, exactly. Where outward is 0 the law is a diagonal Gaussian; in one dimension it is always Gaussian.

    `mean` is the mean over NODES fixed points of noise, in mirrored pairs: exact where the map is affine in e; otherwise its
    standard error is that of 128 quasi-random draws of the part of the map that is even in e: about 1/√128 = 9 % of that part's
    standard deviation for large D, less for small D. `point` is the image of e = 0, shortened, in its own
    direction, to the 75 % quantile of the lengths of fixed points' images where it is longer.
    Source: Dinh et al., 2017, "Density estimation using Real NVP".
    """

    loc: Tensor
    log_scale: Tensor
    bias: Tensor
    layers: Couplings

    def __post_init__(self) -> None:
        batch, (count, d, units) = self.loc.shape[:-1], self.layers.inward.shape
        require(
            self.loc.shape == self.log_scale.shape == (*batch, d) and self.bias.shape == (*batch, count, units),
            f"loc {tuple(self.loc.shape)} and log_scale {tuple(self.log_scale.shape)} must be [... {d}], and bias "
            f"{tuple(self.bias.shape)} [... {count} {units}], as the couplings.",
        )

    @property
    def batch_shape(self) -> torch.Size:
        return self.loc.shape[:-1]

    @property
    def dim(self) -> int:
        return self.loc.shape[-1]

    def _coupling(self, layer: int, e: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-scale [... d] of a layer at e [... d]; both are 0 where it holds, and read nothing else."""
        held = self.layers.held[layer]
        inner = torch.where(held, e, 0.0) @ self.layers.inward[layer] + self.bias[..., layer, :]
        shift, raw = (soft_bound(inner, 1.0) @ self.layers.outward[layer]).chunk(2, -1)
        return torch.where(held, 0.0, shift), torch.where(held, 0.0, soft_bound(raw, STRETCH))

    def _map(self, e: Tensor) -> Tensor:
        """The steps [... d] that noise e [... d] becomes."""
        for layer in range(len(self.layers.held)):
            shift, log_scale = self._coupling(layer, e)
            e = e * log_scale.exp() + shift
        return self.loc + self.log_scale.exp() * e

    def log_prob(self, dx: Tensor) -> Tensor:
        e = (dx - self.loc) * torch.exp(-self.log_scale)
        stretched = self.log_scale.sum(-1)
        for layer in reversed(range(len(self.layers.held))):
            shift, log_scale = self._coupling(layer, e)
            e = (e - shift) * torch.exp(-log_scale)
            stretched = stretched + log_scale.sum(-1)
        return -0.5 * e.square().sum(-1) - 0.5 * self.dim * LOG_2PI - stretched

    def sample(self, generator: torch.Generator) -> Tensor:
        return self._map(normal(self.loc.shape, self.loc, generator))

    def _images(self, nodes: Tensor) -> Tensor:
        """The steps [n ... d] that fixed noise [n d] becomes under every law."""
        return self._map(nodes.to(self.loc.dtype).view(-1, *[1] * (self.loc.dim() - 1), self.dim))

    def mean(self) -> Tensor:
        # Mirrored halves of a block, so that a map without an even part loses nothing to rounding.
        pairs = self.layers.nodes.view(2, NODES // BLOCK, -1, self.dim).transpose(0, 1).flatten(1, 2)
        return torch.stack([self._images(block).mean(0) for block in pairs]).mean(0)

    def point(self) -> Tensor:
        image = self._map(torch.zeros_like(self.loc))
        with torch.no_grad():
            lengths: Tensor = self._images(self.layers.nodes[::LENGTHS]).norm(dim=-1).sort(0).values
            longest = lengths[int(QUANTILE * len(lengths))]
            shorter = (longest / image.norm(dim=-1).clamp_min(1e-30)).clamp_max(1.0)
        short: Tensor = image * shorter[..., None]
        return short

    def slice(self, index: Index) -> Flow:
        return Flow(self.loc[index], self.log_scale[index], self.bias[index], self.layers)

    def expand(self, count: int) -> Flow:
        loc, log_scale, bias = (part.expand(count, *part.shape) for part in (self.loc, self.log_scale, self.bias))
        return Flow(loc, log_scale, bias, self.layers)
