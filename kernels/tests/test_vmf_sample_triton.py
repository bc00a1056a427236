"""What the Triton twin of `vmf_draw` must do beyond the suite of all ops, by Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from arlat_kernels import vmf_draw, vmf_sample
from arlat_kernels.philox import MASK, cos_sin, minus_log, random_words
from arlat_kernels.testing import check_op

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
pytest.importorskip("triton", reason="the package triton is not installed")

import triton
import triton.language as tl
from arlat_kernels import philox_triton
from arlat_kernels import vmf_sample_gradient_triton as tiles
from arlat_kernels import vmf_sample_triton as twin

run = vmf_draw.implementation("triton")


@triton.jit
def primitives(seed_ptr, word_ptr, log_ptr, cos_ptr, sin_ptr, first: tl.constexpr, HALF_PI: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.arange(0, 4).to(tl.int64) + first
    step = tl.arange(0, 8).to(tl.uint32)
    at = tl.arange(0, 4)[:, None] * 8 + tl.arange(0, 8)[None, :]
    w0, w1, w2, w3 = philox_triton.random_words(seed_ptr, row[:, None], step[None, :], 1)
    tl.store(word_ptr + at, w0.to(tl.int64))
    tl.store(word_ptr + 32 + at, w1.to(tl.int64))
    tl.store(word_ptr + 64 + at, w2.to(tl.int64))
    tl.store(word_ptr + 96 + at, w3.to(tl.int64))
    tl.store(log_ptr + at, philox_triton.minus_log(w0, tl.float64))
    cos, sin = philox_triton.cos_sin(w0, tl.float64, HALF_PI, 9)
    tl.store(cos_ptr + at, cos)
    tl.store(sin_ptr + at, sin)


@pytest.mark.parametrize("first", [0, 2**32 - 2])
@pytest.mark.parametrize("seed", [0, -1, 0x123456789ABCDEF])
def test_words_are_bitwise_those_of_the_reference(seed: int, first: int) -> None:
    key = torch.tensor([seed])
    words = torch.zeros(4, 32, dtype=torch.int64)
    log, cos, sin = (torch.zeros(4, 8, dtype=torch.float64) for _ in range(3))
    primitives[(1,)](key, words, log, cos, sin, first, philox_triton.HALF_PI)
    row = torch.arange(first, first + 4)
    expected = random_words(key, row[:, None], torch.arange(8), 1)
    assert torch.equal(words & MASK, torch.stack([word.flatten() for word in expected]))
    torch.testing.assert_close(log, minus_log(expected[0], torch.float64), rtol=1e-14, atol=0)
    true_cos, true_sin = cos_sin(expected[0], torch.float64)
    torch.testing.assert_close(cos, true_cos, rtol=0, atol=4e-16)
    torch.testing.assert_close(sin, true_sin, rtol=0, atol=4e-16)


def test_draws_do_not_depend_on_tile_lanes_or_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made = vmf_draw.make_inputs(100, 12, 40.0, generator=torch.Generator().manual_seed(0))
    whole = run(*made.values())
    assert torch.equal(run(made["mu"][:7], made["kappa"][:7], made["seed"]), whole[:7])
    leading = run(made["mu"].reshape(4, 25, 12), made["kappa"].reshape(4, 25), made["seed"])
    assert torch.equal(leading.reshape(100, 12), whole)
    monkeypatch.setattr(twin, "LANES", 8)
    monkeypatch.setattr(tiles, "TILE", 64)
    assert tiles.tile(12)["ROWS"] == 4
    torch.testing.assert_close(run(*made.values()), whole, rtol=0, atol=2e-7)


def test_many_dimensions_and_the_ends_of_kappa() -> None:
    check_op(vmf_draw, "triton", cases=({"n": 2, "d": 1500, "kappa": 1e4}, {"n": 6, "d": 4, "kappa": 1e6}))


def test_the_law_by_the_twin() -> None:
    """The mean of 1 − cos at fixed seeds, with μ = ±e1 among the directions."""
    from arlat_kernels import vmf_mean_resultant

    for dim, kappa in ((2, 20.0), (8, 1e4), (64, 100.0)):
        mu = torch.eye(dim)[0].repeat(800, 1)
        mu[::2] *= -1
        x = run(mu, torch.full((800,), kappa), torch.tensor([dim]))
        gap = 0.5 * (x.double() - mu).square().sum(-1)
        expected = float(vmf_mean_resultant(torch.tensor(kappa, dtype=torch.float64), dim, complement=True))
        assert abs(float(gap.mean()) - expected) < 5 * float(gap.std()) / len(gap) ** 0.5
        assert float((torch.linalg.vector_norm(x.double(), dim=-1) - 1).abs().max()) < 5e-7


def test_a_kappa_that_is_not_finite_ends_in_nan_and_harms_no_other_row() -> None:
    made = vmf_draw.make_inputs(4, 5, 3.0, generator=torch.Generator().manual_seed(0))
    whole = run(*made.values())
    kappa = made["kappa"].clone()
    kappa[1] = torch.nan
    spoilt = run(made["mu"], kappa, made["seed"])
    assert bool(torch.isnan(spoilt[1]).all())
    assert torch.equal(spoilt[[0, 2, 3]], whole[[0, 2, 3]])


def test_a_zero_direction_stands_for_the_first_axis_and_gets_no_gradient() -> None:
    mu, kappa = torch.zeros(3, 4, requires_grad=True), torch.full((3,), 9.0, requires_grad=True)
    x = run(mu, kappa, torch.tensor([1]))
    axis = torch.eye(4)[0].expand(3, 4)
    assert torch.equal(x, run(axis, kappa, torch.tensor([1])))
    x[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert mu.grad is not None
    assert kappa.grad is not None
    assert bool((mu.grad == 0).all())
    assert bool((kappa.grad > 0).all())


def test_the_sampler_runs_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    mu, kappa = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor(4.0)
    reference = vmf_sample(mu, kappa, generator=torch.Generator().manual_seed(7))
    monkeypatch.setenv("ARLAT_KERNELS", "triton")
    torch.testing.assert_close(vmf_sample(mu, kappa, generator=torch.Generator().manual_seed(7)), reference)


def test_opcheck() -> None:
    made = vmf_draw.make_inputs(3, 5, 2.0, generator=torch.Generator().manual_seed(0))
    mu, kappa = made["mu"].requires_grad_(), made["kappa"].requires_grad_()
    torch.library.opcheck(twin.vmf_draw_forward, (mu, kappa, made["seed"]))


def test_what_the_twin_cannot_do_is_said() -> None:
    obstacle = vmf_draw.twins["triton"].obstacle
    seed = torch.tensor([0])
    assert obstacle(torch.ones(1, 20_000), torch.ones(1), seed) == "mu has 20000 dimensions; it takes up to 8192."
    assert obstacle(torch.ones(1, 3), torch.ones(1), seed) is None
    mixed = obstacle(torch.ones(1, 3), torch.ones(1).double(), seed)
    assert mixed is not None
    assert "torch.float32, torch.float64; it takes one dtype" in mixed
