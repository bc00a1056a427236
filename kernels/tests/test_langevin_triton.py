"""The Triton twin of Langevin steps, by Triton's interpreter: lengths, widths, random numbers, rounding, rows that freeze."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from arlat_kernels import ScoreWeights, langevin, langevin_op
from arlat_kernels.testing import convert
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
pytest.importorskip("triton", reason="the package triton is not installed")

SMALL = {"m": 1, "b": 5, "j": 2, "d": 32, "s": 32, "h": 64, "layers": 1}
run = langevin_op.implementation("triton")


def made(dtype: torch.dtype = torch.float64, **case: Any) -> dict[str, Tensor]:
    inputs = langevin_op.make_inputs(**{**SMALL, **case}, generator=torch.Generator().manual_seed(0))
    return {name: convert(tensor, "cpu", dtype) for name, tensor in inputs.items()}


@pytest.mark.parametrize(
    "case",
    [
        {"j": 1, "b": 17},
        {"j": 16, "seeded": True},
        {"b": 33, "m": 2, "s": 64, "seeded": True},
        {"d": 64, "s": 128, "h": 128, "layers": 3},
        {"d": 128, "s": 128, "seeded": True},
        {"layers": 0},
    ],
    ids=str,
)
def test_states_are_the_references_in_float64(case: dict[str, int]) -> None:
    given = made(**case)
    (z, taken), (expected, steps) = run(*given.values()), langevin_op.reference(*given.values())
    torch.testing.assert_close(z, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(taken, steps)


@pytest.mark.parametrize("case", [{"j": 16, "b": 9, "seeded": True}, {"d": 64, "s": 64, "layers": 3}], ids=str)
def test_bfloat16_operands_by_exact_rounding(case: dict[str, int]) -> None:
    given = made(torch.float32, **case)
    truth, _ = langevin_op.reference(*(convert(tensor, "cpu", torch.float64) for tensor in given.values()))
    far, own = (
        float((langevin_op.implementation(name)(*given.values(), operands="bfloat16")[0] - truth).norm() / truth.norm())
        for name in ("triton", "reference")
    )
    assert 1e-4 < far < 2 * own + 1e-3
    assert far < 3e-2


def test_broken_rows_freeze_and_leave_no_trace() -> None:
    given = made(b=19, j=4)
    whole, _ = run(*given.values())
    given["z"][0, 1, 3], given["context"][0, 17, 0], given["noise"][0, 2, 4, 6] = torch.nan, torch.inf, torch.nan
    z, taken = run(*given.values())
    expected, steps = langevin_op.reference(*given.values())
    assert [int(taken[0, row]) for row in (0, 1, 4, 17, 18)] == [4, 0, 2, 0, 4]
    assert torch.equal(taken, steps)
    torch.testing.assert_close(z, expected, rtol=1e-11, atol=1e-11, equal_nan=True)
    kept = [row for row in range(19) if row not in (1, 4, 17)]
    assert torch.equal(z[0, kept], whole[0, kept])


def test_the_chain_has_the_variance_of_the_discretised_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the twin, through the net: a score −z/σ², whose norm the other half of the stream holds."""
    monkeypatch.setenv("ARLAT_KERNELS", "triton")
    d, rows, variance, h = 32, 128, 1.0, 0.5
    net = ScoreWeights(*(torch.zeros(shape) for shape in [
        (1, 64, d), (1, 64), (1, 0, 64, 64), (1, 0, 64), (1, 0, 64, 64), (1, 0, 64), (1, d, 64), (1, d),
    ]))  # fmt: skip
    net.enter[0, :d], net.enter_bias[0, d:] = torch.eye(d), 1e3
    net.head[0, :, :d] = -torch.eye(d) * 1e3 * 0.5**0.5 / variance
    out = langevin(torch.zeros(1, rows, d), torch.tensor([3]), torch.zeros(1, 8, 64), torch.full((8,), h), net)
    expected = variance / (1 - h / (2 * variance))
    spread = expected * math.sqrt(2 / (rows * d))
    assert abs(float(out.z.double().square().mean()) - expected) < 4 * spread
    assert abs(expected - variance) > 10 * spread
    assert bool((out.taken == 8).all())


def test_models_share_noise_and_context_without_a_copy() -> None:
    given = made(m=2)
    for name in ("noise", "context"):
        given[name] = given[name][:1].expand_as(given[name])
    got, expected = run(*given.values()), langevin_op.reference(*given.values())
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_no_step_and_no_row() -> None:
    for case in ({"j": 0}, {"b": 0}):
        given = made(**case)
        z, taken = run(*given.values())
        assert torch.equal(z, given["z"])
        assert z.data_ptr() != given["z"].data_ptr() or not z.numel()
        assert torch.equal(taken, torch.zeros_like(taken))


def test_it_passes_opcheck() -> None:
    from arlat_kernels.langevin_triton import langevin_forward

    z, noise, context, level, moves, *weights = made(torch.float32, j=1).values()
    torch.library.opcheck(langevin_forward, (z, noise, context, level, moves, weights, "relu2", "float32"))
