"""The Triton twin of the residual MLP's rollout, by Triton's interpreter: lengths, widths, masks, rounding, repetition."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from arlat_kernels import ResidualWeights, residual_rollout, residual_rollout_op
from arlat_kernels.op import TwinUnavailableError
from arlat_kernels.residual_block import ACTIVATIONS
from arlat_kernels.testing import convert, evaluate
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
triton = pytest.importorskip("triton", reason="the package triton is not installed")

tl = pytest.importorskip("triton.language", reason="the package triton is not installed")
block = pytest.importorskip("arlat_kernels.residual_block_triton")
rounded = block.rounded


@triton.jit  # type: ignore[untyped-decorator]
def rounded_kernel(x_ptr, out_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    tl.store(out_ptr + at, rounded(tl.load(x_ptr + at), tl.float32, True))


SMALL = {"m": 1, "b": 5, "k": 3, "w": 2, "d": 32, "s": 32, "h": 64, "layers": 1}


def made(dtype: torch.dtype = torch.float64, **case: Any) -> dict[str, Tensor]:
    inputs = residual_rollout_op.make_inputs(**{**SMALL, **case}, generator=torch.Generator().manual_seed(0))
    return {name: convert(tensor, "cpu", dtype) for name, tensor in inputs.items()}


def distances(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """‖got − expected‖/‖expected‖ of every result and gradient."""
    return {name: float((got[name] - value).norm() / value.norm()) for name, value in expected.items() if value.numel()}


@pytest.mark.parametrize(
    "case",
    [
        {"k": 1, "w": 1},
        {"k": 16, "b": 17, "w": 8},
        {"k": 64, "b": 2, "w": 1},
        {"b": 16},
        {"b": 33, "m": 2, "d": 32, "s": 64},
        {"d": 64, "s": 128, "h": 192, "layers": 3},
        {"d": 128, "s": 128, "w": 3},
    ],
    ids=str,
)
def test_value_and_every_gradient_are_the_references_in_float64(case: dict[str, int]) -> None:
    given = made(**case)
    got, expected = (evaluate(residual_rollout_op.implementation(name), given, 0) for name in ("triton", "reference"))
    assert max(distances(got, expected).values()) < 1e-10


@pytest.mark.parametrize("operands", ["float32", "bfloat16"])
@pytest.mark.parametrize(("d", "s"), [(32, 32), (32, 128), (64, 128), (128, 128)])
def test_every_width_is_the_twins_in_both_operands(
    d: int, s: int, operands: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARLAT_KERNELS", "triton")  # refuses what the twin cannot run
    assert residual_rollout_op.pick(*made(torch.float32, d=d, s=s).values(), operands=operands) == "triton"
    with pytest.raises(TwinUnavailableError, match="its stream is 256 wide"):
        residual_rollout_op.pick(*made(torch.float32, d=d, s=256).values(), operands=operands)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_block_is_the_kernels(activation: str) -> None:
    given, settings = made(), {"activation": activation}
    got, expected = (
        evaluate(residual_rollout_op.implementation(name), given, 0, settings) for name in ("triton", "reference")
    )
    assert max(distances(got, expected).values()) < 1e-10


def test_an_activation_that_the_kernel_lacks_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "absolute", torch.abs)
    with pytest.raises(triton.runtime.errors.InterpreterError, match="AssertionError"):
        residual_rollout_op.implementation("triton")(*made().values(), activation="absolute")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_frame_and_every_frame_given(share: float) -> None:
    given = made(k=4, w=3) | {"given": torch.full((1, 5, 4), share > 0)}
    got, expected = (evaluate(residual_rollout_op.implementation(name), given, 0) for name in ("triton", "reference"))
    assert max(distances(got, expected).values()) < 1e-11


def test_no_block_and_directions_of_no_length() -> None:
    given = made(layers=0)
    given["head"][:, :32], given["head_bias"][:, :32] = 0, 0
    given["frames"][:, 0, 3] = given["frames"][:, 0, 2]
    used = [name for name in given if not name.startswith(("up", "down")) and name != "given"]
    results = []
    for name in ("triton", "reference"):
        leaves = {key: tensor.detach().requires_grad_(key in used) for key, tensor in given.items()}
        out = residual_rollout_op.implementation(name)(*leaves.values())
        assert torch.equal(out[4], torch.ones_like(out[4]))
        total = sum((field * (index + 1)).sum() for index, field in enumerate(out))
        results.append(torch.autograd.grad(total, [leaves[key] for key in used]))  # type: ignore[arg-type]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_rows_that_end_are_zero_and_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, given, *weights = made(torch.float32, k=4).values()
    frames[0, 1, 3:], frames[0, 2, 0] = torch.nan, torch.inf
    found = []
    for name in ("triton", "reference"):
        monkeypatch.setenv("ARLAT_KERNELS", name)
        leaves = [tensor.detach().requires_grad_() for tensor in weights]
        out, alive = residual_rollout(frames, given, ResidualWeights(*leaves))
        assert alive.sum(-1).tolist() == [[4, 1, 0, 4, 4]]
        total = out.squared_error.sum() + out.gap.sum() + out.mu.sum()
        found.append([*out, *torch.autograd.grad(total, leaves)])
    for got, expected in zip(*found, strict=True):
        assert bool(torch.isfinite(got).all())
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [{"k": 4, "layers": 3}, {"k": 16, "b": 9}, {"d": 128, "s": 128}], ids=str)
def test_bfloat16_operands_by_exact_rounding(case: dict[str, int]) -> None:
    given = made(torch.float32, **case)
    exact = {name: convert(tensor, "cpu", torch.float64) for name, tensor in given.items()}
    truth = evaluate(residual_rollout_op.reference, exact, 0)
    settings = {"operands": "bfloat16"}
    got, reference = (
        evaluate(residual_rollout_op.implementation(name), given, 0, settings) for name in ("triton", "reference")
    )
    far, own = distances(got, truth), distances(reference, truth)
    assert max(far.values()) < 3e-2
    for name, distance in far.items():  # as far from the truth as torch's own rounding of the same operands takes it
        assert 1e-4 < distance < 2 * own[name] + 1e-3, name


def test_rounding_is_torchs() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (4096,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    x = bits.view(torch.float32)
    x = torch.where(torch.isfinite(x), x, 1.00390625)  # a tie between two numbers of bfloat16
    out = torch.empty_like(x)
    rounded_kernel[(1,)](x, out, 4096)
    assert torch.equal(out, x.bfloat16().float())


def test_weight_gradients_are_summed_in_parts_and_repeat_bitwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from arlat_kernels import residual_rollout_triton as twin

    given = made(b=22, k=2)
    expected = evaluate(residual_rollout_op.reference, given, 0)
    run = residual_rollout_op.implementation("triton")
    for programs in (1, 4, 512):  # 3 tiles: in one part, in parts of 2 and 1, each alone
        monkeypatch.setattr(twin, "PROGRAMS", programs)
        first, again = evaluate(run, given, 0), evaluate(run, given, 0)
        assert max(distances(first, expected).values()) < 1e-11
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_models_share_frames_without_a_copy() -> None:
    given = made(m=3)
    shared = given["frames"][:1].expand(3, -1, -1, -1)
    from arlat_kernels.residual_rollout_triton import dense_rows

    assert dense_rows(shared).data_ptr() == shared.data_ptr()
    got, expected = (
        residual_rollout_op.implementation(name)(shared, *list(given.values())[1:]) for name in ("triton", "reference")
    )
    for of_twin, of_reference in zip(got, expected, strict=True):
        torch.testing.assert_close(of_twin, of_reference)


def test_nothing_is_kept_without_gradients() -> None:
    from arlat_kernels.residual_rollout_triton import rollout_forward

    given, law = made(torch.float32), ("silu", 6.0, 1e3, "float32")
    kept, bare = (rollout_forward(*given.values(), *law, save) for save in (True, False))
    assert all(torch.equal(first, second) for first, second in zip(kept[:2], bare[:2], strict=True))
    assert [tensor.numel() for tensor in bare[2:]] == [0, 0]
    assert [tensor.shape for tensor in kept[2:]] == [(1, 2, 3, 5, 32), (1, 2, 3, 5)]


def test_it_passes_opcheck() -> None:
    from arlat_kernels.residual_rollout_triton import rollout_forward

    inputs = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in made(torch.float32, b=1, k=1).values()]
    torch.library.opcheck(rollout_forward, (*inputs, "relu2", 6.0, 1e3, "float32", True))
