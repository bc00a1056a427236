"""Unconditional mixtures that never claim more than held-out frames confirm."""

from __future__ import annotations

import math

import torch
from arlat_core.distributions import Affine, DiagonalGaussian, GaussianMixture, StepDistribution
from torch import Tensor

from arlat_dynamics.clustering import k_means
from arlat_dynamics.covariance import ledoit_wolf

ROWS = 60_000  # frames that EM sees at most
ITERATIONS = 40
SMALLEST_GAIN = 2e-4  # nats per frame, and per 64 dimensions where there are more: EM stops at less
PRIOR = 4.0  # pseudo-frames of N(0, I) behind every component
SMALLEST_VARIANCE = 1e-4  # in whitened units
CERTAINTY = 1.64  # a richer law must be better on the validation part by so many standard errors


def fit_mixture(train: Tensor, validation: Tensor, components: int, generator: torch.Generator) -> StepDistribution:
    """A mixture of `components` diagonal Gaussians in whitened coordinates, for rows train [n d].

    EM from two starts, each stopped on `validation` [v d]; the single Ledoit–Wolf Gaussian stays where no mixture beats
    it by more than chance.
    """
    factor = torch.linalg.cholesky(ledoit_wolf(train))
    center = train.double().mean(0).cpu()
    white, held_out = (
        torch.linalg.solve_triangular(factor, (part.double().cpu() - center).mT, upper=False).mT.float()
        for part in (train, validation)
    )
    base = fit_white(white, held_out, components, generator)
    law = base if base is not None else DiagonalGaussian(torch.zeros(len(center)), torch.zeros(len(center)))
    return Affine(law, center.float(), factor.float())


def fit_white(train: Tensor, validation: Tensor, components: int, generator: torch.Generator) -> GaussianMixture | None:
    """A mixture for whitened rows [n d], or None where it does not beat N(0, I) on `validation` by more than chance."""
    if components < 2 or len(train) < 10 * components or len(validation) < 2:
        return None
    if len(train) > ROWS:
        train = train[torch.randperm(len(train), generator=generator)[:ROWS]]
    dim = train.shape[-1]
    single = DiagonalGaussian(torch.zeros(dim), torch.zeros(dim)).log_prob(validation)
    starts = (by_radius(train, components), by_centres(train, components, generator))
    fitted = [expectation_maximisation(train, validation, start) for start in starts]
    law, score = max(fitted, key=lambda pair: float(pair[1].mean()))
    gain = score - single
    return law if float(gain.mean()) > CERTAINTY * float(gain.std()) / math.sqrt(len(gain)) else None


def by_radius(x: Tensor, components: int) -> Tensor:
    """Responsibilities [n m] that split the rows by length: shells, for heavy tails."""
    order = x.square().sum(-1).argsort().argsort()
    return torch.nn.functional.one_hot(order * components // len(x), components).to(x.dtype)


def by_centres(x: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Responsibilities [n m] of the nearest of `components` centres, spread by k-means++ and moved by five k-means steps."""
    some = x[torch.randperm(len(x), generator=generator)[:5000]]
    centre = k_means(some, components, generator, iterations=5)
    return torch.nn.functional.one_hot(torch.cdist(x, centre).argmin(-1), components).to(x.dtype)


def expectation_maximisation(
    train: Tensor, validation: Tensor, responsibility: Tensor
) -> tuple[GaussianMixture, Tensor]:
    """EM from `responsibility` [n m], stopped when `validation` stops gaining: the best law and its log-density per row."""
    square = train.square()
    law = maximise(train, square, responsibility)
    best, score = law, law.log_prob(validation)
    enough = SMALLEST_GAIN * max(1.0, train.shape[-1] / 64)
    for _ in range(ITERATIONS):
        law = maximise(train, square, posterior(law, train, square))
        new = law.log_prob(validation)
        gain = float((new - score).mean())
        if gain > 0:
            best, score = law, new
        if gain < enough:
            break
    return best, score


def posterior(law: GaussianMixture, x: Tensor, square: Tensor) -> Tensor:
    """Responsibilities [n m], by matrix products: [n m d] never exists."""
    precision = torch.exp(-2 * law.log_scale)
    quadratic = square @ precision.mT - 2 * x @ (law.loc * precision).mT + (law.loc.square() * precision).sum(-1)
    return (law.logits - law.log_scale.sum(-1) - 0.5 * quadratic).softmax(-1)


def maximise(x: Tensor, square: Tensor, responsibility: Tensor) -> GaussianMixture:
    """The mixture that fits rows of given responsibilities [n m], with a weak prior of N(0, I) behind each component."""
    count = responsibility.sum(0)[:, None]
    loc = responsibility.mT @ x / (count + PRIOR)
    second = (responsibility.mT @ square + PRIOR) / (count + PRIOR)
    variance = (second - loc.square()).clamp_min(SMALLEST_VARIANCE)
    return GaussianMixture(torch.log(count[:, 0] + 1), loc, 0.5 * variance.log())
