"""The contract of an op, as a check that ships with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from arlat_kernels.op import Case, Inputs, Op

FACTOR = 2.0
FLOOR_ULPS = 4.0


def check_op(
    op: Op[Any],
    implementation: str = "reference",
    *,
    cases: tuple[Case, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Asserts that `implementation` of `op` is as good as its reference, value and gradients, on every case.

    Several results are checked one by one, under their names where they have any. The truth is the reference in float64
    on the same inputs. The largest error may be at most twice the reference's own in `dtype`, the larger of its two layouts', with a
    floor of four units in the last place of the largest true entry. Each case runs contiguous and with every input strided in a NaN-filled
    store; cases may be empty. The value must not depend on gradients being asked. Ops that are not differentiable are judged
    by their value alone. ValueError for float64, which is the truth itself: use torch.autograd.gradcheck there.
    """
    if dtype == torch.float64:
        raise ValueError("check_op measures against float64; give a narrower dtype, or use gradcheck.")
    for case in op.cases if cases is None else cases:
        made = op.make_inputs(**case, generator=torch.Generator().manual_seed(seed))
        inputs = {name: convert(tensor, device, dtype) for name, tensor in made.items()}
        settings = op.settings(case)
        exact = {name: convert(tensor, device, torch.float64) for name, tensor in inputs.items()}
        judge = partial(evaluate, seed=seed, settings=settings, gradients=op.differentiable)
        truth, layouts = judge(op.reference, exact), {"contiguous": inputs, "strided": strided(inputs)}
        references = [judge(op.reference, arranged) for arranged in layouts.values()]
        run = op.implementation(implementation)
        for layout, arranged in layouts.items():
            got = judge(run, arranged)
            for name, true in truth.items():
                known = [reference[name] for reference in references]
                compare(f"{op.name}/{implementation} {case} {layout}: {name}", got[name], known, true)
        with torch.no_grad():
            plain = results(run(*inputs.values(), **settings))
        with_gradients = judge(run, inputs)
        for name, value in plain.items():
            assert torch.equal(value, with_gradients[name]), f"{op.name} {case}: no_grad changes {name}"


def convert(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """The tensor on `device`, floats as `dtype`; integers (seeds, masks) stay what they are."""
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)


def results(value: Tensor | tuple[Tensor, ...]) -> Inputs:
    """The result of an op by name: "value", or a named tuple's fields, or "value0", "value1" …"""
    if isinstance(value, Tensor):
        return {"value": value}
    names = getattr(value, "_fields", [f"value{index}" for index in range(len(value))])
    return dict(zip(names, value, strict=True))


def evaluate(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Inputs,
    seed: int,
    settings: Case | None = None,
    gradients: bool = True,
) -> Inputs:
    """Results and, with `gradients`, `grad_<input>` of the sum of all results times fixed random weights."""
    leaves = {
        name: tensor.detach().requires_grad_(gradients and tensor.is_floating_point())
        for name, tensor in inputs.items()
    }
    found = results(function(*leaves.values(), **(settings or {})))
    if not gradients:
        return found
    generator = torch.Generator().manual_seed(seed + 1)
    weights = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in found.items()
    }
    terms = [(value * weights[name].to(value)).sum() for name, value in found.items() if value.requires_grad]
    torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    out = {name: value.detach() for name, value in found.items()}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad is not None, f"no gradient reaches {name}"
            out[f"grad_{name}"] = leaf.grad
    return out


def strided(inputs: Inputs) -> Inputs:
    """The same values in tensors that are not contiguous: every second entry of the last axis, rows apart."""
    result: Inputs = {}
    for name, tensor in inputs.items():
        blank = torch.nan if tensor.is_floating_point() else 0
        store = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), blank, dtype=tensor.dtype)
        view = store.to(tensor.device)[..., 1::2]
        result[name] = view.copy_(tensor)
    return result


def compare(label: str, got: Tensor, references: Sequence[Tensor], truth: Tensor) -> None:
    """Asserts shape, finiteness and the two-times rule; the message says which entry failed and by how much."""
    assert got.shape == truth.shape, f"{label}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype == references[0].dtype, f"{label}: dtype {got.dtype}, expected {references[0].dtype}"
    if got.numel() == 0:
        return
    assert bool(torch.isfinite(got).all()), f"{label}: {int((~torch.isfinite(got)).sum())} entries are not finite"
    error = (got.double() - truth.double()).abs()
    own = torch.stack([(reference.double() - truth.double()).abs().max() for reference in references]).max()
    unit = torch.finfo(got.dtype).eps * truth.double().abs().max()
    allowed = float(torch.maximum(FACTOR * own, FLOOR_ULPS * unit))
    worst = int(error.argmax())
    assert float(error.max()) <= allowed, (
        f"{label}: error {float(error.max()):.3e} at flat index {worst} (got {float(got.flatten()[worst]):.9g}, "
        f"true {float(truth.flatten()[worst]):.9g}); allowed {allowed:.3e} = max({FACTOR:g} × the reference's "
        f"{float(own):.3e}, {FLOOR_ULPS:g} ulp)"
    )
