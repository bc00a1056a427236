"""AdamW with warm-up, clipping, and a step that is only made where its gradient is finite; the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from arlat_vae.train_config import OptimiserConfig


def adamw(module: torch.nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW on what is trained; matrices and kernels decay, biases, scales and the single σ do not."""
    trained = [value for value in module.parameters() if value.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [value for value in trained if value.dim() > 1]},
        {"params": [value for value in trained if value.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay)


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def descend(
    module: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    backward: Callable[[], None],
    step: int,
    config: OptimiserConfig,
) -> tuple[float, bool]:
    """One step of `optimiser`, unless the gradient is not finite; returns its norm before clipping, and whether it was."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, config)
    optimiser.zero_grad()
    backward()
    norm = float(torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip))
    if math.isfinite(norm):
        optimiser.step()
    return norm, math.isfinite(norm)


def follow(average: torch.nn.Module, model: torch.nn.Module, step: int, config: OptimiserConfig) -> None:
    """Moves the average towards the model: a ← d·a + (1 − d)·w with d = min(ema, (1 + step)/(10 + step))."""
    decay = min(config.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, value in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(value, 1 - decay)
