"""P3: the battery proves itself on processes whose answers are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arlat_core.config import Config as BaseConfig
from arlat_core.config import parse
from arlat_core.files import safe_name
from arlat_data.synth import make
from pydantic import Field

from arlat_diag.agreement import agrees
from arlat_diag.battery import Config as BatteryConfig
from arlat_diag.battery import DataConfig, run_battery
from arlat_diag.diagnostics.p1 import Config as P1Config

ENOUGH = 0.9  # 95 % intervals miss one figure in twenty by chance, and figures of one run miss together
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("white", {}),
    ("ar1", {"rho": 0.25}),
    ("ar1", {"rho": 0.8}),
    ("vmf_walk", {}),
)


class Config(BaseConfig):
    """Settings of `arlat diag calibrate`."""

    out: Path
    """Folder of the synthetic stores and their runs."""
    dims: tuple[int, ...] = (8, 32, 128)
    """Dimensions D."""
    processes: tuple[str, ...] = ("white", "ar1", "vmf_walk")
    """Which processes."""
    utterances: int = Field(256, gt=0)
    """Utterances of each store."""
    frames: int = Field(400, gt=32)
    """Frames of each utterance."""
    speakers: int = Field(64, gt=20)
    """Speakers of each store."""
    seed: int = Field(0, ge=0)
    """Seed of the stores and of the battery."""
    p1: P1Config = P1Config()
    """Settings of P1 in these runs."""
    only: str = "p1,p2,p4,r1,r4"
    """Diagnostics to run: those that have known answers."""


def calibrate(config: Config, progress: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Makes each synthetic store, runs the battery on it, and returns the run directories; finished ones are kept."""
    runs = []
    for process, params in CASES:
        if process not in config.processes:
            continue
        for dim in config.dims:
            label = " ".join([process, *(f"{key}={value}" for key, value in params.items()), f"D={dim}"])
            progress(f"calibration: {label}")
            store, run = config.out / "stores" / safe_name(label), config.out / "runs" / safe_name(label)
            if not (store / "store.json").exists():
                shutil.rmtree(store, ignore_errors=True)  # a kill left it half-written
                make(
                    process,
                    dim=dim,
                    utterances=config.utterances,
                    frames=config.frames,
                    speakers=config.speakers,
                    seed=config.seed,
                    out=store,
                    **params,
                )
            data = DataConfig(latents_dir=store)
            run_battery(
                BatteryConfig(data=data, out=run, only=config.only, name=label, seed=config.seed, p1=config.p1),
                progress,
            )
            runs.append(run)
    return runs


def main(arguments: list[str], prog: str) -> int:
    """`arlat diag calibrate --out DIR [--dims 8 32 128]`: 1 when a process has fewer than 90 % of its figures right."""
    from rich.console import Console
    from rich.table import Table

    from arlat_diag.results import read_results

    config = parse(Config, arguments, prog, "Runs the battery on processes whose answers are known.")
    console = Console(stderr=True)
    with console.status("calibration") as status:
        runs = calibrate(config, lambda text: status.update(text))
    table = Table("process", "figures with a known answer", "agree", "disagree")
    failed = 0
    for run in runs:
        for name, values in read_results(run / "results.json").results.items():
            verdicts = {key: agrees(value) for key, value in values.items()}
            bad = [key for key, verdict in verdicts.items() if verdict is False]
            known = sum(verdict is not None for verdict in verdicts.values())
            failed += known - len(bad) < ENOUGH * known
            table.add_row(name, str(known), str(known - len(bad)), ", ".join(bad[:8]) + (" …" if len(bad) > 8 else ""))
    Console().print(table)
    return 1 if failed else 0
