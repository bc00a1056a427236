"""The probe: known answers on processes whose laws are known, and figures that do not depend on the latents' units."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from arlat_core.config import UserError
from arlat_vae.predictor import PredictorConfig
from arlat_vae.probe import ProbeConfig, Sequences, gaussian_nll, probe
from torch import Tensor

Draw = Callable[..., Sequences]
SMALL = ProbeConfig(steps=200, predictor=PredictorConfig(window_frames=2, hidden=32))


@pytest.fixture
def drawn(autoregression: Callable[..., Tensor]) -> Draw:
    def draw(rho: float, count: int, seed: int, frames: int = 60) -> Sequences:
        return Sequences(list(autoregression(rho, seed, (count, frames, 3))), [str(index) for index in range(count)])

    return draw


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_an_autoregression_is_worth_what_theory_says(rho: float, drawn: Draw) -> None:
    found = probe(drawn(rho, 60, 1), drawn(rho, 25, 2), 12.5, SMALL)
    gain = -0.5 * math.log(1 - rho**2)  # nats per dimension that the past tells
    step = math.sqrt(2 - 2 * rho)  # of one dimension
    surprise = 0.5 * math.log(2 * math.pi * math.e * (1 - rho**2)) - math.log(step)
    assert found["probe.pred"].value == pytest.approx(surprise, abs=0.04)
    assert found["probe.pred"].floor == pytest.approx(surprise, abs=0.02)  # mean reversion is all there is
    assert found["probe.information"].value == pytest.approx(3 * gain, abs=0.12)
    rate = found["probe.information_rate"].value
    assert rate == pytest.approx(found["probe.information"].value * 12.5 / math.log(2))  # type: ignore[operator]
    assert found["probe.smooth"].value == pytest.approx(2 - 2 * rho, rel=0.1)
    assert found["probe.pred"].n.frames == 25 * 58
    assert found["probe.pred"].low < found["probe.pred"].value < found["probe.pred"].high  # type: ignore[operator]


def test_an_invertible_linear_map_does_not_matter(drawn: Draw) -> None:
    """Of correlated dimensions the past tells as much as of the independent ones that they are made of."""
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.95, 0.3, 0.0], [0.9, 0.2, 0.05]])

    def mixed(some: Sequences) -> Sequences:
        return Sequences([0.01 * z @ mix.T + 3 for z in some.z], some.speakers)

    found = probe(mixed(drawn(0.8, 60, 1)), mixed(drawn(0.8, 25, 2)), 12.5, SMALL)
    assert found["probe.information"].value == pytest.approx(-1.5 * math.log(1 - 0.64), abs=0.15)


def test_where_utterances_begin_does_not_matter(drawn: Draw) -> None:
    """First frames that lie far away along one direction must not make the other directions look as if they never moved."""

    def worth(far: float) -> float:
        first = torch.zeros(60, 3)
        first[0, 0] = far
        spread = torch.tensor([1.0, 0.1, 0.03])
        parts = [drawn(0.8, count, seed) for count, seed in ((60, 1), (25, 2))]
        begun = [Sequences([z * spread + first for z in part.z], part.speakers) for part in parts]
        return probe(begun[0], begun[1], 12.5, SMALL)["probe.information"].value or 0.0

    assert worth(3000.0) == pytest.approx(worth(0.0), abs=0.05)


def test_the_marginal_is_the_full_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[1.0, 0.0], [0.9, 0.4]])
    x: Tensor = torch.randn(20_000, 2, generator=generator) @ mix.T
    law = torch.distributions.MultivariateNormal(torch.zeros(2), mix @ mix.T)
    assert float(gaussian_nll(x, x).mean()) == pytest.approx(float(-law.log_prob(x).mean()), abs=0.005)


def test_frames_that_are_too_few_for_a_marginal_have_no_information(drawn: Draw) -> None:
    found = probe(drawn(0.8, 1, 1, 5), drawn(0.8, 4, 2), 12.5, SMALL)
    assert found["probe.information_rate"].value is None
    assert found["probe.information"].status == "3 training frames say nothing of the marginal of 3 dimensions"
    assert found["probe.pred"].status == "ok"
    assert probe(drawn(0.8, 1, 1, 6), drawn(0.8, 4, 2), 12.5, SMALL)["probe.information"].value is not None


def test_utterances_that_are_too_short_are_named(drawn: Draw) -> None:
    short = drawn(0.5, 3, 0, frames=1)
    with pytest.raises(UserError, match="longest have 60 and 1"):
        probe(drawn(0.5, 3, 0), short, 12.5, SMALL)
