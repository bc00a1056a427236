"""One Triton kernel in one shipped configuration, as it is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Build:
    """`kernel` with the constants, pointer types, alignment and warps with which it is launched.

    Arguments that are neither constants nor in `types` are 32-bit integers; `aligned` says that they divide by 16, as
    those in `types` always do. `stack` is how many bytes a thread may spill, never in a loop of matrix products.
    """

    name: str
    kernel: Any
    constants: Mapping[str, Any]
    types: Mapping[str, str]
    aligned: bool
    warps: int
    stack: int = 0
