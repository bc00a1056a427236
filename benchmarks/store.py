"""Random 64-frame crops of a loaded split against np.memmap, time to open, and number of files: `python benchmarks/store.py`.

The crops of both are the same rows, drawn beforehand, in batches of 256, float32; the rounds of both alternate, so that
other load meets both. Rows are printed and appended to benchmarks/results/store.jsonl; `ratio` is the rate of crops
over the memmap's.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from arlat_core.types import LatentSpec
from arlat_data.store import LatentStore, Split, write_store

RESULTS = Path(__file__).parent / "results" / "store.jsonl"
CROP_FRAMES, BATCH, ROUNDS = 64, 256, 40


def make(path: Path, utterances: int, frames: int, dim: int) -> None:
    """Writes a store of noise whose utterances have 0.5 to 1.5 times `frames` frames."""
    generator = np.random.default_rng(0)
    spec = LatentSpec(codec="noise", space="noise", dim=dim, frame_rate=12.5, sample_rate=0, fingerprint="0")
    write_store(
        path,
        spec,
        (
            (
                f"u{k}",
                f"s{k % 100}",
                "eval" if k % 100 < 10 else "train",
                generator.standard_normal((int(generator.integers(frames // 2, frames * 3 // 2)), dim), np.float32),
                None,
            )
            for k in range(utterances)
        ),
    )


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(
    op: str, implementation: str, case: str, seconds: list[float], ratio: float | None, **more: Any
) -> dict[str, Any]:
    """One result: 20th, 50th and 80th percentile of the seconds of a call."""
    low, middle, high = np.percentile(seconds, [20, 50, 80])
    return {
        "op": op,
        "implementation": implementation,
        "case": case,
        "p20": float(low),
        "p50": float(middle),
        "p80": float(high),
        "ratio": ratio,
        "device": "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "zarr": zarr.__version__,
        },
        **more,
    }


def listed(path: Path) -> list[str]:
    """Opens a store and lists its training utterances."""
    return LatentStore.open(path).ids("train")


def loaded(path: Path) -> Split:
    """Opens a store and loads its training split."""
    return LatentStore.open(path).load("train")


def crops(store: LatentStore, folder: Path, case: str) -> list[dict[str, Any]]:
    """Seconds per batch of crops: of the loaded split, and of a float32 memmap of the same frames, copied out."""
    split = store.load("train")
    np.save(folder / "z.npy", split.z.numpy())
    mapped = np.load(folder / "z.npy", mmap_mode="r")
    mapped.sum()  # into the page cache: the memmap at its best
    length, start = split.length.numpy(), split.start.numpy()
    generator, draw = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def from_memmap() -> np.ndarray[Any, Any]:
        utterance = draw.integers(len(length), size=BATCH)
        first = start[utterance] + draw.integers(length[utterance] - CROP_FRAMES + 1)
        out = np.empty((BATCH, CROP_FRAMES, mapped.shape[1]), np.float32)
        for i, at in enumerate(first.tolist()):
            out[i] = mapped[at : at + CROP_FRAMES]
        return out

    def from_split() -> torch.Tensor:
        return split.crops(CROP_FRAMES, BATCH, generator)

    seconds: dict[str, list[float]] = {"memmap": [], "split": []}
    for _ in range(ROUNDS):
        seconds["memmap"].append(timed(from_memmap))
        seconds["split"].append(timed(from_split))
    ratio = float(np.median(seconds["memmap"]) / np.median(seconds["split"]))
    return [
        row("store.crops", "np.memmap", case, seconds["memmap"], None),
        row("store.crops", "Split.crops", case, seconds["split"], ratio),
    ]


def main() -> None:
    """Makes stores of two sizes, measures, prints and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=154, help="mean frames of an utterance (LibriSpeech at 12.5 Hz)")
    parser.add_argument("--dim", type=int, nargs="+", default=[32, 512])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dim in options.dim:
            path = Path(folder) / f"{dim}.store"
            make(path, options.utterances, options.frames, dim)
            files = sum(file.is_file() for file in path.rglob("*"))
            store = LatentStore.open(path)
            case = f"U={options.utterances} T={sum(item.length for item in store.items)} D={dim}"
            rows.append(
                row(
                    "store.open",
                    "LatentStore",
                    case,
                    [timed(partial(LatentStore.open, path)) for _ in range(20)],
                    None,
                )
                | {"files": files, "shards": len(store.header.shards)}
            )
            listing = [timed(partial(listed, path)) for _ in range(20)]
            rows.append(row("store.open+ids", "LatentStore", case, listing, None))
            loading = [timed(partial(loaded, path)) for _ in range(3)]
            rows.append(row("store.load", "LatentStore", case, loading, None))
            rows += crops(store, Path(folder), f"{case} crop={CROP_FRAMES} batch={BATCH}")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        for found in rows:
            file.write(json.dumps(found, sort_keys=True) + "\n")
    for found in rows:
        ratio = f"  {found['ratio']:.2f} × memmap" if found["ratio"] else ""
        count = f"  {found['files']} files, {found['shards']} shards" if "files" in found else ""
        print(
            f"{found['op']:<15} {found['implementation']:<12} {found['case']:<45} p50 {1e3 * found['p50']:8.2f} ms"
            f"  [{1e3 * found['p20']:.2f}, {1e3 * found['p80']:.2f}]{ratio}{count}"
        )


if __name__ == "__main__":
    main()
