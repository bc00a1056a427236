"""The balancer: shares as given whatever the losses' scales, known answers, guards."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_vae.balancer import Norms, balance
from torch import Tensor


def directions(audio: Tensor, scales: dict[str, float]) -> dict[str, Tensor]:
    """Losses whose gradients are `scale` along axes of their own."""
    return {name: scale * audio[:, place].sum() for place, (name, scale) in enumerate(scales.items())}


def test_the_ratio_is_that_of_the_weights_whatever_the_scales() -> None:
    audio = torch.zeros(3, 4, requires_grad=True)
    losses = directions(audio, {"a": 1e-3, "b": 700.0, "c": 1.0})
    weights = {"a": 1.0, "b": 3.0, "c": 4.0, "unused": 9.0}
    result = balance(losses, weights, audio, Norms())
    torch.testing.assert_close(result.gradient, torch.tensor([[1 / 8, 3 / 8, 4 / 8, 0.0]]).expand(3, 4))
    assert result.observed == pytest.approx({"a": 1e-3, "b": 700.0, "c": 1.0})
    assert result.refused == ()


def test_scale_sets_the_size_of_the_whole() -> None:
    """At 1/(b·√n), what one loss alone sends is what mean |error| sends, whatever that loss is multiplied by."""
    audio = torch.randn(3, 400, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain = torch.autograd.grad(audio.abs().mean(), audio)[0]
    result = balance({"a": 70 * audio.abs().mean()}, {"a": 5.0}, audio, Norms(), scale=1 / (3 * math.sqrt(400)))
    torch.testing.assert_close(result.gradient, plain)


def test_opposite_losses_of_equal_weight_cancel() -> None:
    audio = torch.zeros(1, 1, requires_grad=True)
    losses = {"up": (audio - 1).abs().sum(), "down": 100 * (audio + 1).abs().sum()}
    assert float(balance(losses, {"up": 1.0, "down": 1.0}, audio, Norms()).gradient) == pytest.approx(0.0, abs=1e-7)


def test_the_norm_is_a_running_mean() -> None:
    audio = torch.zeros(1, 1, requires_grad=True)
    norms = Norms()
    for scale in (2.0, 2.0, 8.0):
        result = balance({"a": scale * audio.sum()}, {"a": 1.0}, audio, norms, decay=0.5)
        norms = result.norms
    mean = (0.25 * 2 + 0.5 * 2 + 8) / (0.25 + 0.5 + 1)
    assert norms.mean("a") == pytest.approx(mean)
    assert float(result.gradient) == pytest.approx(8 / mean)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_without_finite_gradient_is_left_out(bad: float) -> None:
    audio = torch.zeros(2, 2, requires_grad=True)
    before = Norms().updated({"b": 5.0}, 0.9)
    result = balance(directions(audio, {"a": 2.0, "b": bad}), {"a": 1.0, "b": 1.0}, audio, before)
    torch.testing.assert_close(result.gradient, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    assert result.refused == ("b",)
    assert result.norms.mean("b") == 5.0


def test_a_loss_without_gradient_adds_nothing() -> None:
    audio = torch.zeros(2, 2, requires_grad=True)
    result = balance({"a": 0.0 * audio.sum()}, {"a": 1.0}, audio, Norms())
    assert torch.equal(result.gradient, torch.zeros(2, 2))


def test_a_loss_needs_a_weight() -> None:
    audio = torch.zeros(1, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"losses \['b'\] have no weight"):
        balance({"b": audio.sum()}, {"a": 1.0}, audio, Norms())
