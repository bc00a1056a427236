"""The library of CUDA C++ kernels: where it lies, whether it is there, and loading it once."""

from __future__ import annotations

import functools
import os
import pathlib

import torch
from torch import Tensor

VARIABLE = "ARLAT_KERNELS_LIBRARY"
SOURCES = pathlib.Path(__file__).resolve().parents[2] / "csrc"  # in the source tree, not in a wheel
DEFAULT = SOURCES.parent / "build" / "arlat_cuda.so"
DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def library_path() -> pathlib.Path:
    """The file that ARLAT_KERNELS_LIBRARY names, or the default one; it need not exist."""
    return pathlib.Path(os.environ.get(VARIABLE) or DEFAULT)


@functools.lru_cache(maxsize=1)
def load(path: pathlib.Path) -> None:
    """Registers torch.ops.arlat_cuda from the library at `path`; once per process, because ops cannot be replaced."""
    torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]


def absence() -> str | None:
    """Why the CUDA kernels cannot run in this process, or None."""
    path = library_path()
    if not path.is_file():
        return f"there is no library {path}; build it with `python -m arlat_kernels.cuda_build`, or set {VARIABLE}."
    return None if torch.cuda.is_available() else "built, but there is no CUDA device here."


# Files are not looked up in a compiled graph. torch.compiler.assume_constant_result says it too, but imports Triton.
absence._dynamo_marked_constant = True  # type: ignore[attr-defined]


def obstacle(inputs: tuple[Tensor, ...]) -> str | None:
    """Why the CUDA kernels cannot run on `inputs`, or None."""
    if why := absence():
        return why
    devices = {str(tensor.device) for tensor in inputs}
    if len(devices) > 1 or inputs[0].device.type != "cuda":
        return f"its inputs are on {', '.join(sorted(devices))}; it takes one CUDA device for all."
    kinds = {tensor.dtype for tensor in inputs if tensor.is_floating_point()}
    if len(kinds) > 1 or not kinds <= DTYPES:
        one_of = ", ".join(sorted(map(str, DTYPES)))
        return f"its inputs are {', '.join(sorted(map(str, kinds)))}; it takes one dtype for all, of {one_of}."
    return None
