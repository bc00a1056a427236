"""Scores of ensembles of sample rollouts x_1 … x_m ~ p(· | context) against the one true continuation z."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_score(ensemble: Tensor, truth: Tensor) -> Tensor:
    """mean_i ‖x_i − z‖ − ½ mean_{i≠j} ‖x_i − x_j‖, [...] for ensemble [... m d] and truth [... d].

    Proper, and fair: its expectation does not depend on m (Gneiting and Raftery 2007; Ferro 2014).
    """
    near: Tensor = (ensemble - truth[..., None, :]).norm(dim=-1).mean(-1)
    return near - scatter(ensemble)


def scatter(ensemble: Tensor) -> Tensor:
    """½ mean_{i≠j} ‖x_i − x_j‖, [...] for ensemble [... m d]."""
    draws = ensemble.shape[-2]
    apart: Tensor = torch.cdist(ensemble, ensemble, compute_mode="donot_use_mm_for_euclid_dist").sum((-1, -2))
    return apart / (2 * draws * (draws - 1))


def spread_and_skill(ensemble: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(m+1)/m × the unbiased variance of the draws, and ‖mean − z‖², each [...]: of a perfect ensemble both have the mean.

    The ensemble mean misses by σ² for the truth's own noise and by σ²/m for its own; hence the factor.
    """
    draws = ensemble.shape[-2]
    spread = (draws + 1) / draws * ensemble.var(-2).sum(-1)
    return spread, (ensemble.mean(-2) - truth).square().sum(-1)


def power(x: Tensor) -> Tensor:
    """Power [... k//2] at frequencies i/k frames⁻¹, i = 1 … k//2, of trajectories x [... k d]: mean over d under a Hann window."""
    steps = x.shape[-2]
    window = torch.hann_window(steps + 2, periodic=False, dtype=x.dtype, device=x.device)[1:-1]
    line: Tensor = torch.fft.rfft(x * window[:, None], dim=-2).abs().square().mean(-1) / window.square().sum()
    return line[..., 1:]
