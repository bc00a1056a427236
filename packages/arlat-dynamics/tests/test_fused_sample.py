"""Sampled rollouts by the fused op have the law of the loop's, and are taken where nothing is lost."""

from __future__ import annotations

import math

import pytest
import torch
from arlat_core.distributions import VonMisesLogNormal
from arlat_dynamics import rollout as module
from arlat_dynamics.base import Window
from arlat_dynamics.fused import LONGEST
from arlat_dynamics.headed import Scales
from arlat_dynamics.models.mlp import Config, ResidualMLP
from arlat_dynamics.rollout import Places, Rollout, Route, injections, rollout
from arlat_kernels import vmf_mean_resultant
from torch import Tensor

DIM, STEPS, ROWS, CONTEXT = 6, 5, 7, 3
MANY = 3000


def make() -> ResidualMLP:
    """A calibrated model of weights at which every part matters, in float64, whose parameters are not trained."""
    torch.manual_seed(0)
    model = ResidualMLP(Config(dim=DIM, depth=2, hidden=16, context=CONTEXT, width=8)).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    scale = 1 + torch.rand(DIM, dtype=torch.float64)
    model.calibrate(Scales(torch.randn(DIM).double() * 3, scale, 0.2 * scale, 0.7, 0.5))
    return model


def sequences(prefix: int = CONTEXT) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = 3 + torch.randn(ROWS, prefix + STEPS, DIM, generator=generator, dtype=torch.float64).cumsum(1) * 0.3
    return z[:, :prefix], z[:, prefix:]


def sampled(
    model: ResidualMLP,
    prefix: Tensor,
    truth: Tensor,
    inject: tuple[bool, ...] | Tensor,
    route: Route = "fused",
    longest: float | None = None,
    state: Window | None = None,
    seed: int = 5,
    scored: bool = True,
) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    given = {"longest": longest, "state": state, "scored": scored}
    return rollout(model, prefix, truth, inject, True, generator, route=route, **given)


def laws(model: ResidualMLP, prefix: Tensor, rolled: Rollout) -> VonMisesLogNormal:
    """The laws [b k] at the windows of a rollout, after a prefix of at least `CONTEXT` frames."""
    seen = torch.cat([prefix[:, -CONTEXT:-1], rolled.state_in], 1)
    law = model.distribution(seen.unfold(1, CONTEXT, 1).movedim(-1, -2))
    assert type(law) is VonMisesLogNormal
    return law


def test_steps_have_the_law_of_the_loops() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    model, steps = make(), 3
    prefix, truth = (part[:1].expand(MANY, -1, -1) for part in sequences())
    free = injections("S", steps)
    figures = []
    for way in ("fused", "eager"):
        out = sampled(model, prefix, truth[:, :steps], free, route=way)
        law = laws(model, prefix, out)
        cosine = torch.cosine_similarity(out.step, law.direction, dim=-1) - vmf_mean_resultant(law.kappa, DIM)
        residual = (out.step.norm(dim=-1).log() - law.mu) / law.log_sigma.exp()
        reached = (out.state_in + out.step).unbind(-1)
        figures.append((cosine, residual, *reached, out.log_prob))
    for step in range(steps):
        for got, expected in zip(*figures, strict=True):
            if float(expected[:, step].std()) > 1e-9:  # the first window is the same for all
                assert stats.ks_2samp(got[:, step].numpy(), expected[:, step].numpy()).pvalue > 1e-3
    cosine, residual, *_ = figures[0]
    assert stats.kstest(residual.flatten().numpy(), "norm").pvalue > 1e-3
    assert float((cosine.mean(0) / cosine.std(0)).abs().max()) < 4 / math.sqrt(MANY)  # the law's mean is taken off
    between = torch.corrcoef(torch.cat([cosine[:, :2], residual[:, :2]], 1).T)
    assert float((between - torch.eye(4)).abs().max()) < 5 / math.sqrt(MANY)


@pytest.mark.parametrize("mode", ["A", "B", "each"])
def test_likelihood_is_that_of_the_true_step_at_the_samples_own_window(mode: str) -> None:
    model, (prefix, truth) = make(), sequences()
    mask = torch.rand(ROWS, STEPS, generator=torch.Generator().manual_seed(3)) < 0.4
    inject = mask if mode == "each" else torch.tensor(injections(mode, STEPS)).expand(ROWS, -1)
    out = sampled(model, prefix, truth, inject)
    true_step = torch.cat([truth[:, :1] - prefix[:, -1:], truth.diff(dim=1)], 1)
    torch.testing.assert_close(out.log_prob, laws(model, prefix, out).log_prob(true_step))
    after = torch.where(inject[..., None], truth, out.state_in + out.step)
    torch.testing.assert_close(out.state_in, torch.cat([prefix[:, -1:], after[:, :-1]], 1))
    if mode == "A":  # the windows are the truth, whatever is drawn
        torch.testing.assert_close(out.log_prob, sampled(model, prefix, truth, inject, route="eager").log_prob)
    assert not torch.equal(out.step, sampled(model, prefix, truth, inject, seed=6).step)
    assert torch.equal(out.step, sampled(model, prefix, truth, inject).step)
    assert bool(sampled(model, prefix, truth, inject, scored=False).log_prob.isnan().all())


def test_drawn_steps_are_shortened_and_counted() -> None:
    model, (prefix, truth) = make(), sequences()
    every = injections("A", STEPS)  # no step depends on another's length
    free = sampled(model, prefix, truth, every)
    length = free.step.norm(dim=-1)
    longest = float(length.median())
    out = sampled(model, prefix, truth, every, longest=longest)
    assert torch.equal(out.clipped, length > longest)
    assert 0 < int(out.clipped.sum()) < out.clipped.numel()
    torch.testing.assert_close(out.step, free.step * (longest / length).clamp_max(1)[..., None])
    assert not free.clipped.any()
    model.head.spread.fill_(200)  # no bound is asked for: the op has one
    wide = sampled(model, prefix, truth, every)
    at_bound = (wide.step.norm(dim=-1) / (LONGEST * model.head.scale) - 1).abs() < 1e-6
    assert torch.equal(wide.clipped, at_bound)
    assert 0 < int(wide.clipped.sum()) < wide.clipped.numel()


@pytest.mark.parametrize("mode", ["B", "S"])
def test_frames_that_are_not_there_leave_the_states_that_do_not_see_them(mode: str) -> None:
    model, (prefix, truth) = make(), sequences()
    whole = sampled(model, prefix, truth, injections(mode, STEPS))
    broken = truth.clone()
    broken[1, 3:] = torch.nan  # B puts the truth back after step 4
    out = sampled(model, prefix, broken, injections(mode, STEPS))
    ends = 3 if mode == "B" else STEPS
    for got, expected in zip(out[:2], whole[:2], strict=True):
        torch.testing.assert_close(got[1, :ends], expected[1, :ends])
        assert bool(got[1, ends:].isnan().all())
        torch.testing.assert_close(got[2:], expected[2:])
    torch.testing.assert_close(out.log_prob[1, :3], whole.log_prob[1, :3])
    assert bool(out.log_prob[1, 3:].isnan().all())
    before = prefix.clone()
    before[0, 0] = torch.inf
    lost = sampled(model, before, truth, injections(mode, STEPS))
    assert bool(lost.step[0].isnan().all())
    torch.testing.assert_close(lost.step[1:], whole.step[1:])


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_any_prefix_and_any_state(prefix: int) -> None:
    model, (before, truth) = make(), sequences(prefix)
    others = torch.randn(ROWS, CONTEXT, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for state in (None, model.initial(ROWS), Window(others, False)):
        found = [
            sampled(model, before, truth, injections("S", STEPS), route=way, state=state) for way in ("fused", "eager")
        ]
        torch.testing.assert_close(found[0].log_prob[:, 0], found[1].log_prob[:, 0])
        assert torch.equal(found[0].state_in[:, 0], before[:, -1])


def test_by_itself_the_op_is_taken_where_triton_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (prefix, truth), free = make(), sequences(), injections("S", STEPS)
    fused, eager, auto = (sampled(model, prefix, truth, free, route=way) for way in ("fused", "eager", "auto"))
    for got, expected in zip(auto, eager, strict=True):  # on a CPU: bit for bit what the loop gives
        assert torch.equal(got, expected)
    monkeypatch.setattr(module, "twin", lambda model, operands: ("triton", ""))
    for got, expected in zip(sampled(model, prefix, truth, free, route="auto"), fused, strict=True):
        assert torch.equal(got, expected)
    model.requires_grad_()
    out = sampled(model, prefix, truth, free, route="auto")
    assert torch.equal(out.step, eager.step)
    assert out.step.requires_grad
    with torch.no_grad():
        assert torch.equal(sampled(model, prefix, truth, free, route="auto").step, fused.step)
    places = Places(torch.arange(ROWS), ROWS)
    with torch.no_grad():
        placed = rollout(model, prefix, truth, free, True, torch.Generator().manual_seed(5), places=places)
    assert torch.equal(placed.step, eager.step)


def test_what_cannot_be_sampled_so_is_said() -> None:
    model, (prefix, truth), free = make(), sequences(), injections("S", STEPS)
    generator, others = torch.Generator(), torch.randn(ROWS, CONTEXT, DIM).double()
    said = r'draws have no gradient; this rollout is sampled where gradients are needed. Use route="auto" or "eager"'
    for given in (
        {"prefix": prefix.clone().requires_grad_(), "truth": truth},
        {"prefix": prefix, "truth": truth.clone().requires_grad_()},
        {"prefix": prefix, "truth": truth, "state": Window(others.requires_grad_(), False)},
    ):
        with pytest.raises(ValueError, match=said):
            rollout(model, **given, inject=free, sample=True, generator=generator, route="fused")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        rollout(model.requires_grad_(), prefix, truth, free, True, generator, route="fused")
    with torch.no_grad(), pytest.raises(ValueError, match=r"draws of a larger batch \(places\)"):
        rollout(model, prefix, truth, free, True, generator, route="fused", places=Places(torch.arange(ROWS), 2 * ROWS))
    with torch.no_grad(), pytest.raises(ValueError, match="corrected after every step"):
        rollout(model, prefix, truth, free, True, generator, lambda x, context, source: x, route="fused")
