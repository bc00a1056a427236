"""Starts lie inside utterances; rollouts and noisy steps of an exactly known AR(1) follow their closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arlat_diag.injection import choose_starts, follow, follow_samples
from arlat_diag.perturbed import EPSILONS, noise_like, noise_of, perturbed, sensitivity
from arlat_dynamics.models.linear import Config, LinearModel
from arlat_dynamics.rollout import injections

K, W, D = 16, 8, 64


def ar1_split(rho: float, utterances: int, frames: int, dim: int = D, seed: int = 0) -> Any:
    """Stationary AR(1) frames, one speaker per utterance, a NaN row after each utterance, the last utterance 23 frames long."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(utterances, frames + 1, dim, generator=generator)
    for t in range(1, frames):
        z[:, t] = rho * z[:, t - 1] + (1 - rho**2) ** 0.5 * z[:, t]
    z[:, frames] = torch.nan
    length = torch.full((utterances,), frames)
    length[-1] = 23
    return SimpleNamespace(
        z=z.reshape(-1, dim),
        start=torch.arange(utterances) * (frames + 1),
        length=length,
        ids=[str(i) for i in range(utterances)],
        speakers=[f"s{i:04d}" for i in range(utterances)],
    )


def exact_model(rho: float, dim: int = D) -> LinearModel:
    model = LinearModel(Config(dim=dim, context=W, order=1, frames=1))
    eye = torch.eye(dim)
    model.load_state_dict(
        {
            "center": torch.zeros(dim),
            "weight": (rho - 1) * eye,
            "bias": torch.zeros(dim),
            "factor": (1 - rho**2) ** 0.5 * eye,
        }
    )
    return model


def starts_of(rho: float, utterances: int = 120) -> Any:
    return choose_starts(ar1_split(rho, utterances, 60), W, K, 4, torch.Generator().manual_seed(1))


def chi(dim: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


def test_starts_are_true_stretches_and_short_utterances_are_counted() -> None:
    split = ar1_split(0.5, 9, 26)
    starts = choose_starts(split, W, K, 4, torch.Generator().manual_seed(0))
    assert len(starts) == 8 * 3  # 26 frames hold three places for 24
    assert starts.too_short == 1
    assert torch.isfinite(starts.sequence).all()
    assert set(starts.frame.tolist()) == {7, 8, 9}
    for row in range(len(starts)):
        at = int(split.start[starts.utterance[row]] + starts.frame[row])
        assert torch.equal(starts.prefix[row, -1], split.z[at])
        assert torch.equal(starts.displacement[row, 4], split.z[at + 5] - split.z[at + 4])
        batch = starts.batch(5)
        assert torch.equal(batch.future[row], split.z[at + 5])
        assert torch.equal(batch.context[row], split.z[at - 3 : at + 5])
    none = choose_starts(ar1_split(0.5, 3, 23), W, K, 4, torch.Generator())
    assert (len(none), none.too_short) == (0, 3)


@pytest.mark.parametrize("rho", [0.25, 0.8])
def test_mean_rollouts_follow_the_closed_forms(rho: float) -> None:
    starts = starts_of(rho)
    model = exact_model(rho)
    length = starts.displacement.double().norm(dim=-1).mean(0)
    fresh = {"A": lambda s: 0, "B": lambda s: (s - 1) % 4, "C": lambda s: max(0, s - 2), "D": lambda s: s - 1}
    for mode, since in fresh.items():
        curves = follow(model, starts, injections(mode, K), "cpu", block=100)
        for s in range(1, K + 1):
            j = since(s)
            truth = math.sqrt((1 - rho) / 2) * rho**j
            # without a floor on lengths the cosine is ±1-free even where the step has shrunk to 1e-9
            assert float(curves.cosine[:, s - 1].mean()) == pytest.approx(truth, abs=4 / math.sqrt(D * len(starts)))
            ratio = float(curves.predicted_length[:, s - 1].mean() / length[s - 1])
            assert ratio == pytest.approx(truth, rel=0.02)
            error = math.sqrt(1 - rho ** (2 * j)) * chi(D)
            assert float(curves.error[:, s - 1].mean()) == pytest.approx(error, rel=0.02, abs=1e-9)
            # true Δ about the model's mean (ρ−1)ẑ: E‖·‖² = D (2(1−ρ) − (1−ρ)² ρ^{2j})
            miss = (2 * (1 - rho) - (1 - rho) ** 2 * rho ** (2 * j)) / (1 - rho**2)
            nll = D / 2 * (math.log(2 * math.pi * (1 - rho**2)) + miss)
            assert float(curves.nll[:, s - 1].mean()) == pytest.approx(nll, abs=0.02 * D)


def test_sample_rollouts_keep_their_length_and_double_the_error() -> None:
    rho, draws = 0.8, 16
    starts = starts_of(rho, 40)
    curves = follow_samples(exact_model(rho), starts, draws, torch.Generator().manual_seed(2), "cpu", block=640)
    length = starts.displacement.double().norm(dim=-1).mean(0)
    for s in range(1, K + 1):
        std = math.sqrt(1 - rho ** (2 * (s - 1)))
        assert float(curves.predicted_length[:, s - 1].mean() / length[s - 1]) == pytest.approx(1, rel=0.03)
        assert float(curves.error[:, s - 1].mean()) == pytest.approx(math.sqrt(2) * std * chi(D), rel=0.03, abs=1e-9)
        assert float(curves.spread[:, s - 1].mean()) == pytest.approx(std * math.sqrt(D), rel=0.03, abs=1e-9)
        # a perfect ensemble: E‖x−y‖ − ½E‖x−x'‖ = ½ √2 σ E χ
        assert float(curves.energy_score[:, s - 1].mean()) == pytest.approx(
            std * chi(D) / math.sqrt(2), rel=0.03, abs=1e-9
        )


def test_blocks_and_batches_do_not_change_scores_and_the_generator_decides() -> None:
    starts = starts_of(0.5, 10)
    model = exact_model(0.5)
    one, two = (follow(model, starts, injections("B", K), "cpu", block=size) for size in (7, 1000))
    assert torch.allclose(one.nll, two.nll, atol=1e-4)
    assert torch.allclose(one.error, two.error, atol=1e-5)
    seeds = [follow_samples(model, starts, 4, torch.Generator().manual_seed(s), "cpu").error for s in (1, 1, 2)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


def test_noise_lies_where_it_should_and_is_as_large_as_it_should_be() -> None:
    starts = starts_of(0.5, 12)
    error = torch.rand(len(starts), K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = noise_like(error, starts, torch.Generator().manual_seed(1))
    assert noise.shape == (len(starts), W + K - 1, D)
    assert bool((noise[:, : W - 1] == 0).all())
    torch.testing.assert_close(noise[:, W - 1 :].norm(dim=-1), error.float())
    size = noise_of(3.0, starts, torch.Generator().manual_seed(2)).square().sum(-1)
    assert float(size.mean()) == pytest.approx(9.0, rel=0.02)


def test_without_noise_it_is_teacher_forcing() -> None:
    starts, model = starts_of(0.5, 20), exact_model(0.5)
    forced = follow(model, starts, injections("A", K), "cpu")
    clean = perturbed(model, starts, torch.zeros(len(starts), W + K - 1, D), "cpu", block=7)
    for name in ("cosine", "predicted_length", "error", "nll"):
        torch.testing.assert_close(getattr(clean, name), getattr(forced, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rho", [0.25, 0.8])
def test_a_perfect_linear_model_loses_by_the_size_of_its_error_alone(rho: float) -> None:
    starts, model = starts_of(rho), exact_model(rho)
    free = follow(model, starts, injections("D", K), "cpu")
    like = perturbed(model, starts, noise_like(free.error, starts, torch.Generator().manual_seed(3)), "cpu")
    torch.testing.assert_close(like.error, free.error, rtol=1e-4, atol=1e-5)
    # 2(1−ρ) − (1−ρ)²ρ^2j for D and (1−ρ²) + (1−ρ)²(1−ρ^2j) for E are the same number.
    assert float((like.nll - free.nll).mean(0).abs().max()) < 0.02 * D


@pytest.mark.parametrize("rho", [0.25, 0.8])
def test_sensitivity_has_its_closed_form(rho: float) -> None:
    starts, model = starts_of(rho), exact_model(rho)
    step = math.sqrt(2 * (1 - rho) * D)
    moving = torch.ones(len(starts), K, dtype=torch.bool)
    b5 = 0.5 * (starts.truth.double().square().sum(-1) + D * math.log(2 * math.pi))
    found = sensitivity(model, starts, moving, b5, step, torch.Generator().manual_seed(4), "cpu", 0)
    assert len(found) == 4 * len(EPSILONS)
    information = 0.5 * D * math.log(1 - rho**2)
    for epsilon in EPSILONS:
        square = (epsilon * step) ** 2
        excess, cosine = found[f"r1.F.excess_nll[{epsilon:g}]"], found[f"r1.F.cosine[{epsilon:g}]"]
        assert excess.value == pytest.approx(0.5 * square * (1 - rho) / (1 + rho), rel=0.05, abs=0.02)
        assert cosine.value == pytest.approx(math.sqrt((1 - rho) / 2 / (1 + square / D)), rel=0.03)
        assert cosine.ceiling == pytest.approx(math.sqrt((1 - rho) / 2), rel=0.02)
        assert found[f"r1.F.dnll_b5[{epsilon:g}]"].value == pytest.approx(information + excess.value, abs=0.03 * D)
        assert excess.n.frames == len(starts) * K
