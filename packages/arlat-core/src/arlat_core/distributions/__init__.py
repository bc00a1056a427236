"""Step distributions: laws of one displacement Δ ∈ R^D, every density in nats over R^D in raw units."""

from __future__ import annotations

from arlat_core.distributions.affine import Affine
from arlat_core.distributions.base import StepDistribution
from arlat_core.distributions.flow import Flow
from arlat_core.distributions.gaussian import DiagonalGaussian, FullGaussian
from arlat_core.distributions.mixture import GaussianMixture
from arlat_core.distributions.polar_mixture import PolarMixture
from arlat_core.distributions.power_spherical import PowerSphericalLogNormal
from arlat_core.distributions.uniform_lognormal import UniformLogNormal
from arlat_core.distributions.vmf_lognormal import VonMisesLogNormal

__all__ = [
    "Affine",
    "DiagonalGaussian",
    "Flow",
    "FullGaussian",
    "GaussianMixture",
    "PolarMixture",
    "PowerSphericalLogNormal",
    "StepDistribution",
    "UniformLogNormal",
    "VonMisesLogNormal",
]
