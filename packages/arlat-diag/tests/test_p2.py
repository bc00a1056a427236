"""P2 returns the closed forms of a vMF walk, its parts add up, and a wrong κ or σ shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from arlat_core.distributions import UniformLogNormal, VonMisesLogNormal
from arlat_core.types import Result, Value
from arlat_data.processes import vmf_walk
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_diag.battery import chosen
from arlat_diag.diagnostics import p1, p2
from arlat_diag.reliability import Origin
from arlat_dynamics.train import TrainConfig
from arlat_kernels import vmf_mean_resultant

PREDICTOR = p1.Config(components=2)
CONFIG = p2.Config(hidden=64, depth=1, train=TrainConfig(max_steps=40), predictor=PREDICTOR)


def known(value: Value) -> float:
    assert value.value is not None
    return value.value


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The whole path on a walk whose best direction is nearly linear in the past, as its lengths vary little."""
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vmf_walk, "CHAINS", 16)  # only the answer against B5 is simulated
        path = make("vmf_walk", 64, 96, 200, 48, 0, folder / "store", kappa=100.0, sigma=0.1)
    store = LatentStore.open(path)
    result = p2.run(store, CONFIG, folder / "run")
    assert p2.run(store, CONFIG, folder / "run").values == result.values  # the fitted model is kept
    assert (folder / "run" / "models" / "p2" / "model.json").exists()
    return result


def test_a_walk_of_known_concentration_is_recovered(walk: Result) -> None:
    values = walk.values
    assert known(values["p2.kappa_median"]) == pytest.approx(100, rel=0.03)
    assert values["p2.kappa_median"].truth == 100
    for key in ("cosine", "cosine_expected"):
        assert known(values[f"p2.{key}"]) == pytest.approx(values[f"p2.{key}"].truth, abs=0.01)
    for key in ("dir_uniform", "dir_marginal", "dir_expected", "b0f"):
        assert known(values[f"p2.dnll_{key}"]) == pytest.approx(values[f"p2.dnll_{key}"].truth, rel=0.04)
    assert known(values["p2.sigma_median"]) == pytest.approx(0.1, rel=0.05)
    assert known(values["p2.logmag_r2"]) == pytest.approx(0, abs=0.02)
    assert known(values["p2.dnll_mag_marginal"]) == pytest.approx(0, abs=0.02)
    assert known(values["p2.saturated_fraction"]) < 0.01
    assert known(values["p2.dnll_b5"]) < -10


def test_the_walk_is_calibrated_and_every_figure_has_an_interval(walk: Result) -> None:
    values = walk.values
    assert abs(known(values["p2.calibration.kappa_error"])) < 0.01
    assert abs(known(values["p2.calibration.sigma_error"])) < 0.1
    assert known(values["p2.calibration.cosine.ks"]) < 0.04
    assert known(values["p2.calibration.length.ks"]) < 0.04
    assert all(value.low is not None and value.n.frames > 0 for value in values.values())
    assert known(values["p2.cosine_floor"]) < known(values["p2.cosine"])
    assert values["p2.cosine"].floor == pytest.approx(known(values["p2.cosine_floor"]))
    floor = values["p2.dnll_dir_uniform"].floor
    assert floor is not None
    assert known(values["p2.dnll_dir_uniform"]) < floor < 0
    whole = sum(known(values[f"p2.{part}"]) for part in ("nll_dir", "nll_mag", "jacobian"))
    assert known(values["p2.nll"]) == pytest.approx(whole, abs=1e-9)
    varies = known(values["p2.kappa_q75"]) > 1.001 * known(values["p2.kappa_q25"])
    assert any("κ is the same for every frame" in note for note in walk.notes) != varies
    assert len(walk.worst) == 20
    assert walk.worst[0].value >= walk.worst[19].value > known(values["p2.dnll_b5"])


def test_white_noise_has_the_cosine_of_mean_reversion_and_no_dynamics(tmp_path: Path) -> None:
    store = LatentStore.open(make("white", 8, 80, 120, 40, 1, tmp_path / "store"))
    assert store.truth is not None
    values = p2.run(store, CONFIG, tmp_path / "run").values
    best = store.truth["values"]["p1.h1.cosine"]["value"]
    assert known(values["p2.cosine"]) == pytest.approx(best, abs=0.015)
    assert known(values["p2.cosine_floor"]) == pytest.approx(best, abs=0.015)
    assert known(values["p2.dnll_b5"]) > -0.05
    assert known(values["p2.dnll_dir_uniform"]) < -2


def test_frames_that_do_not_move_are_counted_and_left_out(tmp_path: Path) -> None:
    store = LatentStore.open(make("ar1", 4, 24, 60, 8, 1, tmp_path / "store", rho=0.8))
    splits = {name: store.load(name) for name in ("train", "eval")}
    for split in splits.values():  # every tenth frame is its neighbour again
        for start, length in zip(split.start.tolist(), split.length.tolist(), strict=True):
            split.z[start + 10 : start + length : 10] = split.z[start + 9 : start + length - 1 : 10]
    store.load = splits.__getitem__  # type: ignore[method-assign,assignment]
    result = p2.run(store, CONFIG, tmp_path / "run")
    still = result.values["p2.still_fraction"]
    assert known(still) == pytest.approx(5 / 52)  # of frames 8 … 59 those that are the tenth
    assert still.n.frames == result.values["p2.nll"].n.frames * 52 // 47
    assert any("do not move at all" in note for note in result.notes)
    for split in splits.values():
        split.z[:] = 1.0
    nothing = p2.run(store, CONFIG, tmp_path / "other")
    assert nothing.values["p2.nll"].status == "not run: no frame moves"


def laws(count: int, dim: int, seed: int) -> VonMisesLogNormal:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(count, dim, generator=generator)
    kappa = dim * torch.exp(0.5 * torch.randn(count, generator=generator))
    mu, log_sigma = (torch.randn(count, generator=generator) for _ in range(2))
    return VonMisesLogNormal(direction, kappa, mu, -1 + 0.5 * log_sigma)


def test_the_parts_add_up_to_the_density_of_the_step() -> None:
    law = laws(200, 24, 0)
    dx = law.sample(torch.Generator().manual_seed(1))
    direction, length, jacobian = p2.parts_of(law, dx)
    assert torch.allclose(direction + length + jacobian, -law.log_prob(dx).double(), rtol=1e-5, atol=1e-3)
    marginal = UniformLogNormal(torch.tensor(0.3), torch.tensor(-0.5), 24)
    log_m = dx.double().norm(dim=-1).log()
    length = p2.log_normal_nll(log_m, 0.3, torch.tensor(-0.5, dtype=torch.float64).exp())
    whole = p2.log_sphere_area(24) + length + jacobian
    assert torch.allclose(whole, -marginal.log_prob(dx).double(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("wrong_kappa", "wrong_sigma"), [(1.0, 1.0), (1.5, 1.0), (0.7, 1.0), (1.0, 1.3), (1.0, 0.7)])
def test_a_wrong_kappa_or_sigma_shows_in_its_calibration_alone(wrong_kappa: float, wrong_sigma: float) -> None:
    count, dim = 6000, 24
    law = laws(count, dim, 2)
    dx = law.sample(torch.Generator().manual_seed(3)).double()
    frames = p2.Frames(
        dim=dim,
        kappa=law.kappa.double(),
        mu=law.mu.double(),
        sigma=law.log_sigma.double().exp(),
        log_m=dx.norm(dim=-1).log(),
        cosine=torch.cosine_similarity(law.direction.double(), dx, dim=-1),
        nll={},
        other_cosine={},
        saturated=torch.zeros(count),
    )
    frames = replace(frames, kappa=wrong_kappa * frames.kappa, sigma=wrong_sigma * frames.sigma)
    utterance = torch.arange(count) // 100
    values = p2.calibration(frames, Origin(utterance, utterance, (utterance % 2).bool()), 10)
    for name, law_name, wrong in (("kappa", "cosine", wrong_kappa != 1), ("sigma", "length", wrong_sigma != 1)):
        error, distance = values[f"p2.calibration.{name}_error"], values[f"p2.calibration.{law_name}.ks"]
        assert error.low is not None
        assert error.high is not None
        assert distance.low is not None
        assert (error.low > 0.02) == wrong
        assert (known(distance) > 0.04) == wrong
        if not wrong:
            assert error.low < 0.01
    expected = vmf_mean_resultant(frames.kappa, dim)
    lowest = frames.kappa.argsort()[:600]
    first = values["p2.calibration.kappa[1]"]
    assert first.n.frames == 600
    assert first.ceiling == pytest.approx(float(expected[lowest].mean()))
    assert known(first) == pytest.approx(float(frames.cosine[lowest].mean()))


def test_the_plugin_is_found() -> None:
    assert chosen("p2") == ["p2"]
