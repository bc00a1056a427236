"""Sampled rollouts: the law of a step, the draws of `vmf_draw`, teacher's frames, what is left at the ends of the law."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from arlat_kernels import (
    ResidualWeights,
    residual_rollout,
    residual_rollout_sample,
    residual_rollout_sample_op,
    vmf_draw,
    vmf_mean_resultant,
)
from torch import Tensor
from torch.nn.functional import softplus

SMALL = {"m": 2, "b": 4, "k": 5, "w": 3, "d": 8, "s": 16, "h": 24, "layers": 2}


def made(seed: int = 0, **case: Any) -> tuple[Tensor, Tensor, ResidualWeights, dict[str, Tensor]]:
    """Frames, given, weights and draws of a case in float64."""
    inputs = residual_rollout_sample_op.make_inputs(**{**SMALL, **case}, generator=torch.Generator().manual_seed(seed))
    wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    draws = {name: wide.pop(name) for name in ("noise", "seed", "spread")}
    frames, given, *weights = wide.values()
    return frames, given, ResidualWeights(*weights), draws


def along_first_axis(kappa: float, mu: float, log_sigma: float, d: int) -> ResidualWeights:
    """A net whose law is the same everywhere: mean direction e1 and these numbers of the head."""
    net = ResidualWeights(*(torch.zeros(shape, dtype=torch.float64) for shape in [
        (1, 1, 4, d), (1, 4), (1, 0, 8, 4), (1, 0, 8), (1, 0, 4, 8), (1, 0, 4), (1, d + 3, 4), (1, d + 3),
    ]))  # fmt: skip
    net.head_bias[0, 0], net.head_bias[0, d:] = 5.0, torch.tensor([kappa, mu, log_sigma])
    return net


def constant_rollout(
    net: ResidualWeights, rows: int, steps: int, d: int, spread: float = 0.5, **options: float
) -> tuple[Tensor, Tensor]:
    """Steps [rows steps d] of a sampled rollout from 0, and the noise of their lengths."""
    frames, given = torch.zeros(1, rows, 1 + steps, d).double(), torch.zeros(1, rows, steps, dtype=torch.bool)
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out, _ = residual_rollout_sample(
        frames, given, net, noise=noise, seed=torch.tensor([9]), spread=torch.tensor([spread]).double(), **options
    )
    return torch.cat([frames[0, :, :1], out.predicted[0]], 1).diff(dim=1), noise[0]


@pytest.mark.parametrize(("d", "raw"), [(3, 0.3), (32, -0.4), (64, 2.0)])
def test_directions_and_lengths_have_the_law_of_the_head(d: int, raw: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    mu, log_sigma, spread = -0.4, 0.7, 0.5
    step, _ = constant_rollout(along_first_axis(raw, mu, log_sigma, d), 1500, 2, d, spread)
    length = torch.linalg.vector_norm(step, dim=-1)
    u = step / length[..., None]
    kappa = d * softplus(torch.tensor(raw, dtype=torch.float64))
    gap = 0.5 * (u - torch.eye(d, dtype=torch.float64)[0]).square().sum(-1)
    expected = float(vmf_mean_resultant(kappa, d, complement=True))
    assert abs(float(gap.mean()) - expected) < 4 * float(gap.std()) / math.sqrt(gap.numel())
    assert float(u[..., 1:].mean(0).abs().max()) < 5 / math.sqrt(1500)
    sigma = spread * math.exp(log_sigma / (1 + log_sigma / 6))
    residual = (length.log() - mu / (1 - mu / 6)) / sigma
    assert stats.kstest(residual.flatten().numpy(), "norm").pvalue > 1e-3
    between = torch.stack([gap[:, 0], gap[:, 1], residual[:, 0], residual[:, 1], u[:, 0, 1], u[:, 1, 1]])
    assert float((torch.corrcoef(between) - torch.eye(6)).abs().max()) < 5 / math.sqrt(1500)


def test_the_first_steps_directions_are_vmf_draws() -> None:
    frames, given, net, draws = made(m=2, k=1)
    mean, _ = residual_rollout(frames, given, net)
    out, _ = residual_rollout_sample(frames, given, net, **draws)
    newest = frames[:, :, 2]
    pole, step = mean.predicted[:, :, 0] - newest, out.predicted[:, :, 0] - newest
    kappa = 8 * softplus(mean.kappa[..., 0])
    expected = vmf_draw(pole, kappa, draws["seed"])
    torch.testing.assert_close(step / torch.linalg.vector_norm(step, dim=-1, keepdim=True), expected)
    sigma = draws["spread"][:, None] * torch.exp(mean.log_sigma / (1 + mean.log_sigma.abs() / 6))[..., 0]
    log_length = (mean.mu / (1 + mean.mu.abs() / 6))[..., 0] + sigma * draws["noise"][..., 0]
    torch.testing.assert_close(torch.linalg.vector_norm(step, dim=-1).log(), log_length)
    for field in ("kappa", "mu", "log_sigma", "gap"):  # the law's, not the sample's
        torch.testing.assert_close(getattr(out, field), getattr(mean, field))


def test_a_shorter_rollout_is_the_beginning_of_a_longer_one_and_rows_are_apart() -> None:
    frames, given, net, draws = made(m=1)
    whole, _ = residual_rollout_sample(frames, given, net, **draws)
    short = {**draws, "noise": draws["noise"][:, :2, :3]}
    part, _ = residual_rollout_sample(frames[:, :2, :6], given[:, :2, :3], net, **short)
    torch.testing.assert_close(part.predicted, whole.predicted[:, :2, :3])
    other, _ = residual_rollout_sample(frames, given, net, **{**draws, "seed": draws["seed"] + 1})
    assert float((other.predicted - whole.predicted).abs().amin((0, 2, 3)).max()) > 0


def test_injected_truth_is_what_later_steps_start_from() -> None:
    frames, given, net, draws = made()
    every = torch.ones_like(given)
    out, _ = residual_rollout_sample(frames, every, net, **draws)
    mean, _ = residual_rollout(frames, every, net)
    for field in ("kappa", "mu", "log_sigma", "gap"):  # the windows are the truth in both
        torch.testing.assert_close(getattr(out, field), getattr(mean, field))
    once = torch.zeros_like(given)
    once[:, :, 1] = True
    injected, _ = residual_rollout_sample(frames, once, net, **draws)
    free, _ = residual_rollout_sample(frames, torch.zeros_like(given), net, **draws)
    torch.testing.assert_close(injected.predicted[:, :, :2], free.predicted[:, :, :2])
    step = injected.predicted[:, :, 2] - frames[:, :, 4]  # from the truth after step 1
    sigma = draws["spread"][:, None] * torch.exp(injected.log_sigma / (1 + injected.log_sigma.abs() / 6))[..., 2]
    mu = (injected.mu / (1 + injected.mu.abs() / 6))[..., 2]
    torch.testing.assert_close(torch.linalg.vector_norm(step, dim=-1).log(), mu + sigma * draws["noise"][..., 2])


def test_a_sharp_law_gives_the_mean_rollout() -> None:
    frames, given, net, draws = made(k=3)
    net.head[:, 8], net.head_bias[:, 8] = 0, 1e15
    out, _ = residual_rollout_sample(frames, given, net, **{**draws, "spread": 0 * draws["spread"]})
    mean, _ = residual_rollout(frames, given, net)
    torch.testing.assert_close(out.predicted, mean.predicted, rtol=1e-5, atol=1e-5)


def test_the_longest_step_and_no_direction() -> None:
    step, noise = constant_rollout(along_first_axis(0.0, 1.0, 0.0, 4), 50, 2, 4, longest=2.0)
    length = torch.exp(torch.tensor(1 / (1 + 1 / 6)) + 0.5 * noise).clamp_max(2.0)
    assert bool((length == 2).any())
    torch.testing.assert_close(torch.linalg.vector_norm(step, dim=-1), length)
    net = along_first_axis(8.0, 0.0, 0.0, 4)
    towards, _ = constant_rollout(net, 50, 2, 4)
    net.head_bias[0, 0] = 0  # the first axis stands for it
    torch.testing.assert_close(constant_rollout(net, 50, 2, 4)[0], towards)


def test_rows_end_at_frames_that_are_not_finite() -> None:
    frames, given, net, draws = made()
    whole, _ = residual_rollout_sample(frames, given, net, **draws)
    damaged = frames.clone()
    damaged[0, 1, 4, 7], damaged[1, 2, 0, 0] = math.nan, math.inf
    out, alive = residual_rollout_sample(damaged, given, net, **draws)
    assert alive.sum(-1).flatten().tolist() == [5, 1, 5, 5, 5, 5, 0, 5]
    torch.testing.assert_close(out.predicted, torch.where(alive[..., None], whole.predicted, 0.0))


def test_gradients_and_what_does_not_fit_are_refused() -> None:
    frames, given, net, draws = made()
    with pytest.raises(ValueError, match=r"residual_rollout_sample requires a gradient.*torch\.no_grad\(\)"):
        residual_rollout_sample(frames.requires_grad_(), given, net, **draws)
    with torch.no_grad():
        out, _ = residual_rollout_sample(frames, given, net, **draws)
    assert bool(out.predicted.isfinite().all())
    with pytest.raises(ValueError, match=r"noise \(2, 4, 4\).*noise \[m b k\], spread \[m\] and an int64 seed \[1\]"):
        residual_rollout_sample(frames, given, net, **{**draws, "noise": draws["noise"][..., 1:]})
    with pytest.raises(ValueError, match=r"no activation 'gelu'"):
        residual_rollout_sample(frames.detach(), given, net, **draws, activation="gelu")


@pytest.mark.parametrize("case", [{"k": 0}, {"b": 0}, {"layers": 0}])
def test_nothing_is_a_case_like_others(case: dict[str, int]) -> None:
    frames, given, net, draws = made(**case)
    out, alive = residual_rollout_sample(frames, given, net, **draws)
    assert out.predicted.shape == (*given.shape, 8)
    assert out.gap.shape == alive.shape == given.shape


def test_the_twin_says_why_it_cannot() -> None:
    frames, given, net, draws = made()
    obstacle = residual_rollout_sample_op.twins["triton"].obstacle
    why = obstacle(frames, given, *draws.values(), *net)
    assert why is not None
    assert "stream is 16 wide" in why
    elsewhere = {**draws, "seed": draws["seed"].to("meta")}
    assert obstacle(frames, given, *elsewhere.values(), *net) == (
        "frames are on cpu and noise, seed or spread on meta."
    )
