"""The Triton twins of the von Mises–Fisher and sequence losses, by Triton's interpreter: edges, blocks, strides, opcheck."""

from __future__ import annotations

import os

import pytest
import torch
from arlat_kernels import Op, rollout_loss, rollout_loss_op, vmf_nll, vmf_nll_natural, vmf_nll_polar
from arlat_kernels.testing import check_op, evaluate
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by nox -s interpreter (TRITON_INTERPRET=1)", allow_module_level=True)
pytest.importorskip("triton", reason="the package triton is not installed")


def both(op: Op[Tensor], given: dict[str, Tensor]) -> None:
    """Twin and reference agree to float64's rounding, value and every gradient."""
    got, expected = (evaluate(op.implementation(name), given, 0) for name in ("triton", "reference"))
    for name, value in expected.items():
        assert bool(torch.isfinite(value).all()), name
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("op", [vmf_nll_natural, vmf_nll_polar, rollout_loss_op], ids=lambda op: op.name)
def test_many_dimensions_are_walked_in_blocks(op: Op[Tensor]) -> None:
    check_op(op, "triton", cases=({"n": 3, "d": 1024, "kappa": 1e4}, {"n": 2, "d": 2051, "kappa": 1e3}))


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("d", [2, 3, 64, 2048])
def test_vmf_nll_at_its_edges(d: int, kappa: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mu = torch.nn.functional.normalize(torch.randn(7, d, generator=generator, dtype=torch.float64), dim=-1)
    x = mu + torch.randn(7, d, generator=generator, dtype=torch.float64) / (1 + kappa) ** 0.5
    x[1], x[2], x[3], mu[4], x[5] = mu[1], -mu[2], 0, 0, mu[5] * (1 + 1e-12)
    both(vmf_nll_natural, {"mean": kappa * mu, "x": x})
    both(vmf_nll_polar, {"mu": mu, "kappa": torch.full((7,), kappa, dtype=torch.float64), "x": x})


@pytest.mark.parametrize("d", [2, 67])
def test_rollout_loss_at_its_edges(d: int) -> None:
    made = rollout_loss_op.make_inputs(9, d, 1e5, generator=torch.Generator().manual_seed(0))
    given = {name: tensor.double() for name, tensor in made.items()}
    for row, name in enumerate(("pred", "true", "direction")):
        given[name][row] = 0
        given[name][row + 3] = 1e-17 * given[name][row + 3]
    given["direction"][6], given["direction"][7], given["kappa"][8] = given["true"][6], -given["true"][7], 0
    both(rollout_loss_op, given)


def test_the_public_functions_broadcast_through_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rollout_loss_op.make_inputs(6, 5, 3.0, generator=torch.Generator().manual_seed(0))
    pred, true = made["pred"].reshape(2, 3, 5), made["true"][:3]
    scalars = [torch.tensor(2.0), made["log_length"].reshape(2, 3), torch.tensor([0.1])]
    leaves = [tensor.requires_grad_() for tensor in (pred, true, *scalars)]
    results = []
    for name in ("reference", "triton"):
        monkeypatch.setenv("ARLAT_KERNELS", name)
        fields = rollout_loss(pred, true, pred, *scalars)
        table = vmf_nll(pred[:, :, None], true)
        total = torch.stack([field.sum() for field in fields]).sum() + table.square().sum()
        results.append([*fields, table, *torch.autograd.grad(total, leaves)])
    assert results[1][-len(leaves)].shape == (2, 3, 5)
    for reference, twin in zip(*results, strict=True):
        torch.testing.assert_close(twin, reference)


@pytest.mark.parametrize("polar", [False, True])
def test_vmf_nll_passes_opcheck(polar: bool) -> None:
    from arlat_kernels.vmf_nll_triton import vmf_nll_forward

    made = vmf_nll_polar.make_inputs(3, 5, 4.0, generator=torch.Generator().manual_seed(0))
    mu, kappa, x = (tensor.requires_grad_() for tensor in made.values())
    torch.library.opcheck(vmf_nll_forward, (mu, kappa if polar else None, x))


def test_rollout_loss_passes_opcheck() -> None:
    from arlat_kernels.rollout_loss_triton import rollout_loss_forward

    made = rollout_loss_op.make_inputs(3, 5, 4.0, generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(rollout_loss_forward, tuple(tensor.requires_grad_() for tensor in made.values()))
