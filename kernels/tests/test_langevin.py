"""Langevin steps of a score network: the law of the chain, corrections whose answer is known, rows that freeze, random numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from arlat_kernels import ScoreWeights, langevin, langevin_noise, langevin_op
from torch import Tensor, nn

SMALL = {"m": 2, "b": 4, "j": 3, "d": 32, "s": 32, "h": 64, "layers": 2}
LARGE = 1e3  # what the norm of a linear net's stream is held by


def made(seed: int = 0, **case: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, ScoreWeights]:
    """z, noise, context, level and weights of a case in float64."""
    inputs = langevin_op.make_inputs(**{**SMALL, **case}, generator=torch.Generator().manual_seed(seed))
    z, noise, context, level, _, *weights = (t.double() if t.is_floating_point() else t for t in inputs.values())
    return z, noise, context, level, ScoreWeights(*weights)


def gaussian_score(d: int, variance: float) -> ScoreWeights:
    """A net whose score is −z/variance, but for (z/1000)²: the rest of its stream holds the norm."""
    net = ScoreWeights(*(torch.zeros(shape, dtype=torch.float64) for shape in [
        (1, 2 * d, d), (1, 2 * d), (1, 1, 8, 2 * d), (1, 1, 8), (1, 1, 2 * d, 8), (1, 1, 2 * d), (1, d, 2 * d), (1, d),
    ]))  # fmt: skip
    net.enter[0, :d], net.enter_bias[0, d:] = torch.eye(d), LARGE
    net.head[0, :, :d] = -torch.eye(d) * LARGE * 0.5**0.5 / variance
    return net


def test_a_long_chain_has_the_variance_of_the_discretised_law() -> None:
    """z ← (1 − h/σ²)z + √(2h)ε stands still at σ²/(1 − h/(2σ²)), not at σ²."""
    d, rows, variance, h = 8, 4000, 2.0, 1.5
    z, level = torch.zeros(1, rows, d, dtype=torch.float64), torch.zeros(1, 20, 2 * d, dtype=torch.float64)
    size = torch.full((20,), h, dtype=torch.float64)
    out = langevin(z, torch.tensor([11]), level, size, gaussian_score(d, variance))
    expected = variance / (1 - h / (2 * variance))
    spread = expected * math.sqrt(2 / (rows * d))  # of the variance's estimate; (1 − h/σ²)²⁰ is nothing
    assert abs(float(out.z.square().mean()) - expected) < 4 * spread
    assert abs(expected - variance) > 40 * spread
    assert abs(float(out.z.mean())) < 4 * math.sqrt(expected / (rows * d))


def test_the_last_step_denoises_by_tweedies_formula() -> None:
    """For data N(0, v) and noise σ the score is −z/(v + σ²), and the mean of the clean value z·v/(v + σ²)."""
    variance, sigma = 1.5, 0.7
    net, level = gaussian_score(4, variance + sigma**2), torch.zeros(1, 1, 8, dtype=torch.float64)
    z = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(1, 3, 4)
    size = torch.tensor([sigma**2], dtype=torch.float64)
    out = langevin(z, torch.tensor([0]), level, size, net, spread=torch.zeros_like(size))
    torch.testing.assert_close(out.z, z * variance / (variance + sigma**2), rtol=1e-5, atol=1e-6)


class Denoiser(nn.Module):
    """F(x, level, context) as a user writes it."""

    def __init__(self, d: int, s: int, h: int, depth: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(d, s), nn.Linear(s, d)
        self.up = nn.ModuleList(nn.Linear(s, h) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(h, s) for _ in range(depth))

    def forward(self, x: Tensor, level: Tensor, context: Tensor) -> Tensor:
        x = self.enter(x) + level + context
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(nn.functional.silu(up(nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6))))
        out: Tensor = self.head(nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6))
        return out

    def weights(self) -> ScoreWeights:
        layers = [torch.stack([getattr(layer, name) for layer in part])[None]
                  for part in (self.up, self.down) for name in ("weight", "bias")]  # fmt: skip
        ends = [getattr(end, name)[None] for end in (self.enter, self.head) for name in ("weight", "bias")]
        return ScoreWeights(*ends[:2], *layers, *ends[2:])


@torch.no_grad()
def test_a_modules_own_parameters_give_what_the_module_gives() -> None:
    torch.manual_seed(0)
    net, generator = Denoiser(6, 16, 24, 2).double(), torch.Generator().manual_seed(1)
    sigma = torch.tensor([1.0, 1.0, 0.5, 0.5], dtype=torch.float64)  # two steps on each of two levels
    z, noise, context, level = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in [(1, 5, 6), (1, 4, 5, 6), (1, 5, 16), (1, 4, 16)]
    )
    size, entry = 0.1 * sigma**2, (1 + sigma**2).rsqrt()
    skip, gain = (1 / (1 + sigma**2) - 1) / sigma**2, (1 + sigma**2).rsqrt() / sigma
    state = z[0]
    for j in range(4):
        denoised = state / (1 + sigma[j] ** 2) + sigma[j] * entry[j] * net(entry[j] * state, level[0, j], context[0])
        state = state + size[j] * (denoised - state) / sigma[j] ** 2 + (2 * size[j]).sqrt() * noise[0, j]
    out = langevin(z, noise, level, size, net.weights(), context=context, entry=entry, skip=skip, gain=gain)
    torch.testing.assert_close(out.z[0], state, rtol=1e-12, atol=1e-12)
    assert out.taken.tolist() == [[4] * 5]
    with torch.enable_grad(), pytest.raises(ValueError, match=r"langevin requires a gradient.*torch\.no_grad\(\)"):
        langevin(z, noise, level, size, net.weights())


@pytest.mark.parametrize(("where", "broken"), [("z", math.nan), ("z", math.inf), ("context", -math.inf)])
def test_a_broken_row_keeps_what_it_had_and_others_do_not_feel_it(where: str, broken: float) -> None:
    z, noise, context, level, net = made()
    size = torch.full((3,), 0.1, dtype=torch.float64)
    whole = langevin(z, noise, level, size, net, context=context)
    spoilt = {"z": z.clone(), "context": context.clone()}
    spoilt[where][1, 2, 5] = broken
    out = langevin(spoilt["z"], noise, level, size, net, context=spoilt["context"])
    assert out.taken.tolist() == [[3] * 4, [3, 3, 0, 3]]
    assert torch.equal(out.z[1, 2].nan_to_num(), spoilt["z"][1, 2].nan_to_num())
    kept = torch.tensor([0, 1, 3])
    assert torch.equal(out.z[0], whole.z[0])
    assert torch.equal(out.z[1, kept], whole.z[1, kept])


def test_a_row_that_overflows_freezes_at_its_last_finite_state() -> None:
    z, noise, _, level, net = made(d=32)
    skip = torch.tensor([0.0, 1e200, 1e200], dtype=torch.float64)
    one = torch.ones_like(skip)
    out = langevin(z, 0 * noise, level, one, net, skip=skip, gain=0 * one)
    assert out.taken.tolist() == [[2] * 4] * 2
    torch.testing.assert_close(out.z, z * 1e200)


def test_a_seed_gives_the_noise_of_its_counters_and_no_other_rows() -> None:
    z, _, context, level, net = made()
    seed, size = torch.tensor([-5]), torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.1, 0.1]], dtype=torch.float64)
    noise = torch.stack([langevin_noise(seed, z.shape, j, torch.float64) for j in range(3)], 1)
    seeded = langevin(z, seed, level, size, net, context=context)
    assert torch.equal(seeded.z, langevin(z, noise, level, size, net, context=context).z)
    assert len(noise.unique()) == noise.numel()
    part, first = (ScoreWeights(*(tensor[:1] for tensor in net)), slice(0, 1))
    fewer = langevin(z[first, :2], seed, level[first, :2], size[first, :2], part, context=context[first, :2])
    shorter = langevin(z, seed, level[:, :2], size[:, :2], net, context=context)
    torch.testing.assert_close(fewer.z, shorter.z[first, :2], rtol=1e-13, atol=1e-13)


def test_noise_of_rows_and_steps_is_normal_and_independent() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    drawn = torch.stack([langevin_noise(torch.tensor([1]), (2, 400, 6), j, torch.float64) for j in range(3)])
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    columns = drawn.movedim(2, 0).flatten(1)  # [400, 3 steps · 2 models · 6]
    correlation = torch.corrcoef(columns.mT) - torch.eye(36, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(400)


def test_the_defaults_are_langevins_step_without_context() -> None:
    z, noise, context, level, net = made()
    size = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    given = {"spread": (2 * size).sqrt(), "entry": torch.ones(2, 3).double(), "skip": 0 * size, "gain": torch.ones(3)}
    plain = langevin(z, noise, level, size, net)
    torch.testing.assert_close(langevin(z, noise, level, size, net, context=0 * context, **given).z, plain.z)


@pytest.mark.parametrize("case", [{"j": 0}, {"b": 0}, {"layers": 0}])
def test_nothing_is_a_case_like_others(case: dict[str, int]) -> None:
    z, noise, _, level, net = made(**case)
    out = langevin(z, noise, level, torch.ones(level.shape[1], dtype=torch.float64), net)
    assert out.z.shape == z.shape
    assert bool((out.taken == level.shape[1]).all())


def test_what_does_not_fit_is_named() -> None:
    z, noise, context, level, net = made()
    size = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"head \(2, 31, 32\).*must be z \[m b d\].*head \[m d s\]"):
        langevin(z, noise, level, size, net._replace(head=net.head[:, 1:]))
    with pytest.raises(ValueError, match=r"noise \(2, 2, 4, 32\)"):
        langevin(z, noise[:, 1:], level, size, net, context=context)
    with pytest.raises(ValueError, match=r"skip is \(4,\) for 3 steps of 2 models; give \(3,\) or \(2, 3\)"):
        langevin(z, noise, level, size, net, skip=torch.zeros(4))
    with pytest.raises(ValueError, match=r"z \(4, 32\) and level \(2, 3, 32\) must be \[m b d\] and \[m j s\]"):
        langevin(z[0], noise, level, size, net)
    with pytest.raises(ValueError, match=r"noise is torch.int32.*a seed int64 \[1\]"):
        langevin(z, torch.tensor([1], dtype=torch.int32), level, size, net)
    with pytest.raises(ValueError, match=r"no activation 'gelu'. Known: silu, relu2"):
        langevin(z, noise, level, size, net, activation="gelu")


@pytest.mark.parametrize(
    ("case", "operands", "words"),
    [({"s": 512}, "float32", "stream is 512 wide"), ({"d": 64}, "bfloat16", "have 64 dimensions"), ({"h": 96}, "bfloat16", "blocks 96")],
)  # fmt: skip
def test_the_twin_says_which_shape_goes_the_other_way(case: dict[str, int], operands: str, words: str) -> None:
    inputs = langevin_op.make_inputs(**{**SMALL, **case}, generator=torch.Generator().manual_seed(0))
    why = langevin_op.twins["triton"].obstacle(*inputs.values(), operands=operands)
    assert why is not None
    assert words in why
    assert langevin_op.pick(*inputs.values(), operands=operands) == "reference"
