"""Every stated answer of every process against brute force on simulated paths."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from arlat_core.config import UserError
from arlat_data.processes import _linear, build, names
from arlat_data.processes import _process as process
from arlat_data.processes import _sphere as sphere
from scipy import spatial, special
from torch import Tensor

LINEAR: list[tuple[str, dict[str, Any]]] = [
    ("white", {}),
    ("ar1", {"rho": 0.25}),
    ("ar1", {"rho": -0.6}),
    ("var", {"radius": 0.9}),
    ("slow_subspace", {"slow": 1, "rho": 0.9, "fast_scale": 2.0}),
]
SMALL = {"slow_subspace": {"slow": 2}, "archetypes": {"codewords": 5}}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def linear(case: int) -> tuple[Any, dict[str, Any], Tensor]:
    """The process, its answers and 20 000 paths of 18 frames in three dimensions."""
    name, params = LINEAR[case]
    law = build(name, 3, params, generator(1))
    return law, law.truth(12.5, generator(2)), law.simulate(20_000, 18, generator(3))


def agree(entry: dict[str, Any], draws: Tensor, slack: float = 0.0) -> None:
    """Whether the mean of `draws` [n] is within five joint standard errors (and `slack`) of a stated answer."""
    error = math.hypot(float(draws.std()) / math.sqrt(len(draws)), entry.get("standard_error", 0.0))
    assert abs(float(draws.mean()) - entry["value"]) <= 5 * error + slack + 1e-9, (
        entry,
        float(draws.mean()),
        error,
    )


def gaussian_nll(x: Tensor, covariance: Tensor) -> Tensor:
    law = torch.distributions.MultivariateNormal(torch.zeros(len(covariance), dtype=x.dtype), covariance)
    return -law.log_prob(x)


@pytest.mark.parametrize("name", names())
def test_paths_are_stationary_from_the_first_frame(name: str) -> None:
    law = build(name, 4, SMALL.get(name, {}), generator(1))
    z = law.simulate(6000, 12, generator(2))
    assert z.shape == (6000, 12, 4)
    assert z.dtype == torch.float64
    assert torch.equal(z, law.simulate(6000, 12, generator(2)))
    for power in (1, 2, 4):
        first, last = z[:, 0] ** power, z[:, -1] ** power
        error = ((first - last).std(0) / math.sqrt(len(z))) + 1e-12
        assert ((first - last).mean(0).abs() <= 5 * error).all()
    one, two = z[:, 0] * z[:, 1], z[:, -2] * z[:, -1]
    assert ((one - two).mean(0).abs() <= 5 * (one - two).std(0) / math.sqrt(len(z))).all()
    assert name == "archetypes" or (z.mean((0, 1)).abs() <= 5 * z.std() / math.sqrt(len(z))).all()


@pytest.mark.parametrize("rho", [0.0, 0.25, 0.8])
@pytest.mark.parametrize("dim", [1, 8, 128])
def test_ar1_has_the_textbook_answers(rho: float, dim: int) -> None:
    truth = build("ar1", dim, {"rho": rho}, generator(0)).truth(12.5, generator(1))
    value = {key: entry["value"] for key, entry in truth.items()}
    for h in (1, 2, 4, 8):
        assert value[f"p1.h{h}.dnll_b0"] == pytest.approx(dim / 2 * math.log((1 + rho**h) / 2))
        assert value[f"p1.h{h}.dnll_b5"] == pytest.approx(dim / 2 * math.log(1 - rho ** (2 * h)), abs=1e-10)
        assert value[f"p1.h{h}.magnitude_ratio"] == pytest.approx(math.sqrt((1 - rho**h) / 2))
        if dim == 128:
            assert value[f"p1.h{h}.cosine"] == pytest.approx(math.sqrt((1 - rho**h) / 2), rel=0.01)
    for k in (2, 4, 8):
        expected = dim / 2 * math.log(1 - (1 - rho) * rho ** (2 * k - 2) / 2)
        assert value[f"p1.lag{k}.dnll_b0"] == pytest.approx(expected, abs=1e-10)
    assert value["p1.h1.information_rate"] == pytest.approx(-value["p1.h1.dnll_b5"] * 12.5 / math.log(2))
    assert value["p4.rho[3]"] == pytest.approx(rho**3)
    assert value["p4.effective_dim"] == pytest.approx(dim)
    steps = [value[f"r1.D.magnitude_ratio[{s}]"] for s in (1, 2, 4)]
    assert steps == pytest.approx([math.sqrt((1 - rho) / 2) * rho ** (s - 1) for s in (1, 2, 4)], abs=1e-12)
    assert all(entry["method"] in ("closed form", "quadrature") for entry in truth.values())


def test_the_ceilings_of_a_perfect_ar1_model() -> None:
    """SPEC §2: cosine and magnitude ratio 0.61, 0.15, 0.01 at steps 1, 2, 4 for ρ = 0.25."""
    truth = build("ar1", 512, {"rho": 0.25}, generator(0)).truth(12.5, generator(1))
    for key in ("cosine", "magnitude_ratio"):
        assert [round(truth[f"r1.D.{key}[{s}]"]["value"], 2) for s in (1, 2, 4)] == [0.61, 0.15, 0.01]


@pytest.mark.parametrize("case", range(len(LINEAR)))
def test_linear_figures_are_those_of_the_paths(case: int) -> None:
    law, truth, z = linear(case)
    base = z[:, 0]
    for name, step in [("h1", 1), ("h4", 4), ("lag2", 2)]:
        lag = name.startswith("lag")
        delta = z[:, step] - (z[:, step - 1] if lag else base)
        gain = torch.linalg.matrix_power(law.a, step)
        gain = gain - (torch.linalg.matrix_power(law.a, step - 1) if lag else torch.eye(3, dtype=z.dtype))
        forecast = base @ gain.T
        rest = delta - forecast
        nll = gaussian_nll(rest, rest.T @ rest / len(rest))
        second = delta.T @ delta / len(delta)
        # moments fitted to n frames flatter a Gaussian by half a nat per n frames and parameter
        slack = 12 / len(z)
        agree(truth[f"p1.{name}.nll"], nll, slack)
        agree(truth[f"p1.{name}.dnll_b0"], nll - gaussian_nll(delta, second.diagonal().diag()), slack)
        agree(truth[f"p1.{name}.dnll_b1"], nll - gaussian_nll(delta, second), slack)
        if not lag:
            marginal = gaussian_nll(z[:, step], base.T @ base / len(base))
            agree(truth[f"p1.{name}.dnll_b5"], nll - marginal, slack)
        agree(truth[f"p1.{name}.cosine"], torch.cosine_similarity(forecast, delta, dim=-1))
        log_m = delta.norm(dim=-1).log()
        mu, sigma = log_m.mean(), log_m.std()
        uniform = sphere.log_area(3) + 2 * log_m - torch.distributions.LogNormal(mu, sigma).log_prob(log_m.exp())
        agree(truth[f"p1.{name}.dnll_b0f"], nll - uniform, slack)
        ratio = float(forecast.norm(dim=-1).mean() / delta.norm(dim=-1).mean())
        assert ratio == pytest.approx(truth[f"p1.{name}.magnitude_ratio"]["value"], rel=0.03, abs=0.01)


@pytest.mark.parametrize("case", [1, 3])
def test_log_magnitude_r2_is_that_of_predictive_medians(case: int) -> None:
    law, truth, _ = linear(case)
    start = law.simulate(1500, 1, generator(7))[:, 0]
    forecast = start @ (law.a - torch.eye(3, dtype=start.dtype)).T
    factor = _linear.factor(law.s - law.a @ law.s @ law.a.T)
    noise = torch.randn(1001, 1500, 3, generator=generator(8), dtype=start.dtype) @ factor.T
    log_m = (forecast + noise).norm(dim=-1).log()
    median = log_m[1:].median(0).values
    error, spread = (log_m[0] - median) ** 2, (log_m[0] - log_m.mean()) ** 2
    r2 = 1 - error.mean() / spread.mean()
    se = float(((error - (1 - r2) * spread) / spread.mean()).std()) / math.sqrt(len(error))
    assert abs(float(r2) - truth["p1.h1.logmag_r2"]["value"]) < 5 * se


@pytest.mark.parametrize("case", [1, 3])
def test_rollout_curves_are_those_of_a_perfect_model(case: int) -> None:
    law, truth, z = linear(case)
    noise = _linear.factor(law.s - law.a @ law.s @ law.a.T)
    one_rest = law.s - law.a @ law.s @ law.a.T
    injected = {"A": set(range(1, 17)), "B": {4, 8, 12}, "C": {1}, "D": set(), "S": set()}
    draw = generator(9)
    for mode, after in injected.items():
        state = z[:, 0]
        for s in range(1, 17):
            delta = z[:, s] - z[:, s - 1]
            forecast = state @ law.a.T - state
            step = forecast
            if mode == "S":
                step = forecast + torch.randn(state.shape, generator=draw, dtype=z.dtype) @ noise.T
            if s in (1, 2, 3, 5, 9):
                prefix = f"r1.{mode}"
                agree(truth[f"{prefix}.state_error[{s}]"], (state - z[:, s - 1]).norm(dim=-1))
                agree(truth[f"{prefix}.cosine[{s}]"], torch.cosine_similarity(step, delta, dim=-1))
                ratio = step.norm(dim=-1) - truth[f"{prefix}.magnitude_ratio[{s}]"]["value"] * delta.norm(dim=-1)
                agree(process.exact(0.0), ratio)
                nll = gaussian_nll(delta - forecast, one_rest)
                agree(truth[f"{prefix}.nll[{s}]"], nll)
                agree(truth[f"{prefix}.dnll_b5[{s}]"], nll - gaussian_nll(z[:, s], law.s))
            state = z[:, s] if s in after else state + step


@pytest.mark.parametrize("case", range(len(LINEAR)))
def test_linear_geometry(case: int) -> None:
    _, truth, z = linear(case)
    for k in (1, 2, 5):
        agree(truth[f"p4.rho[{k}]"], (z[:, 0] * z[:, k] / (z**2).mean((0, 1))).mean(-1))
    c = torch.cov(z.flatten(0, 1).T)
    assert truth["p4.effective_dim"]["value"] == pytest.approx(float(c.trace() ** 2 / (c**2).sum()), rel=0.03)


def test_mean_length_by_quadrature_is_the_closed_form() -> None:
    for dim in (1, 3, 64):
        assert _linear.mean_length(4 * torch.eye(dim, dtype=torch.float64)) == pytest.approx(
            2 * _linear.chi_mean(dim), rel=1e-9
        )


def test_expected_cosine_at_its_ends() -> None:
    assert _linear.expected_cosine(0.0, 5) == 0
    assert _linear.expected_cosine(1.0, 5) == pytest.approx(1)
    assert _linear.expected_cosine(0.5, 1) == pytest.approx(2 / math.pi * math.asin(0.5))  # E sign(x)·sign(y)
    draw = torch.randn(2, 50_000, 3, generator=generator(0), dtype=torch.float64)
    cosine = torch.cosine_similarity(draw[0], 0.7 * draw[0] + math.sqrt(1 - 0.49) * draw[1], dim=-1)
    agree(process.exact(_linear.expected_cosine(0.7, 3)), cosine)


@pytest.mark.parametrize(("kappa", "dim"), [(0.5, 2), (5.0, 3), (60.0, 3), (10.0, 40)])
def test_drawn_directions_have_the_stated_law(kappa: float, dim: int) -> None:
    w = sphere.draw_cosines((40_000,), kappa, dim, generator(0))
    agree(process.exact(sphere.resultant(kappa, dim)), w)
    agree(process.exact(sphere.entropy(kappa, dim)), -sphere.log_density(w, kappa, dim))
    if dim == 3:  # closed form: κ / (4π sinh κ)
        log_norm = math.log(kappa / (2 * math.pi)) - kappa - math.log1p(-math.exp(-2 * kappa))
        assert float(sphere.log_density(torch.zeros(1, dtype=torch.float64), kappa, 3)) == pytest.approx(log_norm)


def test_vmf_walk_figures_are_those_of_the_paths() -> None:
    law = build("vmf_walk", 3, {"kappa": 4.0, "mu": 0.3, "sigma": 0.5, "persistence": 1.0}, generator(0))
    truth = law.truth(12.5, generator(1))
    z = law.simulate(20_000, 3, generator(2))
    last, delta = z[:, 1] - z[:, 0], z[:, 2] - z[:, 1]
    towards = law.towards(z[:, 1], torch.nn.functional.normalize(last, dim=-1))
    m = delta.norm(dim=-1)
    cosine = (towards * delta).sum(-1) / m
    length = torch.distributions.LogNormal(torch.tensor(0.3).double(), torch.tensor(0.5).double()).log_prob(m)
    log_norm = math.log(4 / (4 * math.pi * math.sinh(4)))  # closed form in three dimensions
    nll = -(4 * cosine + log_norm + length - 2 * m.log())
    agree(truth["p1.h1.nll"], nll)
    agree(truth["p1.h1.cosine"], cosine)
    agree(truth["p1.h1.dnll_b0"], nll - gaussian_nll(delta, (delta**2).mean() * torch.eye(3).double()), 1e-3)
    uniform = math.log(4 * math.pi) + 2 * m.log() - length
    agree(truth["p1.h1.dnll_b0f"], nll - uniform)
    gaussian = gaussian_nll(z[:, 2], (z[:, 1] ** 2).mean() * torch.eye(3).double())
    agree(truth["p1.h1.dnll_b5_gaussian"], nll - gaussian, 0.01)
    marginal = nearest_neighbour_entropy(z[:, 2])
    assert float(nll.mean()) - marginal == pytest.approx(truth["p1.h1.dnll_b5"]["value"], abs=0.06)
    for k in (1, 2):
        agree(truth[f"p4.rho[{k}]"], (z[:, 0] * z[:, k]).sum(-1) / (z**2).sum(-1).mean(), 1e-3)
    assert truth["r1.A.cosine[16]"] == truth["p1.h1.cosine"]
    assert "r1.D.cosine[2]" not in truth


def test_vmf_walk_chooses_its_concentration() -> None:
    for dim in (8, 128):
        truth = build("vmf_walk", dim, {}, generator(0)).config
        assert sphere.resultant(truth.kappa, dim) == pytest.approx(0.7)  # type: ignore[attr-defined]


def nearest_neighbour_entropy(x: Tensor) -> float:
    """Kozachenko and Leonenko's estimate with four neighbours, in nats."""
    n, dim = x.shape
    distance = torch.from_numpy(spatial.cKDTree(x.numpy()).query(x.numpy(), k=5)[0][:, 4])
    volume = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return float(special.digamma(n) - special.digamma(4) + volume + dim * distance.log().mean())


def test_cycle_figures_are_those_of_the_paths() -> None:
    law = build("cycle", 2, {"period_min": 9.0, "phase_noise": 0.5, "radius_noise": 0.3}, generator(0))
    truth = law.truth(12.5, generator(1))
    z = law.simulate(20_000, 9, generator(2))
    log_r, angle = z.norm(dim=-1).log(), torch.atan2(z[..., 1], z[..., 0])
    for h in (1, 4):
        turned = angle[:, h] - angle[:, 0] - 2 * math.pi * h / 9
        turned = torch.remainder(turned + math.pi, 2 * math.pi) - math.pi
        phase = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(0.5 * math.sqrt(h)).double())
        wraps = 2 * math.pi * torch.arange(-3, 4).double()
        log_phase = phase.log_prob(turned[:, None] + wraps).logsumexp(-1)
        spread = math.sqrt(law.variance * (1 - 0.8 ** (2 * h)))  # type: ignore[attr-defined]
        radial = torch.distributions.Normal(0.8**h * log_r[:, 0], spread).log_prob(log_r[:, h])
        nll = -(log_phase + radial - 2 * log_r[:, h])
        agree(truth[f"p1.h{h}.nll"], nll)
        delta = z[:, h] - z[:, 0]
        agree(truth[f"p1.h{h}.dnll_b0"], nll - gaussian_nll(delta, (delta**2).mean(0).diag()), 1e-3)
        agree(truth[f"p1.h{h}.dnll_b5_gaussian"], nll - gaussian_nll(z[:, h], (z[:, 0] ** 2).mean(0).diag()), 0.01)
        marginal = nearest_neighbour_entropy(z[:, h])
        assert float(nll.mean()) - marginal == pytest.approx(truth[f"p1.h{h}.dnll_b5"]["value"], abs=0.06)
        # the conditional mean from the paths themselves: regression on the angle and on a smooth function of the radius
        kept = torch.stack([log_r[:, 0].exp() ** power for power in (0.3, 0.6, 1.0)], -1)
        frame = (
            torch.stack([z[:, 0], torch.stack([-z[:, 0, 1], z[:, 0, 0]], -1)], -1) / z[:, 0].norm(dim=-1)[:, None, None]
        )
        design = (frame[..., None] * kept[:, None, None]).reshape(len(z) * 2, 6)
        weight = torch.linalg.lstsq(design, z[:, h].reshape(-1, 1)).solution
        forecast = (design @ weight).view(-1, 2) - z[:, 0]
        agree(truth[f"p1.h{h}.cosine"], torch.cosine_similarity(forecast, delta, dim=-1), 0.003)
        ratio = float(forecast.norm(dim=-1).mean() / delta.norm(dim=-1).mean())
        assert ratio == pytest.approx(truth[f"p1.h{h}.magnitude_ratio"]["value"], abs=0.02)
        agree(truth[f"p4.rho[{h}]"], (z[:, 0] * z[:, h]).mean(-1) / (z**2).mean())


def test_switching_predicts_like_all_regime_paths_together() -> None:
    law: Any = build("switching", 2, {"regimes": 2, "rho": 0.7, "stay": 0.8}, generator(0))
    z = law.simulate(300, 5, generator(1))
    scores = torch.stack([law.log_steps(z[:, t], z[:, t + 1]) for t in range(4)], 1)  # [n 4 k]

    def evidence(steps: int) -> Tensor:
        paths = torch.cartesian_prod(*[torch.arange(2)] * steps).view(-1, steps)
        found = []
        for path in paths:
            prior = math.log(0.5) + sum(float(law.move[a, b].log()) for a, b in itertools.pairwise(path))
            found.append(prior + sum(scores[:, t, path[t]] for t in range(steps)))
        return torch.stack(found).logsumexp(0)

    log_p, _ = law.predict(z[:, :-1])
    filtered = (log_p + law.log_steps(z[:, 3], z[:, 4])).logsumexp(-1)
    assert torch.allclose(filtered, evidence(4) - evidence(3))


def test_switching_figures_are_those_of_the_paths() -> None:
    law: Any = build("switching", 2, {"rho": 0.7, "stay": 0.8}, generator(0))
    truth = law.truth(12.5, generator(1))
    z = law.simulate(20_000, 9, generator(2))
    for k in (1, 3):
        agree(truth[f"p4.rho[{k}]"], (z[:, 0] * z[:, k]).mean(-1))
    delta = z[:, 8] - z[:, 7]
    gap = truth["p1.h1.nll"]["value"] - truth["p1.h1.dnll_b0"]["value"]
    agree(process.exact(gap), gaussian_nll(delta, (delta**2).mean(0).diag()), 1e-3)
    gap = truth["p1.h1.nll"]["value"] - truth["p1.h1.dnll_b5"]["value"]
    agree(process.exact(gap), gaussian_nll(z[:, 8], torch.eye(2).double()))
    joint = nearest_neighbour_entropy(z[:, 7:].flatten(1)) - nearest_neighbour_entropy(z[:, 7])
    assert truth["p1.h1.nll"]["value"] <= joint + 0.05  # more context never predicts worse than one frame


def test_archetypes_figures_are_those_of_the_paths() -> None:
    law: Any = build("archetypes", 3, {"codewords": 4, "kappa": 12.0}, generator(0))
    truth = law.truth(12.5, generator(1))
    z = law.simulate(20_000, 2, generator(2))
    now, delta = z[:, 0], z[:, 1] - z[:, 0]
    m = delta.norm(dim=-1)
    direction = torch.zeros(len(z)).double()
    weights = (-0.5 * now @ law.codebook.T).softmax(-1)
    mean = torch.zeros_like(now)
    for k in range(4):
        towards = torch.nn.functional.normalize(law.codebook[k] - 0.05 * now, dim=-1)
        cosine = (towards * delta).sum(-1) / m
        direction += weights[:, k] * 12 / (4 * math.pi * math.sinh(12)) * (12 * cosine).exp()
        mean += weights[:, k, None] * towards
    length = torch.distributions.LogNormal(torch.tensor(0.0).double(), torch.tensor(0.3).double()).log_prob(m)
    nll = -(direction.log() + length - 2 * m.log())
    agree(truth["p1.h1.nll"], nll)
    agree(truth["p1.h1.cosine"], torch.cosine_similarity(mean, delta, dim=-1))
    agree(truth["p1.h1.dnll_b0"], nll - gaussian_nll(delta, (delta**2).mean(0).diag()), 0.01)
    agree(truth["p1.h1.dnll_b1"], nll - gaussian_nll(delta, delta.T @ delta / len(delta)), 0.01)
    uniform = math.log(4 * math.pi) + 2 * m.log() - length
    agree(truth["p1.h1.dnll_b0f"], nll - uniform)
    assert torch.allclose(torch.tensor(law.planted()["codebook"]).double(), law.codebook)


def test_the_slow_subspace_is_where_it_was_planted() -> None:
    law: Any = build("slow_subspace", 6, {"slow": 2, "rho": 0.95}, generator(0))
    basis = torch.tensor(law.planted()["slow_basis"], dtype=torch.float64)
    z = law.simulate(2000, 2, generator(1))
    inside = z @ basis.T
    outside = z - inside @ basis
    assert float((inside[:, 0] * inside[:, 1]).mean() / (inside**2).mean()) == pytest.approx(0.95, abs=0.02)
    assert abs(float((outside[:, 0] * outside[:, 1]).mean() / (outside**2).mean())) < 0.05


def test_injection_modes_count_from_the_last_truth() -> None:
    since = {mode: [process.since_truth(mode, s) for s in range(1, 17)] for mode in "ABCDS"}
    assert since["A"] == [0] * 16
    assert since["B"] == [0, 1, 2, 3] * 4
    assert since["C"] == [0, *range(15)]
    assert since["D"] == since["S"] == list(range(16))


@pytest.mark.parametrize(
    ("name", "dim", "params", "says"),
    [
        ("ar2", 4, {}, "Known: ar1, archetypes"),
        ("ar1", 4, {"kappa": 3.0}, "Known keys: rho"),
        ("ar1", 4, {"rho": 1.0}, "less than 1"),
        ("ar1", 0, {}, "dim >= 1"),
        ("cycle", 3, {}, "even --dim"),
        ("vmf_walk", 1, {}, "--dim 2"),
        ("slow_subspace", 2, {"slow": 3}, "lower --slow"),
    ],
)
def test_mistakes_are_named(name: str, dim: int, params: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(name, dim, params, generator(0))
