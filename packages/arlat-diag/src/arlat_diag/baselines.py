"""The ladder of baselines that every likelihood is compared with (SPEC §12.1), fitted on the training split alone.

| name | law of the displacement Δ | knows |
| --- | --- | --- |
| b0 | diagonal Gaussian | nothing |
| b0f | uniform direction × LogNormal magnitude | nothing |
| b1 | full Gaussian (Ledoit–Wolf) | nothing |
| b2 | unconditional mixture | nothing |
| b3 | linear Gaussian given z_t (mean reversion) | the last frame |
| b4 | linear VAR over the context | the context, linearly |
| b5 | marginal mixture of z at z_t + Δ ("no dynamics") | the marginal |
| b5_gaussian | full Gaussian of z at z_t + Δ | the marginal's moments |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from arlat_core.distributions import DiagonalGaussian, FullGaussian, StepDistribution, UniformLogNormal
from arlat_data.windows import Batch
from arlat_dynamics.mixture import fit_mixture
from arlat_dynamics.models.linear import LinearModel, ledoit_wolf
from torch import Tensor

UNCONDITIONAL = ("b0", "b0f", "b1", "b2")
CONDITIONAL = ("b3", "b4", "b5", "b5_gaussian")


@dataclass(frozen=True)
class Marginal:
    """B5's two laws of one frame z, the same at every horizon."""

    mixture: StepDistribution
    gaussian: StepDistribution


@dataclass(frozen=True)
class Baselines:
    """Fitted baselines of one horizon or lag."""

    displacement: Mapping[str, StepDistribution]
    reversion: LinearModel | None
    var: LinearModel
    marginal: Marginal | None

    def names(self) -> tuple[str, ...]:
        """The baselines that exist in this form: those that use z_t exist in the horizon form only."""
        return UNCONDITIONAL + (CONDITIONAL if self.marginal is not None else ())

    def nll(self, name: str, batch: Batch) -> Tensor:
        """NLL [n] in nats per frame, in the coordinates of Δ ∈ R^D."""
        if name in self.displacement:
            return -self.displacement[name].log_prob(batch.target)
        if self.marginal is None or self.reversion is None:
            raise ValueError(f"{name} uses z_t and exists in the horizon form only, not in the lag form.")
        if name == "b3":
            return -self.reversion.distribution(batch.context).log_prob(batch.target)
        if name == "b4":
            return -self.var.distribution(batch.context).log_prob(batch.target)
        law = {"b5": self.marginal.mixture, "b5_gaussian": self.marginal.gaussian}[name]
        return -law.log_prob(batch.future)


def shrunk_gaussian(x: Tensor) -> FullGaussian:
    """Full Gaussian of the rows of x [n d] with Ledoit–Wolf's covariance."""
    covariance = ledoit_wolf(x)
    return FullGaussian(x.double().mean(0).to(x.dtype), torch.linalg.cholesky(covariance).to(x.dtype))


def fit_marginal(train: Tensor, validation: Tensor, components: int, generator: torch.Generator) -> Marginal:
    """B5 from frames z [n d]: the mixture (early stopping on `validation`) and the Gaussian beside it.

    Baselines are fitted on the rows that the model is fitted on: at a large D more rows alone would make them better.
    """
    mixture = fit_mixture(train, validation, components=components, generator=generator)
    return Marginal(mixture, shrunk_gaussian(train))


def fit_diagonal(train: Tensor) -> DiagonalGaussian:
    """B0 from displacements Δ [n d]."""
    return DiagonalGaussian(train.mean(0), train.std(0, correction=0).clamp_min(1e-8).log())


def fit_displacement(
    train: Tensor, validation: Tensor, components: int, generator: torch.Generator
) -> dict[str, StepDistribution]:
    """B0, B0f, B1 and B2 from displacements Δ [n d]; `validation` only stops B2."""
    log_m = train.norm(dim=-1).clamp_min(1e-12).log()
    return {
        "b0": fit_diagonal(train),
        "b0f": UniformLogNormal(log_m.mean(), log_m.std(correction=0).clamp_min(1e-6).log(), train.shape[-1]),
        "b1": shrunk_gaussian(train),
        "b2": fit_mixture(train, validation, components=components, generator=generator),
    }
