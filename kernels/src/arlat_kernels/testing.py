"""The contract of an op, as a check that ships with the package."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from arlat_kernels.op import Case, Inputs, Op

FACTOR = 2.0
FLOOR_ULPS = 4.0


def check_op(
    op: Op,
    implementation: str = "reference",
    *,
    cases: tuple[Case, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Asserts that `implementation` of `op` is as good as its reference, value and gradients, on every case.

    The truth is the reference in float64 on the same inputs. The largest error may be at most twice the reference's
    own in `dtype`, with a floor of four units in the last place of the largest true entry. Each case runs contiguous and
    with every input strided in a NaN-filled store; cases may be empty. The value must not depend on gradients being
    asked. ValueError for float64, which is the truth itself: use torch.autograd.gradcheck there.
    """
    if dtype == torch.float64:
        raise ValueError("check_op measures against float64; give a narrower dtype, or use gradcheck.")
    for case in op.cases if cases is None else cases:
        made = op.make_inputs(**case, generator=torch.Generator().manual_seed(seed))
        inputs = {name: tensor.to(device=device, dtype=dtype) for name, tensor in made.items()}
        truth = evaluate(op.reference, {name: tensor.double() for name, tensor in inputs.items()}, seed)
        reference = evaluate(op.reference, inputs, seed)
        run = op.implementation(implementation)
        for layout, arranged in (("contiguous", inputs), ("strided", strided(inputs))):
            got = evaluate(run, arranged, seed)
            for name, true in truth.items():
                compare(f"{op.name}/{implementation} {case} {layout}: {name}", got[name], reference[name], true)
        with torch.no_grad():
            plain = run(*inputs.values())
        assert torch.equal(plain, evaluate(run, inputs, seed)["value"]), f"{op.name} {case}: no_grad changes the value"


def evaluate(function: Callable[..., Tensor], inputs: Inputs, seed: int) -> Inputs:
    """Value and `grad_<input>` of the sum of the value times fixed random weights."""
    leaves = {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in inputs.items()}
    value = function(*leaves.values())
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (value * weights.to(value)).sum().backward()  # type: ignore[no-untyped-call]
    result = {"value": value.detach()}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad is not None, f"no gradient reaches {name}"
            result[f"grad_{name}"] = leaf.grad
    return result


def strided(inputs: Inputs) -> Inputs:
    """The same values in tensors that are not contiguous: every second entry of the last axis, rows apart."""
    result: Inputs = {}
    for name, tensor in inputs.items():
        store = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan, dtype=tensor.dtype)
        view = store.to(tensor.device)[..., 1::2]
        result[name] = view.copy_(tensor)
    return result


def compare(label: str, got: Tensor, reference: Tensor, truth: Tensor) -> None:
    """Asserts shape, finiteness and the two-times rule; the message says which entry failed and by how much."""
    assert got.shape == truth.shape, f"{label}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype == reference.dtype, f"{label}: dtype {got.dtype}, expected {reference.dtype}"
    if got.numel() == 0:
        return
    assert bool(torch.isfinite(got).all()), f"{label}: {int((~torch.isfinite(got)).sum())} entries are not finite"
    error = (got.double() - truth.double()).abs()
    own = (reference.double() - truth.double()).abs().max()
    unit = torch.finfo(got.dtype).eps * truth.double().abs().max()
    allowed = float(torch.maximum(FACTOR * own, FLOOR_ULPS * unit))
    worst = int(error.argmax())
    assert float(error.max()) <= allowed, (
        f"{label}: error {float(error.max()):.3e} at flat index {worst} (got {float(got.flatten()[worst]):.9g}, "
        f"true {float(truth.flatten()[worst]):.9g}); allowed {allowed:.3e} = max({FACTOR:g} × the reference's "
        f"{float(own):.3e}, {FLOOR_ULPS:g} ulp)"
    )
