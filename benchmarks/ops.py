"""Microbenchmarks of the ops on a CUDA device: every twin against eager and torch.compile, forward and backward.

`python benchmarks/ops.py [OP …]`, all ops where none is named. Each case is checked against float64 before it is timed.
Rows (p20/p50/p80 in ms, bytes moved, share of the copy bandwidth measured first, ratio to eager in the same run, device,
versions) are appended to benchmarks/results/ops.jsonl. Without a CUDA device it says so. For another op add a line to TABLE.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arlat_kernels import (
    mixture_nll,
    residual_rollout_op,
    rollout_loss_op,
    vmf_draw,
    vmf_log_norm,
    vmf_nll_natural,
    vmf_nll_polar,
)
from arlat_kernels.op import Case, Op
from arlat_kernels.testing import check_op, convert, results
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "ops.jsonl"
COPIED = 256 * 2**20  # bytes of the buffer whose copy gives the device's bandwidth


@dataclass(frozen=True)
class Row:
    """What is timed: an op, one of its cases and the dtype of the inputs."""

    op: Op[Any]
    case: Case
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        """Case and dtype as they stand in the results."""
        sizes = " ".join(f"{name}={value}" for name, value in self.case.items())
        return f"{sizes} forward+backward {str(self.dtype).removeprefix('torch.')}"


ROLLOUT = {"m": 1, "b": 6912, "k": 16, "w": 8, "h": 256, "layers": 3}  # 64 rows for each of an A100's multiprocessors

TABLE = (
    Row(mixture_nll, {"n": 4096, "m": 8, "d": 64}),
    Row(mixture_nll, {"n": 4096, "m": 8, "d": 128}),
    Row(mixture_nll, {"n": 2048, "m": 8, "d": 512}),
    Row(vmf_nll_natural, {"n": 262144, "d": 8, "kappa": 100.0}),
    Row(vmf_nll_natural, {"n": 65536, "d": 64, "kappa": 100.0}),
    Row(vmf_nll_natural, {"n": 16384, "d": 512, "kappa": 1e3}),
    Row(vmf_nll_natural, {"n": 8192, "d": 1024, "kappa": 1e3}),
    Row(vmf_nll_polar, {"n": 65536, "d": 64, "kappa": 100.0}),
    Row(vmf_nll_polar, {"n": 16384, "d": 512, "kappa": 1e3}),
    Row(vmf_nll_polar, {"n": 16384, "d": 512, "kappa": 1e3}, torch.bfloat16),
    Row(vmf_log_norm, {"n": 1048576, "dim": 64}),
    Row(vmf_draw, {"n": 262144, "d": 8, "kappa": 6.0}),
    Row(vmf_draw, {"n": 65536, "d": 64, "kappa": 60.0}),
    Row(vmf_draw, {"n": 8192, "d": 1024, "kappa": 1e3}),
    Row(rollout_loss_op, {"n": 262144, "d": 8, "kappa": 100.0}),  # 16384 sequences of 16 steps
    Row(rollout_loss_op, {"n": 262144, "d": 64, "kappa": 100.0}),
    Row(rollout_loss_op, {"n": 32768, "d": 512, "kappa": 1e3}),
    Row(rollout_loss_op, {"n": 32768, "d": 512, "kappa": 1e3}, torch.bfloat16),
    Row(residual_rollout_op, {**ROLLOUT, "d": 32, "s": 32, "operands": "bfloat16"}),
    Row(residual_rollout_op, {**ROLLOUT, "d": 64, "s": 64, "operands": "bfloat16"}),
    Row(residual_rollout_op, {**ROLLOUT, "d": 64, "s": 64}),
    Row(residual_rollout_op, {**ROLLOUT, "d": 128, "s": 128, "operands": "bfloat16"}),
)


def quantiles(run: Callable[[], object], repeats: int = 50) -> list[float]:
    """p20, p50 and p80 of the device time of `run`, in ms, after a warm-up."""
    for _ in range(5):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return torch.tensor(times).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()


def copy_bandwidth() -> float:
    """Bytes per second that a copy within the device reads and writes."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED / (quantiles(lambda: target.copy_(source))[1] * 1e-3)


def outputs(function: Callable[..., Any], inputs: list[Tensor], settings: Case) -> list[Tensor]:
    """The results of a call as a list."""
    return list(results(function(*inputs, **settings)).values())


def step(function: Callable[..., Any], inputs: list[Tensor], settings: Case) -> Callable[[], object]:
    """Forward and backward of `function`, with gradients of ones for all results that have any."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def run() -> object:
        found = [value for value in outputs(function, inputs, settings) if value.requires_grad]
        return torch.autograd.grad(found, leaves, [torch.ones_like(value) for value in found])

    return run


def least_traffic(inputs: list[Tensor], found: list[Tensor]) -> int:
    """Bytes that no implementation avoids: inputs read forward and backward, their gradients written; results, theirs read."""
    size = sum(tensor.nbytes * (3 if tensor.requires_grad else 2) for tensor in inputs)
    return size + sum(2 * value.nbytes for value in found)


def measure(row: Row, bandwidth: float) -> list[dict[str, Any]]:
    """Checks the twin on the case itself, then times all ways; one result per implementation."""
    check_op(row.op, "triton", cases=(row.case,), dtype=row.dtype, device="cuda")
    made = row.op.make_inputs(**row.case, generator=torch.Generator().manual_seed(0))
    inputs = [convert(tensor, "cuda", row.dtype) for tensor in made.values()]
    inputs = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    settings, eager = row.op.settings(row.case), row.op.implementation("reference")
    moved = least_traffic(inputs, outputs(eager, inputs, settings))
    ways = {"eager": eager, "compile": torch.compile(eager), "triton": row.op.implementation("triton")}
    rows, base = [], None
    for name, function in ways.items():
        p20, p50, p80 = quantiles(step(function, inputs, settings))
        base = base or p50
        rows.append(
            {
                "op": row.op.name,
                "implementation": name,
                "case": row.label,
                "p20_ms": p20,
                "p50_ms": p50,
                "p80_ms": p80,
                "bytes": moved,
                "bandwidth_share": moved / (p50 * 1e-3) / bandwidth,
                "ratio": base / p50,
                "copy_bytes_per_second": bandwidth,
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
        )
    return rows


def chosen(names: list[str]) -> tuple[Row, ...]:
    """The rows of TABLE for the named ops, all of them without a name; ValueError lists the known ones."""
    known = sorted({row.op.name for row in TABLE})
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"No benchmark of {', '.join(unknown)}; known: {', '.join(known)}.")
    return tuple(row for row in TABLE if not names or row.op.name in names)


def main(names: list[str]) -> None:
    """Measures the copy bandwidth, then checks, times and appends row by row."""
    rows = chosen(names)
    if not torch.cuda.is_available():
        print("No CUDA device here: nothing is measured. Run this where one is.")
        return
    bandwidth = copy_bandwidth()
    RESULTS.parent.mkdir(exist_ok=True)
    for row in rows:
        torch.compiler.reset()  # each case is compiled for its own sizes
        for result in measure(row, bandwidth):
            print(json.dumps(result))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
