"""R4 on processes whose anatomy is known: the parts add up, follow their closed forms, and the verdict names the cause."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import FullGaussian
from arlat_core.types import Value
from arlat_data.processes import build
from arlat_data.windows import windows
from arlat_diag.anatomy import Config, Reference, anatomise, fit_reference
from arlat_diag.direct_forecast import fit_direct
from arlat_diag.error_split import PARTS, split_error
from arlat_diag.injection import Starts, choose_starts
from arlat_diag.verdict import decide
from arlat_dynamics.base import Dynamics, WindowModel
from arlat_dynamics.models import linear
from torch import Tensor, nn

K, W, D, RHO = 16, 8, 16, 0.8
Values = dict[str, Value]


def split_of(process: str, params: dict[str, float], utterances: int, seed: int) -> Any:
    law = build(process, D, params, torch.Generator().manual_seed(0))
    z = law.simulate(utterances, 100, torch.Generator().manual_seed(seed)).float()
    return SimpleNamespace(
        z=z.reshape(-1, D),
        start=torch.arange(utterances) * 100,
        length=torch.full((utterances,), 100),
        ids=[str(i) for i in range(utterances)],
        speakers=[f"s{i // 2:03d}" for i in range(utterances)],
    )


def reference_of(process: str, **params: float) -> Reference:
    train, held_out = split_of(process, params, 96, 1), split_of(process, params, 72, 2)
    starts = choose_starts(held_out, W, K, 4, torch.Generator().manual_seed(0))
    return fit_reference(train, held_out, train.z.mean(0), torch.cov(train.z.mT), starts, Config(map_starts=8), "cpu")


def var(gain: float) -> linear.LinearModel:
    """z_{t+1} = gain · z_t + the process's own noise; the right model of AR(1) where gain is RHO."""
    model = linear.LinearModel(linear.Config(dim=D, context=W, order=1, frames=1))
    eye = torch.eye(D)
    parts = {"center": torch.zeros(D), "weight": (gain - 1) * eye, "bias": torch.zeros(D)}
    model.load_state_dict(parts | {"factor": (1 - RHO**2) ** 0.5 * eye})
    return model


class Turning(WindowModel):
    """The conditional mean of `cycle` with its phase noise, turned `bias` too far in every step."""

    plugin = "turning"
    factor: Tensor
    turn: Tensor

    def __init__(self, bias: float, phase_noise: float) -> None:
        super().__init__()
        self.dim, self.context, self.shrink = D, W, math.exp(-(phase_noise**2) / 2 + 0.05**2 / 2)
        self.register_buffer("turn", (2 * math.pi / torch.linspace(8, 32, D // 2) + bias))
        self.register_buffer("factor", 0.7 * phase_noise * torch.eye(D))

    def settings(self) -> BaseConfig:
        return BaseConfig()

    def distribution(self, context: Tensor) -> FullGaussian:
        now = context[..., -1, :]
        z = now.unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
        radius = z.norm(dim=-1).clamp_min(1e-9)
        length = self.shrink * radius**0.8
        x, y, c, s = z[..., 0] / radius, z[..., 1] / radius, self.turn.cos(), self.turn.sin()
        after = torch.stack([(x * c - y * s) * length, (x * s + y * c) * length], -1).flatten(-2)
        return FullGaussian(after - now, self.factor)


class Remembering(Dynamics):
    """`var` in a recurrent coat: its state is the step that it has just seen, which it adds `memory` of to its own."""

    plugin = "remembering"
    factor: Tensor

    def __init__(self, gain: float, memory: float) -> None:
        super().__init__()
        self.dim, self.context, self.gain, self.memory = D, 4 * W, gain, memory
        self.register_buffer("factor", (1 - RHO**2) ** 0.5 * torch.eye(D))
        self.scale = nn.Parameter(torch.ones(1))

    def settings(self) -> BaseConfig:
        return BaseConfig()

    def initial(self, batch: int) -> Any:
        return None

    def step(self, state: Any, x: Tensor) -> tuple[Any, FullGaussian]:
        seen = torch.zeros_like(x) if state is None else x - state
        return x, FullGaussian(self.scale * ((self.gain - 1) * x + self.memory * seen), self.factor)

    def unroll(self, x: Tensor) -> tuple[Any, FullGaussian]:
        seen = torch.cat([torch.zeros_like(x[:, :1]), x.diff(dim=1)], 1)
        return x[:, -1], FullGaussian(self.scale * ((self.gain - 1) * x + self.memory * seen), self.factor)


@pytest.fixture(scope="module")
def ar1() -> Reference:
    return reference_of("ar1", rho=RHO)


@pytest.fixture(scope="module")
def cycle() -> Reference:
    return reference_of("cycle", phase_noise=0.1, radius_noise=0.05)


def found(reference: Reference, model: Dynamics) -> tuple[Values, str]:
    values = anatomise("r4", model, reference, Config(map_starts=4, draws=8, sweeps=4, singular=2), "cpu")
    verdict = decide(values, "r4")
    assert verdict is not None
    assert set(verdict.keys) <= set(values)
    return values, verdict.word


def number(values: Values, key: str) -> float:
    value = values[key].value
    assert value is not None, f"{key}: {values[key].status}"
    return value


def adds_up(values: Values) -> None:
    for s in range(1, K + 1):
        parts = sum(number(values, f"r4.error.{part}[{s}]") for part in PARTS)
        assert parts == pytest.approx(number(values, f"r4.error.total[{s}]"), rel=1e-9)
        assert number(values, f"r4.error.intrinsic[{s}]") >= 0
        assert number(values, f"r4.error.collapse[{s}]") >= 0
        assert number(values, f"r4.error.one_step[{s}]") >= -1e-9


def inside(value: Value, truth: float, tolerance: float) -> bool:
    assert value.value is not None
    assert value.low is not None
    assert value.high is not None
    return value.low <= truth <= value.high or abs(value.value - truth) <= tolerance * max(abs(truth), 1e-12)


def test_a_perfect_model_is_merely_uncertain(ar1: Reference) -> None:
    values, word = found(ar1, var(RHO))
    adds_up(values)
    assert word == "merely uncertain"
    wrong = []
    for s in range(1, K + 1):
        total, unknown = number(values, f"r4.error.total[{s}]"), D * (1 - RHO ** (2 * s))
        wrong += [] if inside(values[f"r4.error.intrinsic[{s}]"], unknown, 0.02) else [s]
        for part in PARTS[1:]:
            assert abs(number(values, f"r4.error.{part}[{s}]")) < 0.01 * total
        one_step = values[f"r4.error.one_step[{s}]"]
        assert inside(one_step, 0.0, 0)
        assert number(values, f"r4.error.total[{s}]") >= (values[f"r4.error.total[{s}]"].ceiling or 0)
        assert number(values, f"r4.spread_skill[{s}]") == pytest.approx(1, abs=0.05)
        assert number(values, f"r4.knn_ratio[{s}]") == pytest.approx(1, abs=0.06)
        assert number(values, f"r4.frechet_ratio[{s}]") < 1.8
    assert len(wrong) <= 3, wrong
    assert number(values, "r4.lyapunov") == pytest.approx(math.log(RHO))
    assert number(values, "r4.lyapunov_error") == pytest.approx(math.log(RHO))
    assert number(values, "r4.singular[1]") == pytest.approx(RHO**K)
    energy = values["r4.S.energy_score[16]"]
    assert energy.floor == pytest.approx(energy.value, rel=0.03)  # after 16 steps nobody knows more than the climate
    chi = math.sqrt(2) * math.exp(math.lgamma((D + 1) / 2) - math.lgamma(D / 2))
    assert number(values, "r4.S.energy_score[1]") == pytest.approx(math.sqrt((1 - RHO**2) / 2) * chi, rel=0.03)
    assert number(values, "r4.spectral_distance") < 0.4


def test_an_unstable_model_explodes_by_amplification_of_the_closed_form(ar1: Reference) -> None:
    values, word = found(ar1, var(1.1))
    adds_up(values)
    assert word == "explodes"
    start = float(ar1.starts.prefix[:, -1].double().square().sum(-1).mean())
    for s in range(1, K + 1):
        whole, kept = (1.1**s - RHO**s) ** 2, ((1.1 - RHO) * (1 - RHO**s) / (1 - RHO)) ** 2
        grown = number(values, f"r4.error.amplification[{s}]")
        assert grown == pytest.approx(start * (whole - kept), rel=0.06, abs=0.02)
        rest = number(values, f"r4.error.one_step[{s}]") + number(values, f"r4.error.collapse[{s}]")
        assert rest == pytest.approx(start * kept, rel=0.2, abs=0.05)
    assert grown > 0.8 * number(values, "r4.error.total[16]")
    assert number(values, "r4.lyapunov") == pytest.approx(math.log(1.1))
    assert number(values, "r4.lyapunov_error[3]") == pytest.approx(math.log(1.1))
    assert number(values, "r4.frechet_ratio[16]") > 10
    assert number(values, "r4.knn_ratio[16]") > 3


@pytest.mark.parametrize("gain", [0.5, 0.3])
def test_errors_that_the_map_forgets_are_no_amplification(ar1: Reference, gain: float) -> None:
    parts = split_error(var(gain), ar1.starts, ar1.direct, "cpu")
    start = float(ar1.starts.prefix[:, -1].double().square().sum(-1).mean())
    for s in (1, 2, 4, 8):
        assert float(parts.amplification[:, s - 1].mean()) == pytest.approx(0, abs=1e-6)
        truth = start * (gain**s - RHO**s) ** 2
        assert float(parts.one_step[:, s - 1].mean()) == pytest.approx(truth, rel=0.12, abs=0.1)


def test_a_frozen_model_collapses(ar1: Reference, cycle: Reference) -> None:
    for reference in (ar1, cycle):
        values, word = found(reference, var(1.0))
        adds_up(values)
        assert word == "collapses"
        for s in (1, 4, 16):
            excess = number(values, f"r4.error.total[{s}]") - number(values, f"r4.error.intrinsic[{s}]")
            assert number(values, f"r4.error.collapse[{s}]") == pytest.approx(excess, rel=1e-6)
            assert number(values, f"r4.movement[{s}]") == pytest.approx(0, abs=1e-9)
        assert number(values, "r4.lyapunov") == pytest.approx(0, abs=1e-9)
    frozen = split_error(var(1.0), ar1.starts, ar1.direct, "cpu").collapse[:, -1].mean()
    missing = float(ar1.starts.prefix[:, -1].double().square().sum(-1).mean()) * (1 - RHO**K) ** 2
    assert float(frozen) == pytest.approx(missing, rel=0.1)


@pytest.mark.parametrize("bias", [0.06, -0.06])
def test_a_cycle_that_turns_at_the_wrong_speed_drifts_on_the_manifold(cycle: Reference, bias: float) -> None:
    values, word = found(cycle, Turning(bias, 0.1))
    adds_up(values)
    assert word == "drifts on-manifold"
    for s in (4, 8, 16):
        total, own = number(values, f"r4.error.total[{s}]"), number(values, f"r4.error.one_step[{s}]")
        excess = total - number(values, f"r4.error.intrinsic[{s}]")
        assert abs(number(values, f"r4.error.amplification[{s}]")) < 0.03 * excess
        if bias > 0:
            assert number(values, f"r4.error.collapse[{s}]") < 0.01 * excess
        # the chord of an angle of s·bias on circles that the mean forecast has shrunk to exp(−s·noise²/2)
        angle = 2 * (1 - math.cos(s * bias)) * math.exp(-s * 0.1**2 / 2) * D / 2
        assert own + number(values, f"r4.error.collapse[{s}]") == pytest.approx(angle, rel=0.1)
    assert number(values, "r4.excess.one_step") > 0.85


def test_the_cycle_at_the_right_speed_is_merely_uncertain(cycle: Reference) -> None:
    values, word = found(cycle, Turning(0.0, 0.1))
    adds_up(values)
    assert word == "merely uncertain"
    assert number(values, "r4.lyapunov") == pytest.approx(0, abs=0.02)


def test_recurrent_states_are_rolled_on_from_the_ideal_path(ar1: Reference) -> None:
    one, two = (
        split_error(var(0.9), ar1.starts, ar1.direct, "cpu"),
        split_error(Remembering(0.9, 0.0), ar1.starts, ar1.direct, "cpu"),
    )
    torch.testing.assert_close(two.one_step, one.one_step, rtol=1e-6, atol=1e-6)
    kept = split_error(Remembering(0.9, 0.4), ar1.starts, ar1.direct, "cpu")
    parts = kept.intrinsic + kept.one_step + kept.amplification + kept.collapse
    torch.testing.assert_close(parts, kept.total)
    assert float((kept.total - one.total).abs().max()) > 0.1


def test_a_rollout_that_is_not_finite_explodes_and_never_crashes(ar1: Reference) -> None:
    values, word = found(ar1, var(1e25))
    assert word == "explodes"
    assert values["r4.error.total[16]"].value is None
    assert "not finite" in values["r4.error.total[16]"].status
    assert values["r4.frechet[16]"].value is None
    assert number(values, "r4.error.total[1]") > 1e40


def test_the_direct_forecast_is_the_closed_form_of_ar1_and_the_mean_of_noise() -> None:
    for rho in (RHO, 0.0):
        past = windows(split_of("ar1", {"rho": rho}, 96, 3), W, 4)
        starts: Starts = choose_starts(split_of("ar1", {"rho": rho}, 40, 4), W, 4, 4, torch.Generator().manual_seed(0))
        forecast = fit_direct(past, 4, torch.zeros(D), torch.ones(D)).predict(starts.prefix)
        assert forecast.shape == (len(starts), 4, D)
        for s in range(1, 5):
            off = (forecast[:, s - 1] - rho**s * starts.prefix[:, -1]).square().sum(-1).mean()
            assert float(off) < 0.01 * D
    with pytest.raises(ValueError, match="4 training windows"):
        fit_direct(windows(split_of("ar1", {}, 1, 0), W, 90), 90, torch.zeros(D), torch.ones(D))
