"""An op: a plain-torch reference that is the CPU product, beside its fast twins."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from arlat_kernels.build import Build

VARIABLE = "ARLAT_KERNELS"
REFERENCE = "reference"
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # found, not imported: that takes a while

Inputs = dict[str, Tensor]
Case = dict[str, Any]
Out = TypeVar("Out", Tensor, tuple[Tensor, ...])


class TwinUnavailableError(RuntimeError):
    """A twin was asked for by name and cannot run on these inputs or on this machine."""


class UnknownTwinError(ValueError):
    """ARLAT_KERNELS names a twin that the op does not have."""


@dataclass(frozen=True)
class Twin:
    """A fast implementation: `run` takes what the reference takes; `obstacle` takes it too and says why not, or None.

    `devices` are the device types on which it is picked by itself; `builds()` is what is compiled ahead of time of it.
    """

    run: Callable[..., Any]
    obstacle: Callable[..., str | None]
    devices: frozenset[str] = frozenset({"cuda"})
    builds: Callable[[], tuple[Build, ...]] = tuple


@dataclass(frozen=True)
class Op(Generic[Out]):
    """A named operation with its reference, its twins and the cases worth testing and timing.

    It takes tensors first, then `options`: settings that are no tensors. `make_inputs(**case, generator=...)` gives
    named float32 CPU tensors for one case; the options of a case are those of its keys that `options` names. The result
    is a tensor or a tuple of tensors. Calling the op picks by device; the environment variable ARLAT_KERNELS =
    reference or a twin's name forces that one. `pathwise` says that the gradient is the derivative of the value with
    everything else fixed; that of a draw by rejection is not, though its mean is right. An op that is not `differentiable`
    refuses, when called, inputs that require a gradient.
    """

    name: str
    reference: Callable[..., Out]
    make_inputs: Callable[..., Inputs]
    cases: tuple[Case, ...]
    twins: Mapping[str, Twin] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    pathwise: bool = True
    differentiable: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.reference.__doc__)

    def __call__(self, *inputs: Any, **options: Any) -> Out:
        if not self.differentiable and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            raise ValueError(
                f"An input of {self.name} requires a gradient, and it has none: call it under torch.no_grad(), or detach "
                "what goes in."
            )
        return self.implementation(self.pick(*inputs, **options))(*inputs, **options)

    def settings(self, case: Case) -> Case:
        """The options of a case."""
        return {name: case[name] for name in self.options if name in case}

    def implementation(self, name: str) -> Callable[..., Out]:
        """The function behind `name`; UnknownTwinError lists the known names."""
        if name == REFERENCE:
            return self.reference
        if name not in self.twins:
            known = ", ".join([REFERENCE, *self.twins])
            raise UnknownTwinError(
                f"{self.name} has no implementation {name!r}; known: {known}. Set {VARIABLE} to one."
            )
        return self.twins[name].run

    def pick(self, *inputs: Any, **options: Any) -> str:
        """Name of the implementation that a call with `inputs` runs; a forced twin that cannot run is an error."""
        forced = os.environ.get(VARIABLE, "")
        if forced:
            self.implementation(forced)
            if forced != REFERENCE and (why := self.twins[forced].obstacle(*inputs, **options)):
                raise TwinUnavailableError(
                    f"{VARIABLE}={forced} asks for the {forced} twin of {self.name}, which cannot run here: {why} "
                    f"Unset {VARIABLE} to let the device decide, or set it to {REFERENCE}."
                )
            return forced
        device = inputs[0].device.type
        for name, twin in self.twins.items():
            if device in twin.devices and twin.obstacle(*inputs, **options) is None:
                return name
        return REFERENCE


def triton_mode() -> str:
    """What a Triton kernel does here: "absent", "interpreted" (TRITON_INTERPRET=1) or "compiled"."""
    if not TRITON_INSTALLED:
        return "absent"
    return "interpreted" if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on") else "compiled"


def triton_obstacle(inputs: tuple[Tensor, ...], dtypes: frozenset[torch.dtype]) -> str | None:
    """Why a Triton twin cannot run on `inputs` (package, device or dtype), or None."""
    mode = triton_mode()
    if mode == "absent":
        return "the package triton is not installed."
    first = inputs[0]
    if any(tensor.device != first.device for tensor in inputs):
        return f"its inputs are on several devices: {', '.join(sorted({str(tensor.device) for tensor in inputs}))}."
    if first.device.type != "cuda" and mode != "interpreted":
        return f"its inputs are on {first.device}, and Triton runs on cuda (or interpreted, with TRITON_INTERPRET=1)."
    kinds = {tensor.dtype for tensor in inputs}
    if len(kinds) > 1 or not kinds <= dtypes:
        one_of = ", ".join(sorted(map(str, dtypes)))
        return f"its inputs are {', '.join(sorted(map(str, kinds)))}; it takes one dtype for all, of {one_of}."
    return None
