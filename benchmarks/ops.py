"""Microbenchmarks of the ops on a CUDA device: every twin against eager and torch.compile, forward and backward.

`python benchmarks/ops.py`. Each case is checked against float64 before it is timed. Rows (p20/p50/p80 in ms, ratio to
eager in the same run, device, versions) are appended to benchmarks/results/ops.jsonl. Without a CUDA device it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from arlat_kernels.mixture import mixture_nll
from arlat_kernels.testing import check_op
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "ops.jsonl"
CASES = [(4096, 8, 64), (4096, 8, 128), (2048, 8, 512)]  # rows, components, dimension


def step(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """Forward and backward of `function` on `inputs`."""

    def run() -> None:
        torch.autograd.grad(function(*inputs).sum(), inputs)

    return run


def quantiles(run: Callable[[], None], repeats: int = 50) -> list[float]:
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


def main() -> None:
    """Checks, then times, and appends the rows."""
    if not torch.cuda.is_available():
        print("No CUDA device here: nothing is measured. Run this where one is.")
        return
    check_op(mixture_nll, "triton", device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    for rows, components, dim in CASES:
        shapes = [(rows, components), (rows, components, dim), (rows, components, dim), (rows, dim)]
        inputs = [torch.randn(shape, generator=generator, device="cuda").requires_grad_() for shape in shapes]
        eager = mixture_nll.implementation("reference")
        ways = {"eager": eager, "compile": torch.compile(eager), "triton": mixture_nll.implementation("triton")}
        base = None
        for name, function in ways.items():
            p20, p50, p80 = quantiles(step(function, inputs))
            base = base or p50
            row = {
                "op": "mixture_nll",
                "implementation": name,
                "case": f"{rows}x{components}x{dim} forward+backward float32",
                "p20_ms": p20,
                "p50_ms": p50,
                "p80_ms": p80,
                "ratio": base / p50,
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
            print(json.dumps(row))
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
