"""The vMF normaliser and mean resultant length on one CPU thread against SciPy's path: `python benchmarks/vmf.py`.

SciPy's path is what users write: scipy.special.ive twice, in float64. Both are checked against each other where SciPy
is finite before anything is timed; rounds of both alternate, so that other load meets both. Rows (p20/p50/p80 in ms,
ratio = SciPy's median over the row's, device, versions) are printed and appended to benchmarks/results/vmf.jsonl.
Before that: a table of errors against the true points of ../shared/reference/vmf_reference.json, where they are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from arlat_kernels import vmf_entropy, vmf_kl_uniform, vmf_log_norm, vmf_mean_resultant
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "vmf.jsonl"
SHARED = Path(os.environ.get("ARLAT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DIMS = (2, 8, 64, 256, 1024)
Pair = tuple[Any, Any]


def by_scipy(kappa: np.ndarray, dim: int) -> Pair:
    """log C_d(κ) + κ and A by two scaled Bessel functions; infinite or NaN where ive underflows."""
    order = dim / 2 - 1
    low, high = scipy.special.ive(order, kappa), scipy.special.ive(order + 1, kappa)
    with np.errstate(divide="ignore", invalid="ignore"):
        return order * np.log(kappa) - dim / 2 * math.log(2 * math.pi) - np.log(low), high / low


def by_arlat(kappa: Tensor, dim: int) -> Pair:
    """The same by the ops' references."""
    return vmf_log_norm.reference(kappa, dim), vmf_mean_resultant.reference(kappa, dim)


def gradients(kappa: Tensor, dim: int) -> Pair:
    """The same with gradients of both."""
    leaf = kappa.detach().requires_grad_()
    value, length = by_arlat(leaf, dim)
    return value, torch.autograd.grad(value.sum() + length.sum(), leaf)


def check(kappa: Tensor, dim: int) -> int:
    """Asserts agreement to the limits of float32 where SciPy is finite (and not denormal); how many entries that are."""
    wide = kappa.double().numpy()
    sound = scipy.special.ive(dim / 2, wide) > 1e-290
    for got, expected, least in zip(by_arlat(kappa, dim), by_scipy(wide, dim), (1.0, 0.0), strict=True):
        error = np.abs(got.double().numpy() - expected)[sound] / np.maximum(np.abs(expected[sound]), least)
        assert error.max() <= 1e-6, f"d = {dim}: error {error.max():.1e} against SciPy"
    return int(sound.sum())


def quantiles(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """p20, p50 and p80 in ms of each way, their rounds alternating, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.percentile(each, [20, 50, 80]) for name, each in times.items()}


def accuracy() -> None:
    """Prints the largest error of each function on the true points: relative, or against max(1, |true|) for logs."""
    path = SHARED / "reference" / "vmf_reference.json"
    if not path.exists():
        print(f"{path} is missing: no accuracy table. Set ARLAT_SHARED to the folder that holds reference/.")
        return
    records = json.loads(path.read_text())["records"]
    names = ("log_C_plus_kappa", "log_C", "entropy", "KL_to_uniform", "A", "one_minus_A", "dA")
    print(f"largest errors on {len(records)} true points")
    print(f"{'dtype':9}{'d':>5}" + "".join(f"{name:>18}" for name in names))
    for dtype in (torch.float32, torch.float64):
        for dim in sorted({record["d"] for record in records}):
            rows = [record for record in records if record["d"] == dim]
            cells = [f"{error:18.1e}" for error in errors(rows, dim, dtype, names)]
            print(f"{str(dtype).removeprefix('torch.'):9}{dim:5}" + "".join(cells))


def errors(rows: list[dict[str, Any]], dim: int, dtype: torch.dtype, names: tuple[str, ...]) -> list[float]:
    """The largest error of each of `names` over the records of one dimension."""
    kappa = torch.tensor([float.fromhex(row["kappa_hex"]) for row in rows], dtype=dtype, requires_grad=True)
    length = vmf_mean_resultant(kappa, dim)
    values = (
        vmf_log_norm(kappa, dim),
        vmf_log_norm(kappa, dim, scaled=False),
        vmf_entropy(kappa, dim),
        vmf_kl_uniform(kappa, dim),
        length,
        vmf_mean_resultant(kappa, dim, complement=True),
        torch.autograd.grad(length.sum(), kappa, retain_graph=True)[0],
    )
    found = []
    for name, value in zip(names, values, strict=True):
        true = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
        least = 1.0 if name in ("log_C_plus_kappa", "log_C", "entropy") else 0.0
        found.append(float(((value.detach().double() - true).abs() / true.abs().clamp_min(least)).max()))
    return found


def measure(kappa: Tensor, dim: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one dimension: SciPy's path, and the references by dtype and with gradients."""
    sound = check(kappa, dim)
    wide = kappa.double()
    ways: dict[str, Callable[[], Any]] = {
        "scipy ive float64": partial(by_scipy, wide.numpy(), dim),
        "reference float32": partial(by_arlat, kappa, dim),
        "reference float64": partial(by_arlat, wide, dim),
        "reference float32 with gradients": partial(gradients, kappa, dim),
    }
    found = quantiles(ways, rounds)
    return [
        {
            "op": "vmf_log_norm + vmf_mean_resultant",
            "implementation": name,
            "case": f"n={len(kappa)} d={dim} kappa 1e-2..1e5",
            "p20_ms": float(p20),
            "p50_ms": float(p50),
            "p80_ms": float(p80),
            "ratio": float(found["scipy ive float64"][1] / p50),
            "checked_against_scipy": sound,
            "device": "cpu, 1 thread",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
        }
        for name, (p20, p50, p80) in found.items()
    ]


def main() -> None:
    """Prints the table, checks, times, and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    accuracy()
    generator = torch.Generator().manual_seed(0)
    exponent = torch.rand(options.entries, generator=generator, dtype=torch.float64)
    kappa = (1e-2 * 1e7**exponent).float()  # log-uniform from 1e-2 to 1e5
    RESULTS.parent.mkdir(exist_ok=True)
    for dim in DIMS:
        for row in measure(kappa, dim, options.rounds):
            print(json.dumps(row))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
