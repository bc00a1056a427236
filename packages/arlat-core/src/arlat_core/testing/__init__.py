"""Contracts that ship with the package: one check per kind of plugin, each raising AssertionError with values."""

from __future__ import annotations

from arlat_core.testing.codec import check_codec
from arlat_core.testing.distribution import check_step_distribution
from arlat_core.testing.dynamics import check_dynamics

__all__ = ["check_codec", "check_dynamics", "check_step_distribution"]
