"""What the kernels of `residual_rollout` are launched with: constants, tiles, and the configurations that are compiled ahead."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from arlat_kernels.build import Build
from arlat_kernels.op import triton_mode
from arlat_kernels.philox_triton import HALF_PI, terms
from arlat_kernels.residual_block import OPERANDS, WIDTHS, fits
from arlat_kernels.residual_rollout import BOUND, LONGEST
from arlat_kernels.residual_rollout_forward_triton import forward_kernel
from arlat_kernels.residual_rollout_gradient_triton import blocks_kernel, sweep_kernel, window_kernel
from arlat_kernels.vmf_nll import SHORTEST
from arlat_kernels.vmf_sample import COSINE, ROUNDS, TANGENT

STAGES = 2  # chunks of weights in flight
STRIDES = frozenset({"frames_model", "frames_row"})
TYPES = dict.fromkeys(STRIDES, "i32") | {"given_ptr": "*i8", "seed_ptr": "*i64"}  # of arguments that divide by 16
MULTIPLIED = frozenset(
    f"{name}_ptr" for name in ("enter", "up", "down", "direction", "normed", "grad_stream", "grad_direction")
)
# Bytes that a thread may spill where there are no products, by kernel and width of the stream; 0 where nothing is said.
STACK = {
    ("sampled", 32): 32,
    ("sampled", 64): 384,
    ("sampled", 128): 1024,
    ("forward", 64): 128,
    ("sweep", 64): 512,
    ("forward", 128): 256,
    ("sweep", 128): 1024,
    ("blocks", 128): 16,
}
STACK_FLOAT32 = {("sampled", 64): 64, ("sampled", 128): 256, ("forward", 128): 128, ("sweep", 128): 512}  # else 32


def emulated(operands: str) -> bool:
    """Whether bfloat16 is emulated in float32: the interpreter multiplies its bit patterns."""
    return operands == "bfloat16" and triton_mode() == "interpreted"


def operand_dtype(dtype: torch.dtype, operands: str) -> torch.dtype:
    """In what the kernels keep what is multiplied."""
    return torch.bfloat16 if operands == "bfloat16" and not emulated(operands) else dtype


def constants(dim: int, stream: int, hidden: int, dtype: torch.dtype, activation: str, operands: str) -> dict[str, Any]:
    """What the kernels are compiled for."""
    wide, narrow = dtype == torch.float64, operands == "bfloat16"
    acc = tl.float64 if wide else tl.float32
    emulate = emulated(operands)
    return {
        "D": dim,
        "S": stream,
        "H": hidden,
        "ACTIVATION": activation,
        "ACC": acc,
        "OPERANDS": tl.bfloat16 if narrow and not emulate else acc,
        "EMULATE": emulate,
        "FAST": narrow and not emulate,
        "PRECISION": "ieee" if wide or narrow else "tf32x3",
        "STAGES": STAGES,
    }


def tile(dim: int, stream: int, operands: str) -> dict[str, int]:
    """Rows, hidden units and columns at a time, and warps, of the forward pass and the sweep: no loop of products spills."""
    sizes = {"ROWS": 64, "CHUNK": 64} if operands == "bfloat16" else {"ROWS": 16, "CHUNK": 32}
    return {**sizes, "COLUMNS": min(dim, 64), "num_warps": 4 if max(dim, stream) <= 64 else 8}


def sweep_tile(dim: int, stream: int, operands: str) -> dict[str, int]:
    """Those of the sweep, and whether it reads its tiles from memory for every chunk of hidden units.

    Every warp would hold both tiles of 16 rows, in TF32 each as two numbers: 256 registers at a stream of 128.
    """
    return {**tile(dim, stream, operands), "REREAD": operands == "float32" and stream == 128}


def gradient_tile(stream: int, operands: str) -> dict[str, int]:
    """Rows and hidden units at a time, and warps, of the weight gradients."""
    if operands == "bfloat16":
        return {"ROWS": 64 if stream == 64 else 32, "CHUNK": 64, "num_warps": 4}
    return {"ROWS": 16, "CHUNK": 32 if stream <= 64 else 16, "num_warps": 4}


def window_tile(dim: int, stream: int, operands: str) -> dict[str, int]:
    """Rows at a time, and warps, of the window's weight gradients."""
    return {"ROWS": 64 if operands == "bfloat16" else 16, "num_warps": 4 if max(dim, stream) <= 64 else 8}


def only(kernel: Any, fixed: dict[str, Any]) -> dict[str, Any]:
    """Those of the constants that a kernel takes."""
    return {name: value for name, value in fixed.items() if name in kernel.arg_names}


def law(bound: float, longest: float) -> dict[str, float]:
    """The constants of a step's length."""
    return {"BOUND": bound, "LONGEST": longest, "SHORTEST": SHORTEST}


def drawing(sampled: bool, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of a step's draw."""
    return {
        "SAMPLED": sampled,
        "ROUNDS": ROUNDS,
        "COSINE": COSINE,
        "TANGENT": TANGENT,
        "HALF_PI": HALF_PI,
        "TERMS": terms(dtype == torch.float64),
    }


NO_DRAWS: dict[str, Any] = {"noise_ptr": None, "seed_ptr": None, "spread_ptr": None}  # of a mean rollout


def shipped_sizes() -> list[tuple[int, int, str]]:
    """Dim, stream and operands of all that fits."""
    return [(d, s, each) for each in OPERANDS for s in WIDTHS for d in WIDTHS if fits(d, s)]


def builds() -> tuple[Build, ...]:
    """What is compiled ahead of time: forward pass, sweep and weight gradients for all operands and sizes that fit."""
    return tuple(build for sizes in shipped_sizes() for build in builds_of(*sizes))


def sampled_builds() -> tuple[Build, ...]:
    """The forward pass of sampled rollouts for all operands and sizes that fit."""
    return tuple(
        build_of("sampled", forward_kernel, forward_settings(*sizes, sampled=True), *sizes) for sizes in shipped_sizes()
    )


def forward_settings(dim: int, stream: int, operands: str, sampled: bool) -> dict[str, Any]:
    """The constants of the forward kernel at one size; a sampled rollout has no gradient to save for."""
    fixed = constants(dim, stream, 256, torch.float32, "silu", operands)
    drawn = {**drawing(sampled, torch.float32), **({} if sampled else NO_DRAWS)}
    return {**fixed, **law(BOUND, LONGEST), **drawn, "SAVE": not sampled, **tile(dim, stream, operands)}


def builds_of(dim: int, stream: int, operands: str) -> list[Build]:
    """The four kernels; the blocks' weight gradients do not depend on dim."""
    fixed = constants(dim, stream, 256, torch.float32, "silu", operands)
    each = [
        ("forward", forward_kernel, forward_settings(dim, stream, operands, sampled=False)),
        ("sweep", sweep_kernel, {**fixed, **law(BOUND, LONGEST), **sweep_tile(dim, stream, operands)}),
        ("blocks", blocks_kernel, {**only(blocks_kernel, fixed), **gradient_tile(stream, operands)}),
        ("window", window_kernel, {**only(window_kernel, fixed), **window_tile(dim, stream, operands)}),
    ]
    return [build_of(*parts, dim, stream, operands) for parts in each if parts[0] != "blocks" or dim == stream]


def build_of(name: str, kernel: Any, settings: dict[str, Any], dim: int, stream: int, operands: str) -> Build:
    """One kernel at one size."""
    narrow = {"bfloat16": "*bf16", "float32": "*fp32"}[operands]
    named = [key for key in kernel.arg_names if (key.endswith("_ptr") or key in STRIDES) and key not in settings]
    return Build(
        name=f"residual_rollout/{name}/d{dim}_s{stream}_{narrow[1:]}",
        kernel=kernel,
        constants={key: value for key, value in settings.items() if key != "num_warps"},
        types={key: TYPES.get(key, narrow if key in MULTIPLIED else "*fp32") for key in named},
        aligned=False,
        warps=settings["num_warps"],
        stack=STACK.get((name, stream), 0) if operands == "bfloat16" else STACK_FLOAT32.get((name, stream), 32),
    )
