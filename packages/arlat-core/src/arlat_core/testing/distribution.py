"""The contract of a step distribution: `check_step_distribution(make)` is all the test that a new one needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from arlat_core.distributions import StepDistribution

SCALES = (0.1, 1.0, 10.0)
DRAWS = 20_000
CENTRES = 32


def check_step_distribution(
    make: Callable[[float], StepDistribution], extreme: tuple[StepDistribution, ...] = ()
) -> None:
    """Raises AssertionError, with values, when a step distribution breaks its contract.

    `make(scale)` gives one law (empty batch, D ≤ 6, so that the importance estimate is sharp) whose displacements are
    about `scale` long; a Jacobian that is missing passes at scale 1 and fails at 0.1 and 10. `extreme` are laws at the
    ends of their parameters, which must keep finite densities, gradients and points.
    """
    for scale in SCALES:
        law = make(scale)
        assert law.batch_shape == (), f"make({scale}) must give one law, got the batch {tuple(law.batch_shape)}"
        _check_density(law, scale)
        _check_point(law, f"scale {scale}")
    _check_shapes(make(1.0))
    _check_generator(make(1.0))
    for law in (*(make(scale) for scale in SCALES), *extreme):
        _check_gradients(law)
    for law in extreme:
        _check_point(law, "an extreme of its parameters")


def seeded(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def _check_density(law: StepDistribution, scale: float) -> None:
    """E_{x~p}[h(x)/p(x)] = 1 for a density h that p covers: a mixture of narrow kernels around draws of p."""
    x = law.expand(DRAWS).sample(seeded(0)).double()
    centre = law.expand(CENTRES).sample(seeded(1)).double()
    spread = x.std(0)
    near = torch.cdist(centre / spread, x[:4000] / spread).sort(-1).values[:, 100]  # inside p's mass, not its gaps
    width = 0.5 * near[:, None] * spread  # [centres d]
    z = (x[:, None] - centre) / width
    log_kernel = -0.5 * z.square().sum(-1) - width.log().sum(-1) - 0.5 * law.dim * math.log(2 * math.pi)
    log_h = torch.logsumexp(log_kernel, -1) - math.log(CENTRES)
    weight = torch.exp(log_h - law.log_prob(x.to(law.mean().dtype)).double())
    mean, error = float(weight.mean()), float(weight.std()) / math.sqrt(DRAWS)
    assert error < 0.05, f"at scale {scale} the estimate of E[h/p] is too loose: {mean:.3f} ± {error:.3f}"
    assert abs(mean - 1) < 5 * error + 1e-3, f"at scale {scale}, E[h(x)/p(x)] = {mean:.4f} ± {error:.4f}, not 1"


def _check_point(law: StepDistribution, where: str) -> None:
    """The deterministic step is finite and not longer than 95 % of the samples."""
    length = law.expand(4000).sample(seeded(2)).norm(dim=-1)
    point = law.point()
    assert torch.isfinite(point).all(), f"point at {where} is not finite"
    bound = float(length.quantile(0.95))
    assert float(point.norm()) <= bound * (1 + 1e-5), (
        f"point at {where} is {float(point.norm()):.4g} long; 95 % of samples are below {bound:.4g}"
    )


def _check_shapes(law: StepDistribution) -> None:
    """Batches behave as their items: expand, slice, log_prob broadcast, mean of samples."""
    batch = law.expand(5)
    assert batch.batch_shape == (5,), f"expand(5) has the batch {tuple(batch.batch_shape)}"
    x = batch.sample(seeded(3))
    assert x.shape == (5, law.dim), f"sample of a batch of 5 gave {tuple(x.shape)}"
    assert batch.mean().shape == batch.point().shape == x.shape, "mean and point must be [... d]"
    torch.testing.assert_close(batch.log_prob(x), law.log_prob(x), msg=lambda text: f"batch and one law differ: {text}")
    part = batch.slice(slice(1, 3))
    assert part.batch_shape == (2,), f"slice(1:3) has the batch {tuple(part.batch_shape)}"
    torch.testing.assert_close(part.log_prob(x[1:3]), law.log_prob(x[1:3]))
    draws = law.expand(DRAWS).sample(seeded(4)).double()
    error = 5 * draws.std(0) / math.sqrt(DRAWS) + 1e-6
    assert ((draws.mean(0) - law.mean().double()).abs() < error).all(), (
        f"mean {law.mean()} against draws' {draws.mean(0)}"
    )


def _check_generator(law: StepDistribution) -> None:
    """Draws depend on the generator alone, and leave the global one as it was."""
    before = torch.get_rng_state()
    first, again, other = (law.expand(8).sample(seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state()), "sample draws from the global generator"
    assert torch.equal(first, again), "sample is not a function of its generator"
    assert not torch.equal(first, other), "sample ignores its generator"
    assert not torch.equal(first[1:], first[:-1]), "the laws of a batch share their draws"


def _check_gradients(law: StepDistribution) -> None:
    """Densities and their gradients by x and by every parameter are finite, near the law and far from it."""
    leaves: list[Tensor] = []
    copy = _with_leaves(law, leaves)
    x = law.expand(64).sample(seeded(7)).detach()
    far = 100 * x.norm(dim=-1).max() * torch.ones(1, law.dim, dtype=x.dtype)
    points = torch.cat([x, law.point().detach()[None], far, -far, torch.zeros_like(far)]).requires_grad_()
    value = copy.log_prob(points)
    assert torch.isfinite(value).all(), f"log_prob is not finite: {value}"
    names = ["x", *(f"a parameter {tuple(leaf.shape)}" for leaf in leaves)]
    for name, grad in zip(names, torch.autograd.grad(value.sum(), [points, *leaves]), strict=True):
        assert torch.isfinite(grad).all(), f"the gradient by {name} is not finite"


def _with_leaves(law: StepDistribution, leaves: list[Tensor]) -> StepDistribution:
    """A copy of a dataclass law whose floating parameters are fresh leaves, also inside a law that it wraps."""
    changed: dict[str, object] = {}
    for field in dataclasses.fields(law):  # type: ignore[arg-type]  # every leaf law is a dataclass
        value = getattr(law, field.name)
        if isinstance(value, StepDistribution):
            changed[field.name] = _with_leaves(value, leaves)
        elif isinstance(value, Tensor) and value.is_floating_point():
            leaf = value.detach().clone().requires_grad_()
            changed[field.name] = leaf
            leaves.append(leaf)
    return dataclasses.replace(law, **changed)  # type: ignore[type-var]
