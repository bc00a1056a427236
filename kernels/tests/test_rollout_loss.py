"""Losses of given sequences against formulas written out in float64, by quadrature, and at their edges."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_kernels import RolloutLoss, rollout_loss, rollout_loss_op, vmf_log_norm
from arlat_kernels.rollout_loss import make_inputs
from torch import Tensor
from torch.distributions import LogNormal

NAMES = ("pred", "true", "direction", "kappa", "log_length", "log_sigma")


def inputs(*lead: int, d: int, kappa: float = 20.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    made = make_inputs(math.prod(lead), d, kappa, generator=torch.Generator().manual_seed(seed))
    return [
        (made[name].reshape(*lead, d) if index < 3 else made[name].reshape(lead)).to(dtype)
        for index, name in enumerate(NAMES)
    ]


def oracle(
    pred: Tensor, true: Tensor, direction: Tensor, kappa: Tensor, log_length: Tensor, log_sigma: Tensor
) -> RolloutLoss:
    """The definitions, one by one."""
    length = true.norm(dim=-1)
    log_c = vmf_log_norm(kappa, true.shape[-1], scaled=False)
    direction_nll = -log_c - kappa * torch.cosine_similarity(direction, true, dim=-1, eps=0.0)
    law = LogNormal(log_length, log_sigma.exp())
    length_nll = -law.log_prob(length)  # type: ignore[no-untyped-call]
    return RolloutLoss(
        cosine=torch.cosine_similarity(pred, true, dim=-1, eps=0.0),
        length_pred=pred.norm(dim=-1),
        length_true=length,
        squared_error=torch.nn.functional.mse_loss(pred, true, reduction="none").sum(-1),
        direction_nll=direction_nll,
        length_nll=length_nll,
        nll=direction_nll + length_nll + (true.shape[-1] - 1) * length.log(),
    )


@pytest.mark.parametrize("d", [2, 3, 8, 67, 512, 2048])
def test_agrees_with_the_definitions(d: int) -> None:
    given = inputs(2, 5, d=d)
    got, expected = rollout_loss(*given), oracle(*given)
    for name in RolloutLoss._fields:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-10, atol=1e-10, msg=name)
    narrow = [tensor.float() for tensor in given]
    single, truth = rollout_loss(*narrow), oracle(*(tensor.double() for tensor in narrow))
    for name in RolloutLoss._fields:
        torch.testing.assert_close(getattr(single, name), getattr(truth, name).float(), rtol=2e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("kappa", [0.0, 5.0])
def test_nll_is_a_density_of_the_displacement(kappa: float) -> None:
    length = torch.linspace(-6, 6, 2001, dtype=torch.float64).exp()  # log-spaced radii: dm = m d(log m)
    turn = (torch.arange(256, dtype=torch.float64) + 0.5) * (2 * math.pi / 256)
    true = length[:, None, None] * torch.stack([turn.cos(), turn.sin()], -1)  # [radii, angles, 2]
    direction = torch.tensor([2.0, 1.0], dtype=torch.float64)
    at, spread, k = (torch.tensor(v, dtype=torch.float64) for v in (0.4, -0.7, kappa))
    density = torch.exp(-rollout_loss(direction, true, direction, k, at, spread).nll)
    total = (density.sum(-1) * (2 * math.pi / 256) * length**2).sum() * (12 / 2000)
    assert float(total) == pytest.approx(1, abs=1e-9)


def test_the_ratio_and_an_exact_prediction() -> None:
    _, true, _, _, log_length, log_sigma = inputs(4, 6, d=16)
    kappa = torch.full((4, 6), 50.0, dtype=torch.float64)
    found = rollout_loss(0.25 * true, true, 0.25 * true, kappa, log_length, log_sigma)
    torch.testing.assert_close(found.cosine, torch.ones_like(kappa))
    assert float(found.length_pred.sum() / found.length_true.sum()) == pytest.approx(0.25, rel=1e-12)
    torch.testing.assert_close(found.squared_error, (0.75 * found.length_true) ** 2)
    torch.testing.assert_close(found.direction_nll, -vmf_log_norm(kappa, 16))


def test_large_kappa_keeps_its_digits() -> None:
    pred, true, direction, _, *rest = inputs(50, d=512, kappa=1e6, dtype=torch.float32)
    kappa = torch.full((50,), 1e6)
    got = rollout_loss(pred, true, direction, kappa, *rest).direction_nll
    unit = [torch.nn.functional.normalize(tensor.double(), dim=-1) for tensor in (direction, true)]
    distance = 1e6 * 0.5 * (unit[0] - unit[1]).square().sum(-1)
    log_norm = vmf_log_norm(kappa.double(), 512)
    allowed = 1e-6 * (distance - log_norm).abs().clamp_min(1) + 1e-7 * (log_norm.abs() + distance)
    assert bool(((got - (distance - log_norm)).abs() <= allowed).all())


def test_without_a_direction_head_the_direction_is_uniform() -> None:
    pred, true, _, _, log_length, log_sigma = inputs(3, 4, d=8)
    found = rollout_loss(pred, true, pred, torch.zeros(()).double(), log_length, log_sigma)
    area = math.log(2) + 4 * math.log(math.pi) - math.lgamma(4)
    torch.testing.assert_close(found.direction_nll, torch.full((3, 4), area, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_have_finite_values_and_gradients(dtype: torch.dtype) -> None:
    given = inputs(3, d=6, dtype=dtype)
    for index in range(3):
        given[index][index] = 0
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    found = rollout_loss(*leaves)
    assert all(bool(torch.isfinite(field).all()) for field in found)
    assert found.cosine[:2].tolist() == [0, 0]
    assert [found.length_pred[0].item(), found.length_true[1].item()] == [0, 0]
    torch.testing.assert_close(found.direction_nll[1:], (given[3] - vmf_log_norm(given[3], 6))[1:])
    slopes = torch.autograd.grad(torch.stack(found).sum(), leaves)
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
    cosine = torch.autograd.grad(rollout_loss(*leaves).cosine.sum(), leaves[:2])
    assert all(bool((slope[:2] == 0).all()) for slope in cosine)
    lengths = torch.autograd.grad(rollout_loss(*leaves).nll.sum(), leaves[1])[0]
    assert bool((lengths[1] == 0).all())
    assert bool((lengths[0] != 0).any())


def test_gradients_are_those_of_the_definitions() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(7, d=5)]
    for name in RolloutLoss._fields:
        got = torch.autograd.grad(getattr(rollout_loss(*leaves), name).sum(), leaves, allow_unused=True)
        expected = torch.autograd.grad(getattr(oracle(*leaves), name).sum(), leaves, allow_unused=True)
        for own, true in zip(got, expected, strict=True):
            torch.testing.assert_close(
                torch.zeros(()) if own is None else own, torch.zeros(()) if true is None else true, rtol=1e-9, atol=1e-9
            )


def test_gradients_by_finite_differences_twice() -> None:
    given = [tensor.requires_grad_() for tensor in inputs(2, d=3, kappa=3.0)]
    assert torch.autograd.gradcheck(rollout_loss_op.reference, given)
    assert torch.autograd.gradgradcheck(rollout_loss_op.reference, given)


def test_shapes_and_dtypes() -> None:
    given = inputs(2, 3, d=4, dtype=torch.float32)
    flat = rollout_loss(*(tensor.flatten(0, 1) for tensor in given))
    shaped = rollout_loss(*given)
    assert all(torch.equal(one.reshape(2, 3), two) for one, two in zip(flat, shaped, strict=True))
    assert all(field.shape == (0,) for field in rollout_loss(*inputs(0, d=4)))
    narrow = [tensor.bfloat16() for tensor in given]
    wide = rollout_loss(*(tensor.float() for tensor in narrow))
    assert all(torch.equal(one, two) for one, two in zip(rollout_loss(*narrow), wide, strict=True))
    mixed = rollout_loss(*narrow[:3], *(tensor.float() for tensor in narrow[3:]))
    assert all(torch.equal(one, two) for one, two in zip(mixed, wide, strict=True))


def test_wrong_shapes_are_named() -> None:
    given = inputs(2, 3, d=4)
    with pytest.raises(ValueError, match=r"pred \(2, 3, 4\), true \(2, 3, 3\), .* with one d ≥ 2"):
        rollout_loss(given[0], given[1][..., :-1], *given[2:])
    with pytest.raises(ValueError, match=r"kappa \(2, 2\).* leading axes must fit"):
        rollout_loss(*given[:3], given[3][:, :-1], *given[4:])
    with pytest.raises(ValueError, match=r"leading axes must fit"):
        rollout_loss_op(*given[:3], given[3][:1], *given[4:])
    with pytest.raises(ValueError, match="negative"):
        rollout_loss(*given[:3], -given[3], *given[4:])
