"""The rollout of a residual MLP: a net whose states are known, rows that end, rounding of operands, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from arlat_kernels import ResidualWeights, residual_rollout, residual_rollout_op
from arlat_kernels.residual_block import narrowed
from torch import Tensor

SMALL = {"m": 2, "b": 4, "k": 5, "w": 3, "d": 32, "s": 32, "h": 64, "layers": 2}


def made(seed: int = 0, **case: Any) -> tuple[Tensor, Tensor, ResidualWeights]:
    """Inputs of a case in float64."""
    inputs = residual_rollout_op.make_inputs(**{**SMALL, **case}, generator=torch.Generator().manual_seed(seed))
    frames, given, *weights = (t.double() if t.is_floating_point() else t for t in inputs.values())
    return frames, given, ResidualWeights(*weights)


def along_first_axis(mu: float, d: int = 2) -> ResidualWeights:
    """A net that always steps along the first axis, by exp(mu/(1 + |mu|/6))."""
    net = ResidualWeights(*(torch.zeros(shape, dtype=torch.float64) for shape in [
        (1, 2, 4, d), (1, 4), (1, 1, 8, 4), (1, 1, 8), (1, 1, 4, 8), (1, 1, 4), (1, d + 3, 4), (1, d + 3),
    ]))  # fmt: skip
    net.head_bias[0, 0] = 5.0  # any length of the direction is the same
    net.head_bias[0, d:] = torch.tensor([0.25, mu, -0.75])
    return net


@pytest.mark.parametrize("mu", [math.log(2.0) / (1 - math.log(2.0) / 6), -3.0])
def test_states_lengths_and_gaps_of_a_constant_step(mu: float) -> None:
    truth = torch.tensor([[0.0, 0], [0, 0], [1, 1], [1, 1], [1, 0], [2, 0]], dtype=torch.float64)[None, None]
    given = torch.tensor([False, True, False, False])[None, None]
    out, alive = residual_rollout(truth, given, along_first_axis(mu))
    length = math.exp(mu / (1 + abs(mu) / 6))
    expected = torch.tensor([[length, 0], [2 * length, 0], [1 + length, 1], [1 + 2 * length, 1]], dtype=torch.float64)
    torch.testing.assert_close(out.predicted[0, 0], expected)
    root = 1 - 0.5**0.5  # truth goes to the diagonal, stands still, down, along
    torch.testing.assert_close(out.gap[0, 0], torch.tensor([root, 1, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(out.squared_error[0, 0], (expected - truth[0, 0, 2:]).square().sum(-1))
    for field, constant in ((out.kappa, 0.25), (out.mu, mu), (out.log_sigma, -0.75)):
        torch.testing.assert_close(field, torch.full_like(field, constant))
    assert bool(alive.all())


def test_a_step_has_at_most_the_longest_length() -> None:
    frames, given = torch.zeros(1, 1, 5, 2, dtype=torch.float64), torch.zeros(1, 1, 3, dtype=torch.bool)
    out, _ = residual_rollout(frames, given, along_first_axis(9.0), longest=1.5)
    torch.testing.assert_close(out.predicted[0, 0, :, 0], torch.tensor([1.5, 3, 4.5], dtype=torch.float64))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_row_stops_at_its_first_broken_frame_and_others_go_on(broken: float) -> None:
    frames, given, net = made()
    damaged = frames.clone()
    damaged[0, 1, 4, 7] = broken  # truth after step 1
    damaged[1, 2, 0, 0] = broken  # in the prefix
    leaves = [tensor.requires_grad_() for tensor in net]
    whole, _ = residual_rollout(frames, given, net)
    out, alive = residual_rollout(damaged, given, net)
    lasts = [5, 1, 5, 5, 5, 5, 0, 5]
    assert alive.sum(-1).flatten().tolist() == lasts
    for field, plain in zip(out, whole, strict=True):
        mask = alive.reshape(*alive.shape, *[1] * (field.dim() - 3))
        torch.testing.assert_close(field, torch.where(mask, plain, 0.0))
    weight = torch.randn(alive.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected, got = (
        torch.autograd.grad((torch.where(alive, each.squared_error, 0.0) * weight).sum(), leaves, allow_unused=True)
        for each in (whole, out)
    )
    for of_whole, of_damaged, name in zip(expected, got, net._fields, strict=True):
        torch.testing.assert_close(of_damaged, of_whole, msg=name)


def test_bfloat16_operands_are_rounded_in_products_and_nowhere_else() -> None:
    frames, given, net = made()
    coarse = ResidualWeights(*net)._replace(
        enter=torch.zeros_like(net.enter), enter_bias=torch.zeros_like(net.enter_bias)
    )
    coarse = coarse._replace(up=torch.zeros_like(net.up), head=torch.zeros_like(net.head))
    plain, _ = residual_rollout(frames, given, coarse)
    rounded, _ = residual_rollout(frames, given, coarse, operands="bfloat16")  # only act(up_bias)·down is left to round
    torch.testing.assert_close(rounded.predicted, plain.predicted, rtol=1e-12, atol=1e-12)
    plain, _ = residual_rollout(frames, given, net)
    rounded, _ = residual_rollout(frames, given, net, operands="bfloat16")
    error = (rounded.predicted - plain.predicted).norm() / plain.predicted.norm()
    assert 1e-5 < float(error) < 1e-2
    assert torch.equal(narrowed(frames.float(), "bfloat16"), frames.float().bfloat16().float())


def test_models_may_share_frames() -> None:
    frames, given, net = made()
    shared = frames[:1].expand(2, -1, -1, -1)
    together, _ = residual_rollout(shared, given, net)
    alone, _ = residual_rollout(frames[:1], given[1:], ResidualWeights(*(tensor[1:] for tensor in net)))
    torch.testing.assert_close(together.predicted[1:], alone.predicted)


@pytest.mark.parametrize("case", [{"k": 0}, {"b": 0}, {"layers": 0}, {"w": 1}])
def test_nothing_is_a_case_like_others(case: dict[str, int]) -> None:
    frames, given, net = made(**case)
    out, alive = residual_rollout(frames, given, net)
    assert out.predicted.shape == (*given.shape, 32)
    assert out.gap.shape == alive.shape == given.shape


def test_what_does_not_fit_is_named() -> None:
    frames, given, net = made()
    with pytest.raises(ValueError, match=r"up \(2, 2, 64, 32\).*down \(2, 2, 32, 63\).*must be frames \[m b w\+k d\]"):
        residual_rollout(frames, given, net._replace(down=net.down[..., :-1]))
    with pytest.raises(ValueError, match=r"given is torch.float64"):
        residual_rollout(frames, given.double(), net)
    with pytest.raises(ValueError, match=r"no activation 'gelu'. Known: silu, relu2"):
        residual_rollout(frames, given, net, activation="gelu")
    with pytest.raises(ValueError, match=r"no operands 'float16'. Known: float32, bfloat16"):
        residual_rollout(frames, given, net, operands="float16")
    with pytest.raises(ValueError, match=r"longest inf must be positive and finite"):
        residual_rollout(frames, given, net, longest=math.inf)


@pytest.mark.parametrize(
    ("case", "operands", "words"),
    [
        ({"s": 512}, "float32", "stream is 512 wide"),
        ({"d": 64}, "bfloat16", "frames have 64 dimensions"),
        ({"d": 24}, "bfloat16", "frames have 24 dimensions"),
        ({"h": 96}, "bfloat16", "blocks 96 units"),
    ],
)
def test_the_twin_says_which_shape_goes_the_other_way(case: dict[str, int], operands: str, words: str) -> None:
    frames, given, net = made(**case)
    why = residual_rollout_op.twins["triton"].obstacle(
        frames.float(), given, *(t.float() for t in net), operands=operands
    )
    assert why is not None
    assert words in why
    assert residual_rollout_op.pick(frames, given, *net, operands=operands) == "reference"
