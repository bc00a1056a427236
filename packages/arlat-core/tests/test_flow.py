"""The flow: an exact density, laws that no Gaussian has, and what its mean and point are worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from arlat_core.distributions import DiagonalGaussian, Flow
from arlat_core.heads import FlowHead, GaussianHead, Head, build_head
from arlat_core.testing import check_step_distribution
from torch import Tensor, nn, tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bent_head(dim: int, strength: float = 0.4, hidden: int = 4) -> FlowHead:
    """A flow whose couplings are random instead of absent."""
    torch.manual_seed(0)
    head = build_head("flow", dim, hidden)
    assert isinstance(head, FlowHead)
    with torch.no_grad():
        head.outward.normal_(std=strength / 8)
    return head


def law_of(head: Head, features: float = 0.0, scale: float = 1.0) -> Flow:
    """One law of a head."""
    head.calibrate(scale, 1.0)
    law = head.requires_grad_(False)(torch.full((head.hidden,), features))
    assert isinstance(law, Flow)
    return law


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_contract(dim: int) -> None:
    def make(scale: float) -> Flow:
        return law_of(bent_head(dim), 1.0, scale)

    plain = make(1.0)
    wild = Flow(plain.loc, plain.log_scale, 100 * plain.bias, plain.layers)
    torn = Flow(plain.loc, plain.log_scale, plain.bias, plain.layers._replace(outward=30 * plain.layers.outward))
    check_step_distribution(make, (make(1e-6), make(1e6), wild, torn))


@pytest.mark.parametrize(("dim", "strength"), [(4, 0.0), (1, 1.0)])
def test_without_couplings_and_in_one_dimension_it_is_gaussian(dim: int, strength: float) -> None:
    law = law_of(bent_head(dim, strength), 1.0)
    draws = law.expand(50_000).sample(seeded(0))
    gaussian = DiagonalGaussian(law.mean(), draws.std(0).log())
    x = 2 * torch.randn(50, dim, generator=seeded(1)) * draws.std(0)
    torch.testing.assert_close(law.log_prob(x), gaussian.log_prob(x), rtol=0.02, atol=0.02)
    torch.testing.assert_close(
        law.point(), law.mean(), rtol=1e-4, atol=1e-5
    )  # no longer than most draws: not shortened


def test_the_mean_is_as_good_as_it_says() -> None:
    errors = []
    for dim in (2, 4, 32):
        law = law_of(bent_head(dim, 2.0), 1.0)
        draws = law.expand(50_000).sample(seeded(0)).double()
        assert float((draws.mean(0) - law.point()).abs().max() / draws.std()) > 0.05  # the map is not affine
        errors.append(float(((law.mean() - draws.mean(0)) / draws.std(0)).square().mean().sqrt()))
    assert max(errors[:2]) < 0.03  # of a standard deviation
    assert errors[2] < 0.09


def test_the_inverse_undoes_the_map_at_many_dimensions() -> None:
    law = law_of(bent_head(512, 2.0), 1.0).expand(40)
    e = torch.randn(40, 512, generator=seeded(0))
    expected = -0.5 * e.square().sum(-1) - 256 * math.log(2 * math.pi)
    dx = law._map(e)
    moved = law.log_prob(dx)
    eye = torch.autograd.functional.jacobian(lambda e: law.slice(0)._map(e), e[0])
    torch.testing.assert_close(moved[0], expected[0] - torch.linalg.slogdet(eye)[1], rtol=1e-4, atol=1e-2)


def test_a_point_is_shortened_in_its_own_direction() -> None:
    """A coupling that throws the mode far out, where few draws land: its shift of 16 at e = 0 falls off within ±0.1."""
    plain = law_of(bent_head(2, 0.0))
    layers = plain.layers._replace(
        held=tensor([[True, False]]),
        inward=tensor([[[40.0, 40.0], [0.0, 0.0]]]),
        outward=tensor([[[0.0, 10.0, 0.0, 0.0], [0.0, -10.0, 0.0, 0.0]]]),
    )
    law = Flow(tensor([0.0, 0.5]), torch.zeros(2), tensor([[4.0, -4.0]]), layers)
    image = law._map(torch.zeros(2))
    torch.testing.assert_close(image, tensor([0.0, 16.5]))
    length = law.expand(20_000).sample(seeded(0)).norm(dim=-1)
    assert float(length.quantile(0.95)) < 16
    assert float(length.quantile(0.5)) < float(law.point().norm()) < float(length.quantile(0.9))
    torch.testing.assert_close(torch.cosine_similarity(law.point(), image, dim=0), tensor(1.0))


def test_the_gradient_reaches_every_weight() -> None:
    head = bent_head(3)
    hidden = torch.randn(20, 4, generator=seeded(0))
    head(hidden).log_prob(torch.randn(20, 3, generator=seeded(1))).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().max()) > 0, name


@torch.no_grad()
def test_one_graph() -> None:
    head = bent_head(3)
    hidden, dx = torch.randn(6, 4, generator=seeded(0)), torch.randn(6, 3, generator=seeded(1))

    def score(hidden: Tensor, dx: Tensor) -> Tensor:
        law = head(hidden)
        return law.log_prob(dx).sum() + law.point().sum()

    torch.compiler.reset()
    compiled: Any = torch.compile(score, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, dx), score(hidden, dx))


def bimodal(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Steps of ± a direction that the features turn, 4 standard deviations of the noise to either side; their entropy."""
    angle = math.pi * torch.rand(count, generator=generator)
    side = torch.randint(2, (count, 1), generator=generator) * 2 - 1
    toward = torch.stack([angle.cos(), angle.sin()], -1)
    dx = 2 * side * toward + 0.5 * torch.randn(count, 2, generator=generator)
    entropy = math.log(2) + math.log(2 * math.pi * math.e * 0.25)
    return torch.stack([(2 * angle).cos(), (2 * angle).sin()], -1), dx, entropy


def banana(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Steps on a parabola that the features open to one side or the other, with little noise across; their entropy."""
    bend = 2 * torch.rand(count, generator=generator) - 1
    along, across = torch.randn(2, count, generator=generator).unbind(0)
    dx = torch.stack([along, 2 * bend.sign() * (along.square() - 1) + 0.3 * across], -1)
    entropy = math.log(2 * math.pi * math.e * 0.3)
    return torch.stack([bend.sign(), bend], -1), dx, entropy


def train(head: Head, draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor, float]], steps: int) -> float:
    """NLL on fresh draws after training on draws, in nats above the entropy."""
    generator = seeded(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), head)
    optimiser = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        features, dx, _ = draw(256, generator)
        loss = -network(features).log_prob(dx).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    features, dx, entropy = draw(20_000, generator)
    with torch.no_grad():
        return -float(network(features).log_prob(dx).mean()) - entropy


@pytest.mark.parametrize(("draw", "missed", "allowed"), [(bimodal, 1.0, 0.25), (banana, 2.0, 0.25)])
def test_it_learns_laws_that_no_diagonal_gaussian_has(
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor, float]], missed: float, allowed: float
) -> None:
    torch.manual_seed(0)
    gaussian, flow = GaussianHead(2, 32), FlowHead(2, 32)
    gap = train(gaussian, draw, 200)
    assert gap > missed
    left = train(flow, draw, 400)
    assert -0.03 < left < allowed
    law = flow(torch.zeros(32))
    side = torch.linspace(-12, 12, 601)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    with torch.no_grad():
        whole = law.log_prob(grid).double().exp().sum() * float(side[1] - side[0]) ** 2
    assert float(whole) == pytest.approx(1, abs=0.01)
