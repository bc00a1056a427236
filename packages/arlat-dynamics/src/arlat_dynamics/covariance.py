"""Covariances that stay well conditioned when dimensions are many and frames few."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SPREAD = 1e-6  # a dimension that never moves gets this part of the widest one's spread


def spread(variance: Tensor) -> Tensor:
    """Standard deviations of variances [d], floored so that a constant dimension keeps a positive one."""
    std = variance.clamp_min(0).sqrt()
    return std.clamp_min(SMALLEST_SPREAD * float(std.max().clamp_min(SMALLEST_SPREAD)))


def shrink(correlation: Tensor, intensity: float) -> Tensor:
    """(1 − intensity)·R + intensity·I for a correlation matrix R [d d]."""
    return (1 - intensity) * correlation + intensity * torch.eye(
        len(correlation), dtype=correlation.dtype, device=correlation.device
    )


def ledoit_wolf_intensity(correlation: Tensor, fourth: float, count: int) -> float:
    """Optimal shrinkage towards I; `fourth` is the mean of ‖x‖⁴ over the `count` standardised rows x.

    Source: Ledoit and Wolf, 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
    """
    size = float(correlation.square().sum())
    distance = float((correlation - torch.eye(len(correlation), dtype=correlation.dtype)).square().sum())
    noise = max(fourth - size, 0.0) / count
    return min(1.0, max(noise / distance if distance > 0 else 1.0, 1e-9))


def gaussian_intensity(correlation: Tensor, count: float) -> float:
    """The same from the second moments alone, as if the rows were Gaussian: E‖x‖⁴ = (tr R)² + 2 tr R²."""
    trace, size = float(correlation.diagonal().sum()), float(correlation.square().sum())
    return ledoit_wolf_intensity(correlation, trace**2 + 2 * size, max(1, int(count)))


def ledoit_wolf(x: Tensor) -> Tensor:
    """Covariance [d d], float64, of the rows of x [n d], shrunk towards its own diagonal."""
    x = x.double().cpu()
    x = x - x.mean(0)
    std = spread(x.square().mean(0))
    white = x / std
    correlation = white.mT @ white / len(x)
    fourth = float(white.square().sum(-1).square().mean())
    return shrink(correlation, ledoit_wolf_intensity(correlation, fourth, len(x))) * std * std[:, None]
