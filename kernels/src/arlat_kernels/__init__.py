"""Numerical ops of arlat: a plain-PyTorch reference beside a Triton twin."""

from __future__ import annotations

from typing import Any

from arlat_kernels.langevin import Langevin, ScoreWeights, langevin, langevin_noise, langevin_op
from arlat_kernels.mixture import mixture_nll
from arlat_kernels.op import Op, TwinUnavailableError, UnknownTwinError
from arlat_kernels.residual_rollout import ResidualRollout, ResidualWeights, residual_rollout, residual_rollout_op
from arlat_kernels.residual_rollout_sample import residual_rollout_sample, residual_rollout_sample_op
from arlat_kernels.rollout_loss import RolloutLoss, rollout_loss, rollout_loss_op
from arlat_kernels.vmf import vmf_entropy, vmf_kl_uniform, vmf_log_norm, vmf_mean_resultant
from arlat_kernels.vmf_nll import vmf_nll, vmf_nll_natural, vmf_nll_polar
from arlat_kernels.vmf_sample import vmf_draw, vmf_sample

OPS: tuple[Op[Any], ...] = (
    mixture_nll,
    vmf_log_norm,
    vmf_mean_resultant,
    vmf_entropy,
    vmf_kl_uniform,
    vmf_nll_natural,
    vmf_nll_polar,
    vmf_draw,
    rollout_loss_op,
    residual_rollout_op,
    residual_rollout_sample_op,
    langevin_op,
)

__all__ = [
    "OPS",
    "Langevin",
    "Op",
    "ResidualRollout",
    "ResidualWeights",
    "RolloutLoss",
    "ScoreWeights",
    "TwinUnavailableError",
    "UnknownTwinError",
    "langevin",
    "langevin_noise",
    "langevin_op",
    "mixture_nll",
    "residual_rollout",
    "residual_rollout_op",
    "residual_rollout_sample",
    "residual_rollout_sample_op",
    "rollout_loss",
    "rollout_loss_op",
    "vmf_draw",
    "vmf_entropy",
    "vmf_kl_uniform",
    "vmf_log_norm",
    "vmf_mean_resultant",
    "vmf_nll",
    "vmf_nll_natural",
    "vmf_nll_polar",
    "vmf_sample",
]
