"""Weights of losses as shares of the gradient that reaches the audio, whatever the losses' own scales (arXiv:2210.13438).

With g_i = ∂ℓ_i/∂ŷ and ⟨‖g_i‖⟩ the running mean of its norm, the audio receives s · Σ_i (w_i / Σ_j w_j) · g_i / ⟨‖g_i‖⟩.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

SMALLEST = 1e-12  # of a mean norm: a loss that has never had a gradient adds none


@dataclass(frozen=True)
class Norms:
    """Running sums of gradient norms and of their weights, by loss; the mean is their ratio, unbiased from the start."""

    total: Mapping[str, float] = field(default_factory=dict)
    weight: Mapping[str, float] = field(default_factory=dict)

    def updated(self, norms: Mapping[str, float], decay: float) -> Norms:
        """After one more observation of the losses in `norms`; others stay as they are."""
        total = {name: decay * self.total.get(name, 0.0) + norm for name, norm in norms.items()}
        weight = {name: decay * self.weight.get(name, 0.0) + 1.0 for name in norms}
        return Norms({**self.total, **total}, {**self.weight, **weight})

    def mean(self, name: str) -> float:
        """⟨‖g‖⟩ of a loss; 0 before its first observation."""
        return self.total.get(name, 0.0) / self.weight.get(name, 1.0)


@dataclass(frozen=True)
class Balanced:
    """The gradient for the audio [b n], the norms after it, each loss's own norm, and the losses that were left out."""

    gradient: Tensor
    norms: Norms
    observed: Mapping[str, float]
    refused: tuple[str, ...]


def balance(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    audio: Tensor,
    norms: Norms,
    decay: float = 0.999,
    scale: float = 1.0,
    shared: Callable[[Tensor], Tensor] = lambda norms: norms,
) -> Balanced:
    """Joins the gradients of `losses` with respect to `audio` [b n] in the shares that `weights` say.

    Norms are means over the batch of each item's norm, and `scale` is s. `shared` takes the norms of this process's items to those of
    all, so that every process leaves out the same. A loss whose gradient is not finite is left out of this step and
    of the running mean. `audio.backward(result.gradient)` sends the result on. Raises ValueError for a loss without weight.
    """
    missing = sorted(losses.keys() - weights.keys())
    if missing:
        raise ValueError(f"The losses {missing} have no weight; weights are given for {sorted(weights)}.")
    gradients = {name: torch.autograd.grad(loss, audio, retain_graph=True)[0] for name, loss in losses.items()}
    found = torch.stack([gradient.flatten(1).norm(dim=1).mean() for gradient in gradients.values()])
    observed = dict(zip(gradients, shared(found).tolist(), strict=True))
    finite = {name: norm for name, norm in observed.items() if norm < float("inf")}
    after = norms.updated(finite, decay)
    whole = sum(weights[name] for name in losses) or 1.0
    joined = torch.zeros_like(audio)
    for name in finite:
        joined = joined + gradients[name] * (scale * weights[name] / whole / max(after.mean(name), SMALLEST))
    return Balanced(joined, after, observed, tuple(name for name in losses if name not in finite))
