"""Time per stage and peak memory of the battery on a synthetic store: `python benchmarks/battery.py [--dim 32]`.

Each stage runs in a process of its own, so that the peak is the stage's and not its predecessor's. Rows are appended to
benchmarks/results/battery.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "battery.jsonl"
STAGES = ("p0", "p1", "p2", "p4", "r1", "r2", "r3", "r4")


def run_stage(stage: str, store: Path, out: Path) -> dict[str, float]:
    """Runs one diagnostic in a child and returns its wall seconds and peak memory in MiB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "arlat_core.cli", "diag", "battery"]
    child = subprocess.Popen([*command, f"data.latents_dir={store}", "--out", str(out), "--only", stage])
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"stage {stage} failed with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": time.perf_counter() - start, "peak_mib": usage.ru_maxrss / 1024}


def main() -> None:
    """Makes the store, runs every stage, prints and appends the rows."""
    import torch
    from arlat_data.synth import make

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--utterances", type=int, default=128)
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        make(
            "ar1",
            dim=options.dim,
            utterances=options.utterances,
            frames=options.frames,
            speakers=32,
            seed=0,
            rho=0.8,
            out=store,
        )
        for stage in STAGES:
            row = {
                "op": f"battery.{stage}",
                "case": f"ar1 D={options.dim} frames={options.utterances * options.frames}",
                **run_stage(stage, store, Path(folder) / "run"),
                "device": f"{torch.get_num_threads()} CPU threads",
                "torch": torch.__version__,
                "python": platform.python_version(),
            }
            print(json.dumps(row))
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
