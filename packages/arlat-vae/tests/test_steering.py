"""Steered weights: they move the right way, reach what they are told to reach, and stay within bounds."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_vae.ar_losses import smoothness
from arlat_vae.steering import REACH, Multipliers, SteeringConfig, Term
from pydantic import ValidationError

CONFIG = SteeringConfig(rate=0.1, decay=0.5)


def test_a_weight_grows_above_its_target_and_falls_below() -> None:
    terms = {"a": Term(weight=2.0, target=1.0), "b": Term(weight=3.0)}
    state = Multipliers()
    assert [state.weight(name, term) for name, term in terms.items()] == [2.0, 3.0]
    state = state.updated({"a": 1.5, "b": 9.0}, terms, CONFIG)
    assert state.weight("a", terms["a"]) == pytest.approx(2 * math.exp(0.1 * 0.5))
    assert state.weight("b", terms["b"]) == 3.0
    state = state.updated({"a": -1.0}, terms, CONFIG)  # average ½·0.5 + ½·(−2) = −0.75
    assert state.weight("a", terms["a"]) == pytest.approx(2 * math.exp(0.1 * (0.5 - 0.75)))


def test_what_is_not_finite_moves_nothing_and_weights_stay_in_bounds() -> None:
    terms = {"a": Term(weight=1.0, target=0.0)}
    state = Multipliers().updated({"a": math.nan}, terms, CONFIG)
    assert state == Multipliers()
    for value, end in ((1e6, REACH), (-1e6, -REACH)):
        assert Multipliers().updated({"a": value}, terms, CONFIG).log["a"] == end


def test_a_target_needs_a_weight() -> None:
    with pytest.raises(ValidationError, match="needs a weight to begin with"):
        Term(target=0.5)


@pytest.mark.parametrize("target", [1.2, 0.5])
def test_a_steered_loss_reaches_its_target(target: float) -> None:
    """min ‖z − x‖² + λ·L_smooth(z) for white x, whose L_smooth is 2."""
    x = torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(0))
    z = torch.nn.Parameter(x.clone())
    optimiser, state = torch.optim.Adam([z], 0.02), Multipliers()
    term = {"smooth": Term(weight=0.01, target=target)}
    assert float(smoothness(z.detach(), 1)) == pytest.approx(2.0, abs=0.2)
    for _ in range(600):
        value = smoothness(z, 1)
        optimiser.zero_grad()
        ((z - x).square().mean() + state.weight("smooth", term["smooth"]) * value).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        state = state.updated({"smooth": float(value.detach())}, term, SteeringConfig(rate=0.1))
    assert float(smoothness(z.detach(), 1)) == pytest.approx(target, rel=0.05)
    assert state.weight("smooth", term["smooth"]) > 0.02
