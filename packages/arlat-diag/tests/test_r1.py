"""R1 on an exactly known AR(1): figures agree with the closed forms within their own intervals."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arlat_core.types import Value
from arlat_data.windows import Batch
from arlat_diag.diagnostics import r1
from arlat_diag.injection import Curves, choose_starts
from arlat_diag.rollout_curves import Subject, make_subject, manifold, worst_starts
from arlat_dynamics.models.linear import Config, LinearModel
from torch import Tensor

K, W, D = 16, 8, 32


def ar1_split(rho: float, utterances: int, frames: int, seed: int) -> Any:
    """Stationary AR(1), two utterances per speaker."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(utterances, frames, D, generator=generator)
    for t in range(1, frames):
        z[:, t] = rho * z[:, t - 1] + (1 - rho**2) ** 0.5 * z[:, t]
    return SimpleNamespace(
        z=z.reshape(-1, D),
        start=torch.arange(utterances) * frames,
        length=torch.full((utterances,), frames),
        ids=[f"u{i}" for i in range(utterances)],
        speakers=[f"s{i // 2}" for i in range(utterances)],
    )


class Exact:
    """The baselines of AR(1) with unit variance, exactly: Δ ~ N(0, 2(1−ρ)), z ~ N(0, 1)."""

    def __init__(self, rho: float) -> None:
        self.variance = {"b0": 2 * (1 - rho), "b5": 1.0, "b5_gaussian": 1.0}

    def nll(self, name: str, batch: Batch) -> Tensor:
        x = batch.target if name == "b0" else batch.future
        variance = self.variance[name]
        return 0.5 * (x.square().sum(-1) / variance + D * math.log(2 * math.pi * variance))


def exact_model(rho: float, gain: float | None = None) -> LinearModel:
    """z_{t+1} = gain · z_t + noise; the right model where gain is ρ."""
    model = LinearModel(Config(dim=D, context=W, order=1, frames=1))
    eye = torch.eye(D)
    weight = ((rho if gain is None else gain) - 1) * eye
    factor = max(1 - rho**2, 1e-4) ** 0.5 * eye
    model.load_state_dict({"center": torch.zeros(D), "weight": weight, "bias": torch.zeros(D), "factor": factor})
    return model


def diagnosed(rho: float, gain: float | None = None) -> tuple[dict[str, Value], dict[str, Curves], Subject]:
    train, held_out = ar1_split(rho, 60, 60, 1), ar1_split(rho, 60, 60, 2)
    config = r1.Config(draws=8, pairs=5000)
    starts = choose_starts(held_out, W, K, 4, torch.Generator().manual_seed(0))
    subject = make_subject(train, held_out, starts, Exact(rho), config, torch.Generator().manual_seed(1))
    values, curves = r1.diagnose(subject, exact_model(rho, gain), exact_model(rho), exact_model(rho), config, "cpu")
    return values, curves, subject


def agrees(value: Value, truth: float, tolerance: float = 0.03) -> bool:
    assert value.value is not None
    if value.low is not None and value.high is not None and value.low <= truth <= value.high:
        return True
    return abs(value.value - truth) <= tolerance * abs(truth)


def chi(dim: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


@pytest.fixture(scope="module")
def ar8() -> tuple[dict[str, Value], dict[str, Curves], Subject]:
    return diagnosed(0.8)


def test_curves_agree_with_the_closed_forms(ar8: Any) -> None:
    values, rho, wrong = ar8[0], 0.8, []
    for s in range(1, K + 1):
        length = math.sqrt((1 - rho) / 2) * rho ** (s - 1)
        error = math.sqrt(1 - rho ** (2 * s - 2)) * chi(D)
        miss = (2 * (1 - rho) - (1 - rho) ** 2 * rho ** (2 * s - 2)) / (1 - rho**2)
        nll = D / 2 * (math.log(2 * math.pi * (1 - rho**2)) + miss)
        b0 = D / 2 * (math.log(2 * math.pi * 2 * (1 - rho)) + 1)
        b5 = D / 2 * (math.log(2 * math.pi) + 1)
        truth = {"cosine": length, "magnitude_ratio": length, "state_error": error, "nll": nll}
        truth |= {"dnll_b0": nll - b0, "dnll_b5": nll - b5}
        wrong += [f"{k}[{s}]" for k, x in truth.items() if not agrees(values[f"r1.D.{k}[{s}]"], x)]
    assert len(wrong) <= 6, wrong  # 5 % of 96 are expected to miss their interval; 3 % catches most of them
    assert values["r1.A.cosine[16]"].value == pytest.approx(math.sqrt(0.1), rel=0.1)


def test_the_var_is_the_ceiling_and_mean_reversion_the_floor(ar8: Any) -> None:
    values = ar8[0]
    for mode in "ABCD":
        for s in (1, 5, 16):
            own, linear = values[f"r1.{mode}.cosine[{s}]"], values[f"r1.var.{mode}.cosine[{s}]"]
            assert own.value == own.ceiling == own.floor == linear.value
    assert values["r1.A.dnll_b0[9]"].floor == pytest.approx(-D / 2 * math.log(2))
    assert values["r1.D.dnll_b0[9]"].floor is None
    assert values["r1.B.dnll_b0[9]"].floor is not None
    assert values["r1.cosine_null"].value == pytest.approx(D**-0.5)


def test_modes_share_their_first_step_and_b_recovers_fully(ar8: Any) -> None:
    values = ar8[0]
    assert len({values[f"r1.{mode}.nll[1]"].value for mode in "ABCD"}) == 1
    assert values["r1.B.state_error[5]"].value == values["r1.A.state_error[5]"].value == 0
    assert (values["r1.B.state_error[6]"].value or 0) > 0
    for key in ("r1.recovery_gain", "r1.recovery_gain.nll"):
        assert values[key].value == pytest.approx(1)
        assert values[key].low == pytest.approx(1)


def test_horizons_of_a_decaying_mean(ar8: Any) -> None:
    values = ar8[0]
    assert values["r1.horizon.seed"].status == "> 16"  # nothing explodes
    assert values["r1.horizon.decor"].status == "> 16"  # √(1 − ρ^30) E χ stays below √2 E χ
    # ΔNLL_B5 of one dimension is ½ (log(1−ρ²) + miss − 1) with miss < 2/(1+ρ): below 0 at ρ = 0.8, above it at 0.25
    assert values["r1.horizon.info_curve"].status == "> 16"
    assert values["r1.horizon.info"].status == "> 16"
    short = diagnosed(0.25)[0]
    assert short["r1.horizon.info_curve"].value == 2
    assert short["r1.horizon.info"].value in (1, 2)
    assert short["r1.horizon.info.q75"].value == 2
    reach = values["r1.horizon.dir"].value
    exact = next(s for s in range(1, K + 1) if math.sqrt(0.1) * 0.8 ** (s - 1) <= D**-0.5)
    assert reach is not None
    assert abs(reach - exact) <= 1


def test_an_exploding_model_fires_the_seed_horizon_and_never_crashes() -> None:
    values, curves, subject = diagnosed(0.8, gain=1e6)
    assert values["r1.horizon.seed"].value == 2
    assert values["r1.horizon.decor"].value == 2
    assert values["r1.D.state_error[16]"].value is None
    assert "are not finite" in values["r1.D.state_error[16]"].status
    assert values["r1.A.state_error[16]"].value == 0
    held_out: Any = SimpleNamespace(ids=[f"u{i}" for i in range(60)])
    frames = worst_starts("r1", curves["D"], held_out, subject)
    assert len(frames) == 20
    assert frames[0].key == "r1.D.state_error[16]"


def test_recovery_gain_is_undefined_where_there_was_nothing_to_lose() -> None:
    same = torch.randn(100, K, generator=torch.Generator().manual_seed(0)).double()
    curves = {mode: Curves(same, same, same, same) for mode in "ABCD"}
    starts: Any = SimpleNamespace(speaker=torch.arange(100) % 25, utterance=torch.arange(100))
    subject: Any = SimpleNamespace(starts=starts, moving=torch.ones(100, K, dtype=torch.bool), seed=0)
    found = r1.recovery(curves, subject)["r1.recovery_gain"]
    assert found.value is None
    assert found.status.startswith("undefined: A − D at step 5 is 0")


def test_sample_rollouts_stay_on_the_manifold_and_a_runaway_does_not() -> None:
    rho = 0.8
    train, held_out = ar1_split(rho, 60, 60, 1), ar1_split(rho, 60, 60, 2)
    _, _, subject = diagnosed(rho)
    store: Any = SimpleNamespace(mean=torch.zeros(D), covariance=torch.eye(D))
    config = r1.Config(manifold_starts=60, manifold_draws=2)
    good = manifold("r1", store, train, held_out, subject, exact_model(rho), config, "cpu")
    assert good["r1.horizon.manifold"].status == "> 16"
    assert good["r1.horizon.manifold_truth"].status == "> 16"
    assert (good["r1.S.off_manifold[16]"].value or 0) < 0.05
    bad = manifold("r1", store, train, held_out, subject, exact_model(rho, gain=1.5), config, "cpu")
    assert bad["r1.horizon.manifold"].value is not None
    assert 2 <= bad["r1.horizon.manifold"].value <= 5
    assert bad["r1.S.off_manifold[16]"].value == 1


def test_config_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 5"):
        r1.Config(steps=4)
