"""The fused rollout of residual MLPs is `rollout` of the same models: values, and gradients of every parameter."""

from __future__ import annotations

import logging
from typing import Any, get_args

import pytest
import torch
from arlat_dynamics.base import Dynamics, Window
from arlat_dynamics.block import Activation
from arlat_dynamics.fused import fused_rollout, obstacle
from arlat_dynamics.headed import HeadConfig, Scales
from arlat_dynamics.models.linear import Config as LinearConfig
from arlat_dynamics.models.linear import LinearModel
from arlat_dynamics.models.mlp import Config, ResidualMLP
from arlat_dynamics.rollout import Rollout, injections, rollout, say, say_what_runs
from arlat_kernels.residual_block import ACTIVATIONS
from torch import Tensor

DIM, STEPS, ROWS = 6, 9, 5


def make(seed: int = 0, depth: int = 2, **shape: Any) -> ResidualMLP:
    """A calibrated model of weights at which every part matters, in float64."""
    torch.manual_seed(seed)
    model = ResidualMLP(Config(dim=DIM, depth=depth, hidden=16, **{"context": 4, "width": 8, **shape})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    scale = 1 + torch.rand(DIM, dtype=torch.float64)
    model.calibrate(Scales(torch.randn(DIM).double() * 3, scale, 0.2 * scale, 0.7 + 0.1 * seed, 0.5))
    return model


def sequences(seed: int = 1, prefix: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = 3 + torch.randn(ROWS, prefix + STEPS, DIM, generator=generator, dtype=torch.float64).cumsum(1) * 0.3
    return z[:, :prefix], z[:, prefix:]


def gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(7), dtype=value.dtype)
    return list(torch.autograd.grad((value * weight).sum(), leaves, retain_graph=True))


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("A", {}), ("B", {"activation": "relu2"}), ("C", {"depth": 0}), ("D", {}), ("D", {"context": 1, "width": None})],
)
def test_it_is_the_rollout_of_the_model(mode: str, shape: dict[str, Any]) -> None:
    model, (prefix, truth) = make(**shape), sequences()
    given = [prefix.requires_grad_(), truth.requires_grad_(), *model.parameters()]
    plain = rollout(model, prefix, truth, injections(mode, STEPS), route="eager")
    fused = fused_rollout([model], prefix, truth, injections(mode, STEPS))
    assert bool(fused.alive.all())
    for name in ("state_in", "step", "log_prob"):
        expected, got = getattr(plain, name), getattr(fused.rollout, name)[0]
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=name)
        for of_plain, of_fused in zip(gradients(expected, given), gradients(got, given), strict=True):
            torch.testing.assert_close(of_fused, of_plain, rtol=1e-7, atol=1e-7)
    true_step = torch.cat([truth[:, :1] - prefix[:, -1:], truth.diff(dim=1)], 1)
    cosine = torch.nn.functional.cosine_similarity(plain.step, true_step, dim=-1)
    torch.testing.assert_close(1 - fused.gap[0], cosine)
    error = (plain.state_in + plain.step - truth).square().sum(-1)
    torch.testing.assert_close(fused.squared_error[0], error)


@pytest.mark.parametrize("prefix", [1, 2, 7])
def test_any_prefix_and_a_mask_for_each_row(prefix: int) -> None:
    model, (before, truth) = make(), sequences(prefix=prefix)
    mask = torch.rand(ROWS, STEPS, generator=torch.Generator().manual_seed(3)) < 0.3
    plain, fused = rollout(model, before, truth, mask, route="eager"), fused_rollout([model], before, truth, mask)
    torch.testing.assert_close(fused.rollout.state_in[0], plain.state_in)
    torch.testing.assert_close(fused.rollout.log_prob[0], plain.log_prob)


def test_long_steps_are_shortened_and_counted() -> None:
    model, (prefix, truth) = make(), sequences()
    lengths = rollout(model, prefix, truth, injections("D", STEPS), route="eager").step.norm(dim=-1)
    typical = float(model.head.scale)
    longest = float(lengths.detach().median()) / typical
    plain = rollout(model, prefix, truth, injections("D", STEPS), longest=longest * typical, route="eager")
    fused = fused_rollout([model], prefix, truth, injections("D", STEPS), longest=longest)
    torch.testing.assert_close(fused.rollout.step[0], plain.step)
    assert torch.equal(fused.rollout.clipped[0], plain.clipped)
    assert 0 < int(plain.clipped.sum()) < plain.clipped.numel()


def test_several_models_at_once_are_each_alone() -> None:
    models, (prefix, truth) = [make(seed) for seed in range(3)], sequences()
    together = fused_rollout(models, prefix, truth, injections("B", STEPS))
    for index, model in enumerate(models):
        alone = fused_rollout([model], prefix, truth, injections("B", STEPS))
        torch.testing.assert_close(together.rollout.log_prob[index], alone.rollout.log_prob[0])
        torch.testing.assert_close(together.squared_error[index], alone.squared_error[0])


def test_a_row_stops_at_its_end_and_leaves_no_trace_in_gradients() -> None:
    model, (prefix, truth) = make(), sequences()
    broken = truth.clone()
    broken[1, 4:] = torch.nan
    out = fused_rollout([model], prefix, broken, injections("B", STEPS))
    assert out.alive[0].sum(-1).tolist() == [STEPS, 4, STEPS, STEPS, STEPS]
    plain = rollout(model, prefix, truth, injections("B", STEPS), route="eager")
    kept = torch.where(out.alive[0], plain.log_prob, 0.0)
    torch.testing.assert_close(out.rollout.log_prob[0], kept)
    leaves = list(model.parameters())
    for of_plain, of_fused in zip(gradients(kept, leaves), gradients(out.rollout.log_prob[0], leaves), strict=True):
        torch.testing.assert_close(of_fused, of_plain)


def test_what_cannot_take_the_path_is_said() -> None:
    assert obstacle(make()) is None
    other: Dynamics = LinearModel(LinearConfig(dim=DIM, context=4, order=2, frames=2))
    assert "LinearModel (linear)" in str(obstacle(other))
    mixture = ResidualMLP(Config(dim=DIM, head=HeadConfig(name="gaussian")))
    assert "gaussian" in str(obstacle(mixture))
    with pytest.raises(ValueError, match=r"head of this model is gaussian. Use arlat_dynamics.rollout.rollout"):
        fused_rollout([mixture], *sequences(), injections("D", STEPS))


@pytest.mark.parametrize("prefix", [1, 2, 7])
@pytest.mark.parametrize("empty", [True, False])
def test_rollout_takes_the_op_by_itself_and_gives_what_the_loop_gives(prefix: int, empty: bool) -> None:
    model, (before, truth) = make(), sequences(prefix=prefix)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(ROWS, STEPS, generator=generator) < 0.3
    others = torch.randn(ROWS, 4, DIM, generator=generator, dtype=torch.float64)
    state = model.initial(ROWS) if empty else Window(others, False)  # not that of the frames before
    longest = float(rollout(model, before, truth, mask).step.detach().norm(dim=-1).median())
    found = [
        rollout(model, before, truth, mask, longest=longest, state=state, route=route)
        for route in ("auto", "fused", "eager")
    ]
    for name in Rollout._fields:
        auto, fused, eager = (getattr(each, name) for each in found)
        assert torch.equal(auto, fused)
        torch.testing.assert_close(fused, eager)
    assert bool(found[0].clipped.any())
    assert bool(rollout(model, before, truth, mask, scored=False, state=state).log_prob.isnan().all())


@pytest.mark.parametrize("mode", ["B", "D"])
def test_frames_that_are_not_there_leave_the_states_that_do_not_see_them(mode: str) -> None:
    model, (prefix, truth) = make(), sequences()
    truth[1, 4:] = torch.nan  # after four steps: B puts the truth back after steps 4 and 8
    fused, eager = (rollout(model, prefix, truth, injections(mode, STEPS), route=way) for way in ("fused", "eager"))
    torch.testing.assert_close(fused.log_prob, eager.log_prob, equal_nan=True)
    assert bool(fused.log_prob[1, 4:].isnan().all())
    ends = STEPS if mode == "D" else 7  # step 8 is the first whose true frame is put back
    for name in ("state_in", "step"):
        got, expected = getattr(fused, name), getattr(eager, name)
        torch.testing.assert_close(got[:, :ends], expected[:, :ends])
        assert bool(got[1, ends:].isnan().all())
        torch.testing.assert_close(got[2:], expected[2:])


def test_a_forced_route_that_cannot_be_taken_is_said() -> None:
    model, (prefix, truth), free = make(), sequences(), injections("D", STEPS)
    with pytest.raises(ValueError, match=r'corrected after every step. Use route="auto" or "eager"'):
        rollout(model, prefix, truth, free, correct=lambda x, context, generator: x, route="fused")


def test_a_model_has_the_activations_of_the_op_and_no_others() -> None:
    assert get_args(Activation) == tuple(ACTIVATIONS)


def test_what_triton_does_not_run_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (prefix, truth), free = make(), sequences(), injections("D", STEPS)
    monkeypatch.delenv("ARLAT_KERNELS", raising=False)
    say.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            rollout(model, prefix, truth, free)
        rollout(model, prefix, truth, free, route="eager")
        say_what_runs(model.to("meta"), torch.device("cuda"))  # of weights there are only shapes
    say.cache_clear()
    on_cpu, on_device = [(record.levelname, record.message) for record in caplog.records]
    assert on_cpu == ("INFO", "rollout on cpu by plain PyTorch: the model is on a CPU.")
    assert on_device[0] == "WARNING"
    assert on_device[1].startswith("rollout on cuda by plain PyTorch: its stream is 8 wide")


def test_autocast_rounds_operands_and_nothing_else() -> None:
    model = make().float()
    prefix, truth = (part.float() for part in sequences())
    mask = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    exact = rollout(model, prefix, truth, mask)
    expected = fused_rollout([model], prefix, truth, mask, operands="bfloat16").rollout
    with torch.autocast("cpu", torch.bfloat16):
        found = rollout(model, prefix, truth, mask)
    assert found.step.dtype == torch.float32
    assert torch.equal(found.step, expected.step[0])
    assert not torch.equal(found.step, exact.step)
