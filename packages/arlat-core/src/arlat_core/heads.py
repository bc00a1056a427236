"""Heads: hidden features [... h] to the law [...] of a step, at the data's scale before any training.

Parameters are bounded softly (no slope is ever 0), lengths are in units of the typical step ‖Δ‖ that `calibrate` sets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from arlat_core.config import UserError
from arlat_core.distributions import (
    DiagonalGaussian,
    Flow,
    GaussianMixture,
    PolarMixture,
    PowerSphericalLogNormal,
    StepDistribution,
    VonMisesLogNormal,
    base,
)
from arlat_core.distributions.flow import Couplings, fixed_noise

LOG_SCALE_RANGE = 6.0  # |log scale| in units of the typical one stays below this, softly
SATURATED = 0.75  # part of the range beyond which a scale counts as saturated
FLAT = 0.01  # κ counts as saturated where its slope is below this part of the steepest
KAPPA_START = 0.5  # κ/D of an untrained head
KAPPA_RAW = math.log(math.expm1(KAPPA_START))  # softplus of which it is
KAPPA_LEAST = 0.1  # κ that a head starts with at least
COMPONENTS = 8
COUPLINGS = 6  # layers of a flow, in pairs that hold complementary halves
COUPLING_UNITS = 64
START = 0.1  # an untrained head's weights, as a part of nn.Linear's: it hardly depends on its features
SCALAR_GAIN = 4.0  # κ, mu and log_sigma move so many times faster than a coordinate: their ranges are wide, a learning rate is not


def soft_bound(raw: Tensor) -> Tensor:
    """Maps R to (−LOG_SCALE_RANGE, LOG_SCALE_RANGE) with a slope that is never 0."""
    return base.soft_bound(raw, LOG_SCALE_RANGE)


def near_bound(bounded: Tensor) -> Tensor:
    """Whether a softly bounded parameter lies near the end of its range."""
    return bounded.abs() > SATURATED * LOG_SCALE_RANGE


class Head(nn.Module, ABC):
    """One linear layer from hidden features [... hidden] to the parameters of a law of Δ ∈ R^dim.

    `scale` is the typical length of a step in the units of Δ (median ‖Δ‖ of training), `spread` the standard deviation
    of log ‖Δ‖; `calibrate` sets both. First weights come from torch's global generator: see `arlat_core.seed.seeded`.
    """

    name: ClassVar[str]
    mixture: ClassVar[bool] = False
    scale: Tensor
    spread: Tensor

    def __init__(self, dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"dim {dim} and hidden {hidden} must be at least 1.")
        self.dim, self.hidden = dim, hidden
        self.linear = nn.Linear(hidden, outputs)
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("spread", torch.tensor(1.0))
        with torch.no_grad():
            self.linear.weight.mul_(START)
            self.linear.bias.zero_()

    def calibrate(self, scale: float, spread: float) -> None:
        """Sets the typical length of a step and the standard deviation of its logarithm.

        Raises:
            ValueError: When either is not positive and finite.
        """
        if not (0 < scale < math.inf and 0 < spread < math.inf):
            raise ValueError(f"scale {scale} and spread {spread} must be positive and finite.")
        self.scale.fill_(scale)
        self.spread.fill_(spread)

    @abstractmethod
    def forward(self, hidden: Tensor) -> StepDistribution:
        """The laws [...] after features [... h]."""

    @property
    @abstractmethod
    def bearing(self) -> slice:
        """The rows of the layer that say where a step goes, [m d] of them."""

    @torch.no_grad()
    def follow(self, cosine: float, length: float) -> None:
        """Makes the first `dim` features (each of size 1) the forecast of the step.

        Known of that forecast are its mean cosine with the true step, and its length in typical ones (`scale`).

        Raises:
            ValueError: With fewer features than dimensions.
        """
        if self.hidden < self.dim:
            raise ValueError(f"{self.hidden} features cannot hold a direction of {self.dim} dimensions.")
        rows = self.linear.weight[self.bearing]
        if len(rows) == self.dim:  # a single law needs no difference from others
            rows.zero_()
            self.linear.bias[self.bearing] = 0
        eye = torch.eye(self.dim).to(rows).repeat(len(rows) // self.dim, 1)
        rows[:, : self.dim] += self.along(cosine, length) * eye

    def along(self, cosine: float, length: float) -> float:
        """Weight of a feature of size 1 in its own coordinate of the step, in the head's units."""
        return length

    @abstractmethod
    def saturation(self, hidden: Tensor) -> list[Tensor]:
        """For each bounded parameter, whether it lies near the end of its range."""

    @torch.no_grad()
    def saturated_fraction(self, hidden: Tensor) -> float:
        """Part of the bounded parameters that lie near the end of their range, for features [... h]."""
        return float(torch.cat([flag.flatten() for flag in self.saturation(hidden)]).float().mean())

    def log_coordinate_scale(self) -> Tensor:
        """log of the typical size of one coordinate of a step, scale/√D."""
        return self.scale.log() - 0.5 * math.log(self.dim)


class GaussianHead(Head):
    """Diagonal Gaussian."""

    name = "gaussian"

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden, 2 * dim)

    @property
    def bearing(self) -> slice:
        """The means."""
        return slice(0, self.dim)

    def forward(self, hidden: Tensor) -> DiagonalGaussian:
        """The Gaussian laws [...]."""
        loc, raw = self.linear(hidden).chunk(2, -1)
        unit = self.log_coordinate_scale()
        return DiagonalGaussian(unit.exp() * loc, unit + soft_bound(raw))

    def saturation(self, hidden: Tensor) -> list[Tensor]:
        """Flags of the scales."""
        return [near_bound(soft_bound(self.linear(hidden).chunk(2, -1)[1]))]


class GaussianMixtureHead(Head):
    """Mixture of diagonal Gaussians."""

    name = "gaussian_mixture"
    mixture = True

    def __init__(self, dim: int, hidden: int, components: int = COMPONENTS) -> None:
        super().__init__(dim, hidden, components * (2 * dim + 1))
        self.components = components
        with torch.no_grad():  # no two components start alike
            spread = torch.linspace(-0.5, 0.5, components) if components > 1 else torch.zeros(1)
            self.linear.bias[-components * dim :] = spread.repeat_interleave(dim)

    @property
    def bearing(self) -> slice:
        """The means."""
        return slice(self.components, self.components * (self.dim + 1))

    def raw(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [... m], means and unbounded log-scales [... m d], in units of the typical coordinate."""
        m, d = self.components, self.dim
        logits, loc, log_scale = self.linear(hidden).split([m, m * d, m * d], -1)
        return logits, loc.unflatten(-1, (m, d)), log_scale.unflatten(-1, (m, d))

    def forward(self, hidden: Tensor) -> GaussianMixture:
        """The mixtures [...]."""
        logits, loc, log_scale = self.raw(hidden)
        unit = self.log_coordinate_scale()
        return GaussianMixture(logits, unit.exp() * loc, unit + soft_bound(log_scale))

    def saturation(self, hidden: Tensor) -> list[Tensor]:
        """Flags of the scales."""
        return [near_bound(soft_bound(self.raw(hidden)[2]))]


class PolarHead(Head):
    """What polar laws share: directions [... m d], and κ, mu and log_sigma [... m] of m components."""

    def __init__(self, dim: int, hidden: int, components: int = 1, further: int = 0) -> None:
        super().__init__(dim, hidden, components * (dim + 3) + further)
        self.components = components
        with torch.no_grad():
            # A direction has no scale at the start, only a bearing: random, as components must not start alike.
            nn.init.normal_(self.linear.bias[: components * dim], std=dim**-0.5)
            if components == 1:  # at their gain even small weights would make κ and σ guesses
                self.linear.weight[dim:] = 0

    @property
    def bearing(self) -> slice:
        """The directions."""
        return slice(0, self.components * self.dim)

    def along(self, cosine: float, length: float) -> float:
        """1, as a direction has no length; κ starts where A(κ) is about the cosine. Source: Banerjee et al., 2005, JMLR 6."""
        kappa = max(KAPPA_LEAST, cosine * (self.dim - cosine**2) / (1 - min(cosine, 0.999) ** 2)) / self.dim
        m, d = self.components, self.dim
        self.linear.bias[m * d : m * (d + 1)] = (math.log(math.expm1(kappa)) - KAPPA_RAW) / SCALAR_GAIN
        return 1.0

    def raw(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Direction [... m d], unbounded κ, mu and log_sigma [... m], and what else there is."""
        m, d = self.components, self.dim
        outputs = self.linear(hidden)
        direction, kappa, mu, log_sigma, rest = outputs.split([m * d, m, m, m, outputs.shape[-1] - m * (d + 3)], -1)
        kappa = SCALAR_GAIN * kappa + KAPPA_RAW
        return direction.unflatten(-1, (m, d)), kappa, SCALAR_GAIN * mu, SCALAR_GAIN * log_sigma, rest

    def parts(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Direction [... m d], κ = D·softplus(raw), mu around log scale, log_sigma around log spread [... m]."""
        direction, kappa, mu, log_sigma, _ = self.raw(hidden)
        mu, log_sigma = self.scale.log() + soft_bound(mu), self.spread.log() + soft_bound(log_sigma)
        return direction, self.dim * softplus(kappa), mu, log_sigma

    def saturation(self, hidden: Tensor) -> list[Tensor]:
        """Flags of κ, mu and log_sigma."""
        _, kappa, mu, log_sigma, _ = self.raw(hidden)
        return [kappa.sigmoid() < FLAT, near_bound(soft_bound(mu)), near_bound(soft_bound(log_sigma))]


class VonMisesHead(PolarHead):
    """von Mises–Fisher direction × LogNormal length."""

    name = "vmf"

    def forward(self, hidden: Tensor) -> VonMisesLogNormal:
        """The polar laws [...]."""
        direction, kappa, mu, log_sigma = self.parts(hidden)
        return VonMisesLogNormal(direction[..., 0, :], kappa[..., 0], mu[..., 0], log_sigma[..., 0])


class PowerSphericalHead(PolarHead):
    """Power-spherical direction × LogNormal length."""

    name = "power_spherical"

    def forward(self, hidden: Tensor) -> PowerSphericalLogNormal:
        """The polar laws [...]."""
        direction, kappa, mu, log_sigma = self.parts(hidden)
        return PowerSphericalLogNormal(direction[..., 0, :], kappa[..., 0], mu[..., 0], log_sigma[..., 0])


class VonMisesMixtureHead(PolarHead):
    """Mixture of von Mises–Fisher × LogNormal laws."""

    name = "vmf_mixture"
    mixture = True

    def __init__(self, dim: int, hidden: int, components: int = COMPONENTS) -> None:
        super().__init__(dim, hidden, components, components)

    def forward(self, hidden: Tensor) -> PolarMixture:
        """The mixtures [...]."""
        return PolarMixture(self.raw(hidden)[4], *self.parts(hidden))


def held_halves(dim: int) -> Tensor:
    """Which coordinates [l d] each coupling holds: half of a fixed permutation, then the other half, for every pair."""
    generator = torch.Generator().manual_seed(0)
    halves = []
    for _ in range(COUPLINGS // 2):
        first = torch.zeros(dim, dtype=torch.bool)
        first[torch.randperm(dim, generator=generator)[: dim // 2]] = True
        halves += [first, ~first]
    return torch.stack(halves)


class FlowHead(Head):
    """Conditional normalising flow: the one-step sampling head.

    It is the flow of "consistency / flow": like a consistency model it draws in one pass, but its density is exact, so that
    it is compared in nats with every other law. A consistency model has no density to compare.
    Untrained it is the Gaussian head: the couplings' last weights are 0.
    """

    name = "flow"
    held: Tensor
    nodes: Tensor

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden, COUPLINGS * COUPLING_UNITS + 2 * dim)
        self.inward = nn.Parameter(torch.randn(COUPLINGS, dim, COUPLING_UNITS) * max(1, dim / 2) ** -0.5)
        self.outward = nn.Parameter(torch.zeros(COUPLINGS, COUPLING_UNITS, 2 * dim))
        self.register_buffer("held", held_halves(dim), persistent=False)
        self.register_buffer("nodes", fixed_noise(dim), persistent=False)
        with torch.no_grad():  # units bend in different places
            nn.init.normal_(self.linear.bias[: -2 * dim])

    @property
    def bearing(self) -> slice:
        """The shift after all couplings."""
        return slice(COUPLINGS * COUPLING_UNITS, COUPLINGS * COUPLING_UNITS + self.dim)

    def raw(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The couplings' biases [... l k], the shift and the unbounded log-scale [... d] after them."""
        bias, loc, log_scale = self.linear(hidden).split([COUPLINGS * COUPLING_UNITS, self.dim, self.dim], -1)
        return bias.unflatten(-1, (COUPLINGS, COUPLING_UNITS)), loc, log_scale

    def forward(self, hidden: Tensor) -> Flow:
        """The flows [...]."""
        bias, loc, log_scale = self.raw(hidden)
        unit = self.log_coordinate_scale()
        layers = Couplings(self.inward, self.outward, self.held, self.nodes)
        return Flow(unit.exp() * loc, unit + soft_bound(log_scale), bias, layers)

    def saturation(self, hidden: Tensor) -> list[Tensor]:
        """Flags of the scales after all couplings."""
        return [near_bound(soft_bound(self.raw(hidden)[2]))]


HEADS: dict[str, Any] = {
    head.name: head
    for head in (GaussianHead, GaussianMixtureHead, VonMisesHead, PowerSphericalHead, VonMisesMixtureHead, FlowHead)
}


def build_head(name: str, dim: int, hidden: int, components: int | None = None) -> Head:
    """The untrained head called `name` for steps of R^dim; `components` is for mixtures alone (default: 8).

    Raises:
        UserError: When no head has that name, or it is no mixture and `components` is given.
    """
    if name not in HEADS:
        raise UserError(f"There is no head {name!r}. Known heads: {', '.join(sorted(HEADS))}.")
    if components is not None and not HEADS[name].mixture:
        mixtures = ", ".join(sorted(other for other, head in HEADS.items() if head.mixture))
        raise UserError(f"The head {name!r} has no components, but {components} were asked for. Mixtures: {mixtures}.")
    head: Head = HEADS[name](dim, hidden, *(() if components is None else (components,)))
    return head
