"""The Triton twin of sampled rollouts, by Triton's interpreter: the reference's draws, the law, masks, rounding."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from arlat_kernels import ResidualWeights, residual_rollout_sample, residual_rollout_sample_op, vmf_mean_resultant
from arlat_kernels.testing import convert
from torch import Tensor
from torch.nn.functional import softplus

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
pytest.importorskip("triton", reason="the package triton is not installed")

SMALL = {"m": 1, "b": 5, "k": 2, "w": 2, "d": 32, "s": 32, "h": 64, "layers": 1}
run = residual_rollout_sample_op.implementation("triton")


def made(dtype: torch.dtype = torch.float64, **case: Any) -> dict[str, Tensor]:
    inputs = residual_rollout_sample_op.make_inputs(**{**SMALL, **case}, generator=torch.Generator().manual_seed(0))
    return {name: convert(tensor, "cpu", dtype) for name, tensor in inputs.items()}


@pytest.mark.parametrize(
    "case",
    [{"k": 1, "b": 17, "w": 1}, {"k": 16, "b": 3}, {"m": 2, "s": 64, "h": 128}, {"d": 64, "s": 128}, {"d": 128, "s": 128}],
    ids=str,
)  # fmt: skip
def test_every_field_is_the_references_in_float64(case: dict[str, int]) -> None:
    given = made(**case)
    for got, expected in zip(run(*given.values()), residual_rollout_sample_op.reference(*given.values()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("share", [0, 1])
def test_no_frame_and_every_frame_given(share: int) -> None:
    given = made(k=3) | {"given": torch.full((1, 5, 3), share > 0)}
    for got, expected in zip(run(*given.values()), residual_rollout_sample_op.reference(*given.values()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_bfloat16_operands_by_exact_rounding() -> None:
    given = made(torch.float32, b=9, k=3)
    truth = residual_rollout_sample_op.reference(*(convert(tensor, "cpu", torch.float64) for tensor in given.values()))
    got, reference = (
        residual_rollout_sample_op.implementation(name)(*given.values(), operands="bfloat16")
        for name in ("triton", "reference")
    )
    for field, own, true in zip(got, reference, truth, strict=True):
        far, near = (float((each - true).norm() / true.norm()) for each in (field, own))
        assert 1e-4 < far < 2 * near + 1e-3
        assert far < 3e-2


def test_the_law_by_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    monkeypatch.setenv("ARLAT_KERNELS", "triton")
    d, rows, steps, raw = 32, 200, 2, 0.8
    net = ResidualWeights(*(torch.zeros(shape) for shape in [
        (1, 1, 32, d), (1, 32), (1, 0, 64, 32), (1, 0, 64), (1, 0, 32, 64), (1, 0, 32), (1, d + 3, 32), (1, d + 3),
    ]))  # fmt: skip
    net.head_bias[0, 1], net.head_bias[0, d] = 1.0, raw
    frames, given = torch.zeros(1, rows, 1 + steps, d), torch.zeros(1, rows, steps, dtype=torch.bool)
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(4))
    out, alive = residual_rollout_sample(
        frames, given, net, noise=noise, seed=torch.tensor([2]), spread=torch.tensor([0.25])
    )
    step = torch.cat([frames[0, :, :1], out.predicted[0]], 1).diff(dim=1).double()
    length = torch.linalg.vector_norm(step, dim=-1)
    gap = 1 - step[..., 1] / length
    expected = float(vmf_mean_resultant(d * softplus(torch.tensor(raw).double()), d, complement=True))
    assert abs(float(gap.mean()) - expected) < 4 * float(gap.std()) / math.sqrt(gap.numel())
    assert stats.kstest((length.log() / 0.25).flatten().numpy(), "norm").pvalue > 1e-3
    assert bool(alive.all())


def test_rows_end_and_directions_of_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, given, noise, seed, spread, *weights = made(torch.float32, k=3).values()
    frames[0, 1, 3:], frames[0, 2, 0] = torch.nan, torch.inf
    net = ResidualWeights(*weights)
    net.head[:, :32], net.head_bias[:, :32] = 0, 0
    found = []
    for name in ("triton", "reference"):
        monkeypatch.setenv("ARLAT_KERNELS", name)
        out, alive = residual_rollout_sample(frames, given, net, noise=noise, seed=seed, spread=spread)
        assert alive.sum(-1).tolist() == [[3, 1, 0, 3, 3]]
        found.append(out)
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_it_passes_opcheck() -> None:
    from arlat_kernels.residual_rollout_sample_triton import sample_forward

    frames, given, noise, seed, spread, *weights = made(torch.float32, b=1, k=1).values()
    torch.library.opcheck(sample_forward, (frames, given, noise, seed, spread, weights, "silu", 6.0, 1e3, "float32"))
