"""The one loop: modes A to D on the perfect model of AR(1) give the closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from arlat_dynamics.models.linear import LinearModel
from arlat_dynamics.rollout import injections, rollout
from torch import Tensor

Ar1 = Callable[[float, int, int, int, int], Tensor]
Exact = Callable[[float, int], LinearModel]
RHO, STEPS = 0.8, 12


def since(mode: str) -> list[int]:
    """Steps since the state was last true, for each of STEPS steps: 0 where the state entering is the truth."""
    ages, age = [], 0
    for injected in injections(mode, STEPS):
        ages.append(age)
        age = 0 if injected else age + 1
    return ages


@pytest.mark.parametrize("mode", ["A", "B", "C", "D"])
def test_state_error_is_the_closed_form(ar1: Ar1, exact_ar1: Exact, mode: str) -> None:
    z = ar1(RHO, 4000, 8 + STEPS, 2, 0)
    out = rollout(exact_ar1(RHO, 2), z[:, :8], z[:, 8:], injections(mode, STEPS))
    entering = torch.cat([z[:, 7:8], z[:, 8:-1]], 1)  # the truth
    error = (out.state_in - entering).square().mean((0, 2))
    expected = torch.tensor([1 - RHO ** (2 * age) for age in since(mode)])
    torch.testing.assert_close(error, expected, atol=0.03, rtol=0)
    step = out.step.square().mean((0, 2))
    closed = torch.tensor([(1 - RHO) ** 2 * RHO ** (2 * age) for age in since(mode)])
    torch.testing.assert_close(step, closed, atol=0.003, rtol=0.05)


def test_likelihood_is_that_of_the_true_step_at_the_models_window(ar1: Ar1, exact_ar1: Exact) -> None:
    z = ar1(RHO, 50, 8 + STEPS, 2, 0)
    model = exact_ar1(RHO, 2)
    for mode in "ABCD":
        out = rollout(model, z[:, :8], z[:, 8:], injections(mode, STEPS))
        true_step = z[:, 8:] - z[:, 7:-1]
        variance = 1 - RHO**2
        error = true_step - (RHO - 1) * out.state_in
        expected = -0.5 * error.square().sum(-1) / variance - math.log(2 * math.pi * variance)
        torch.testing.assert_close(out.log_prob, expected)


def test_mode_a_is_unroll(ar1: Ar1, exact_ar1: Exact) -> None:
    z = ar1(RHO, 5, 20, 2, 0)
    model = exact_ar1(RHO, 2)
    out = rollout(model, z[:, :8], z[:, 8:], injections("A", STEPS))
    laws = model.unroll(z[:, :-1])[1]
    torch.testing.assert_close(out.log_prob, laws.log_prob(z.diff(dim=1))[:, 7:])


def test_sample_rollouts_keep_the_variance(ar1: Ar1, exact_ar1: Exact) -> None:
    z = ar1(RHO, 4000, 8 + STEPS, 2, 0)
    out = rollout(exact_ar1(RHO, 2), z[:, :8], z[:, 8:], injections("D", STEPS), True, torch.Generator().manual_seed(1))
    assert torch.allclose(out.state_in.var((0, 2)), torch.ones(STEPS), atol=0.06)
    again = rollout(
        exact_ar1(RHO, 2), z[:, :8], z[:, 8:], injections("D", STEPS), True, torch.Generator().manual_seed(1)
    )
    assert torch.equal(out.state_in, again.state_in)


def test_injection_replaces_the_newest_frame_alone(ar1: Ar1) -> None:
    """A model that repeats the step before last sees its own older frames after an injection."""
    from arlat_dynamics.models.linear import Config

    model = LinearModel(Config(dim=1, context=2, order=2, frames=2))
    model.weight.copy_(torch.tensor([[1.0], [-1.0]]))  # Δ̂ = z_t − z_{t−1}
    prefix, truth = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[5.0], [5.0], [5.0]]])
    out = rollout(model, prefix, truth, (False, True, False))
    # 1 → 2 → (3, injected 5): the window is then (2, 5), so that the step is 3.
    assert out.state_in.flatten().tolist() == [1.0, 2.0, 5.0]
    assert out.step.flatten().tolist() == [1.0, 1.0, 3.0]


def test_corrector_moves_the_state(ar1: Ar1, exact_ar1: Exact) -> None:
    z = ar1(RHO, 5, 20, 2, 0)

    def to_zero(x: Tensor, context: Tensor, generator: torch.Generator | None) -> Tensor:
        assert context.shape == (5, 8, 2)
        return torch.zeros_like(x)

    out = rollout(exact_ar1(RHO, 2), z[:, :8], z[:, 8:], injections("D", STEPS), correct=to_zero)
    assert torch.equal(out.state_in[:, 1:], torch.zeros(5, STEPS - 1, 2))
    torch.testing.assert_close(out.step[:, 0], -z[:, 7])


def test_each_sequence_may_have_its_own_injections(ar1: Ar1, exact_ar1: Exact) -> None:
    z, model = ar1(RHO, 3, 20, 2, 0), exact_ar1(RHO, 2)
    modes = ("A", "C", "D")
    mask = torch.tensor([injections(mode, STEPS) for mode in modes])
    together = rollout(model, z[:, :8], z[:, 8 : 8 + STEPS], mask)
    for row, mode in enumerate(modes):
        alone = rollout(model, z[row : row + 1, :8], z[row : row + 1, 8 : 8 + STEPS], injections(mode, STEPS))
        torch.testing.assert_close(together.state_in[row], alone.state_in[0])


def test_long_steps_are_shortened_and_counted(ar1: Ar1, exact_ar1: Exact) -> None:
    z, model = ar1(RHO, 50, 20, 2, 0), exact_ar1(RHO, 2)
    free = rollout(model, z[:, :8], z[:, 8:9], (False,))
    longest = float(free.step.norm(dim=-1).median())
    out = rollout(model, z[:, :8], z[:, 8:9], (False,), longest=longest)
    assert torch.equal(out.clipped, free.step.norm(dim=-1) > longest)
    assert not free.clipped.any()
    torch.testing.assert_close(out.step.norm(dim=-1), free.step.norm(dim=-1).clamp_max(longest))
    torch.testing.assert_close(torch.cosine_similarity(out.step, free.step, dim=-1), torch.ones(50, 1))


def test_gradients_reach_every_step(ar1: Ar1, exact_ar1: Exact) -> None:
    z, model = ar1(RHO, 4, 20, 2, 0), exact_ar1(RHO, 2)
    first = z[:, 7].clone().requires_grad_()
    prefix = torch.cat([z[:, :7], first[:, None]], 1)
    out = rollout(model, prefix, z[:, 8 : 8 + STEPS], injections("D", STEPS))
    (slope,) = torch.autograd.grad((out.state_in[:, -1] + out.step[:, -1]).sum(), first)
    torch.testing.assert_close(slope, torch.full_like(slope, RHO**STEPS))


def test_masks() -> None:
    assert injections("B", 16) == tuple(step in (4, 8, 12, 16) for step in range(1, 17))
    with pytest.raises(ValueError, match="no injection mode"):
        injections("Z", 4)


def test_shapes_are_checked(exact_ar1: Exact) -> None:
    model = exact_ar1(RHO, 2)
    with pytest.raises(ValueError, match=r"shape \(2,\) for 3 steps"):
        rollout(model, torch.zeros(1, 8, 2), torch.zeros(1, 3, 2), (True, False))
    with pytest.raises(ValueError, match="generator"):
        rollout(model, torch.zeros(1, 8, 2), torch.zeros(1, 1, 2), (True,), sample=True)
    with pytest.raises(ValueError, match="must be"):
        rollout(model, torch.zeros(1, 8, 3), torch.zeros(1, 1, 3), (True,))


def test_without_scores_the_states_are_the_same_and_can_be_differentiated_forward(ar1: Ar1, exact_ar1: Exact) -> None:
    z = ar1(RHO, 5, 8 + STEPS, 2, 0)
    model = exact_ar1(RHO, 2)
    never = injections("D", STEPS)
    plain, scored = (rollout(model, z[:, :8], z[:, 8:], never, scored=flag) for flag in (False, True))
    assert torch.equal(plain.state_in, scored.state_in)
    assert bool(plain.log_prob.isnan().all())
    assert bool(scored.log_prob.isfinite().all())

    def last(newest: torch.Tensor) -> torch.Tensor:
        return rollout(model, torch.cat([z[:, :7], newest], 1), z[:, 8:], never, scored=False).state_in[:, -1]

    tangent = torch.ones(5, 1, 2)
    _, grown = torch.func.jvp(last, (z[:, 7:8],), (tangent,))
    torch.testing.assert_close(grown, torch.full((5, 2), RHO ** (STEPS - 1)))
