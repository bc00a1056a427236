"""Which implementation of an op runs, and what is said when the one asked for cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arlat_kernels import OPS, Op, TwinUnavailableError, UnknownTwinError
from arlat_kernels.op import Inputs, Twin, triton_obstacle
from torch import Tensor


def make_inputs(n: int, *, generator: torch.Generator) -> Inputs:
    return {"x": torch.randn(n, generator=generator)}


def doubled(x: Tensor) -> Tensor:
    return x * 2


def op(obstacle: str | None = None, devices: frozenset[str] = frozenset({"cpu"})) -> Op[Tensor]:
    twin = Twin(run=lambda x: x + x + 1, obstacle=lambda *_: obstacle, devices=devices)
    return Op("double", doubled, make_inputs, ({"n": 3},), {"triton": twin})


@pytest.fixture(autouse=True)
def unforced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARLAT_KERNELS", raising=False)


X = torch.ones(3)


def test_a_twin_runs_on_its_own_devices() -> None:
    assert op().pick(X) == "triton"
    assert torch.equal(op()(X), torch.full((3,), 3.0))


def test_the_reference_runs_where_no_twin_belongs_or_can() -> None:
    assert op(devices=frozenset({"cuda"})).pick(X) == "reference"
    assert op(obstacle="it is too hot.").pick(X) == "reference"
    assert torch.equal(op(devices=frozenset())(X), X * 2)


def test_the_variable_forces_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARLAT_KERNELS", "reference")
    assert op().pick(X) == "reference"
    monkeypatch.setenv("ARLAT_KERNELS", "triton")
    assert op(devices=frozenset()).pick(X) == "triton"


def test_a_forced_twin_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARLAT_KERNELS", "triton")
    with pytest.raises(TwinUnavailableError, match=r"ARLAT_KERNELS=triton.*double.*too hot.*Unset ARLAT_KERNELS"):
        op(obstacle="it is too hot.")(X)


def test_an_unknown_name_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARLAT_KERNELS", "tritom")
    with pytest.raises(UnknownTwinError, match="'tritom'; known: reference, triton"):
        op()(X)


def test_triton_says_what_is_wrong_with_the_inputs() -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    floats = frozenset({torch.float32})
    if not torch.cuda.is_available():
        why = triton_obstacle((X,), floats)
        assert why is None or "on cpu" in why
    mixed = triton_obstacle((X.to("meta"), X), floats)
    assert mixed is not None
    assert "several devices: cpu, meta" in mixed


@pytest.mark.parametrize("each", OPS, ids=lambda each: each.name)
def test_inputs_are_a_function_of_the_generator(each: Op[Any]) -> None:
    for case in each.cases:
        first, again = (each.make_inputs(**case, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)
