"""Synthetic stores whose answers are known: `arlat data synth`, and `make` from Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.types import LatentSpec, fingerprint
from pydantic import Field

from arlat_data.processes import build
from arlat_data.processes._process import Process

BLOCK_NUMBERS = 20_000_000  # float64 numbers that are simulated at once


class Config(BaseConfig):
    """Settings of `arlat data synth`. A parameter that the process does not have is refused."""

    out: Path
    """Folder of the store."""
    process: str = "ar1"
    """white, ar1, var, cycle, vmf_walk, switching, slow_subspace or archetypes."""
    dim: int = Field(32, gt=0)
    """Dimension D."""
    utterances: int = Field(256, gt=1)
    """Utterances in all, dealt to the speakers in turn."""
    frames: int = Field(400, gt=1)
    """Frames of each utterance."""
    speakers: int = Field(64, gt=1)
    """Speakers; all follow the same law."""
    seed: int = Field(0, ge=0)
    """Seed of what is planted, of the split, of the paths and of Monte Carlo answers."""
    eval_fraction: float = Field(0.25, gt=0, lt=1)
    """Part of the speakers that is held out (one at least on each side)."""
    frame_rate: float = Field(12.5, gt=0)
    """Frames per second that the store claims, in Hz: only bit/s depend on it."""
    rho: float | None = None
    """ar1, slow_subspace, switching: correlation of successive frames."""
    radius: float | None = None
    """var: spectral radius of the transition matrix."""
    kappa: float | None = None
    """vmf_walk, archetypes: concentration of directions."""
    mu: float | None = None
    """vmf_walk, archetypes: mean of the log length of a step."""
    sigma: float | None = None
    """vmf_walk, archetypes: standard deviation of the log length of a step."""
    persistence: float | None = None
    """vmf_walk: weight of the last direction."""
    pull: float | None = None
    """vmf_walk, archetypes: weight of the way back to the origin."""
    scale: float | None = None
    """vmf_walk: radius, in median lengths, at which the pull has its weight."""
    slow: int | None = None
    """slow_subspace: dimension of the slow subspace."""
    fast_scale: float | None = None
    """slow_subspace: standard deviation of the white directions."""
    regimes: int | None = None
    """switching: number of regimes."""
    stay: float | None = None
    """switching: probability that a regime stays."""
    codewords: int | None = None
    """archetypes: size of the codebook."""
    choice: float | None = None
    """archetypes: how strongly words that lead back are preferred."""
    period_min: float | None = None
    """cycle: frames per turn in the fastest plane."""
    period_max: float | None = None
    """cycle: frames per turn in the slowest plane."""
    phase_noise: float | None = None
    """cycle: noise of the phase, in radians per frame."""
    memory: float | None = None
    """cycle: coefficient of the log radius."""
    radius_noise: float | None = None
    """cycle: noise of the log radius per frame."""


def stream(seed: int, *names: object) -> torch.Generator:
    """A generator of its own for every purpose, a function of the seed and the names alone."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def make(
    process: str,
    dim: int,
    utterances: int,
    frames: int,
    speakers: int,
    seed: int,
    out: Path | str,
    eval_fraction: float = 0.25,
    frame_rate: float = 12.5,
    **params: Any,
) -> Path:
    """Writes a float32 store of `utterances` paths (in all), with truth.json; the same arguments give the same store.

    truth.json is {"process", "params", "dim", "seed", "frame_rate", "values": {key: {"value", "method"}}, "planted"}; the
    keys are those of results.json. An answer against B5 means the process's own marginal density, which a mixture can
    only approach where that density is no mixture (`cycle`).

    Raises:
        UserError: For fewer than two speakers, fewer utterances than speakers, parameters that the process refuses, or a
            folder that holds something.
    """
    from arlat_data.store import write_store

    out = Path(out)
    if speakers < 2 or utterances < speakers or frames < 2:
        raise UserError(
            f"A synthetic store needs 2 speakers, an utterance for each and 2 frames, but got speakers={speakers}, "
            f"utterances={utterances} (in all), frames={frames}. Raise what is too small."
        )
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty. Choose another folder for the store, or remove it.")
    law = build(process, dim, params, stream(seed, "planted"))
    resolved = law.config.model_dump(mode="json")
    truth = {
        "process": process,
        "params": resolved,
        "dim": dim,
        "seed": seed,
        "frame_rate": frame_rate,
        "values": law.truth(frame_rate, stream(seed, "truth")),
        "planted": law.planted(),
    }
    spec = LatentSpec(
        codec=f"synth:{process}",
        space="synthetic",
        dim=dim,
        frame_rate=frame_rate,
        sample_rate=0,
        fingerprint=fingerprint({"process": process, "params": resolved, "dim": dim, "seed": seed}),
        causal=True,
    )
    rows = paths(law, utterances, frames, split_of(speakers, eval_fraction, seed), seed)
    write_store(out, spec, rows, dtype="float32", truth=truth)
    return out


def split_of(speakers: int, eval_fraction: float, seed: int) -> dict[str, str]:
    """Speaker -> "train" or "eval", drawn by seed; each side has one at least."""
    held_out = min(max(round(eval_fraction * speakers), 1), speakers - 1)
    order = torch.randperm(speakers, generator=stream(seed, "split")).tolist()
    width = len(str(speakers - 1))
    return {f"s{k:0{width}d}": "eval" if order[k] < held_out else "train" for k in range(speakers)}


def paths(
    law: Process[Any], utterances: int, frames: int, split: dict[str, str], seed: int
) -> Iterator[tuple[str, str, str, np.ndarray[Any, np.dtype[np.float32]], None]]:
    """Simulates in blocks and yields (id, speaker, split, z [t d] float32, no energy), one utterance at a time."""
    from rich.console import Console
    from rich.progress import track

    speakers = sorted(split)
    width = len(str(utterances - 1))
    block = max(1, BLOCK_NUMBERS // (frames * law.dim))
    starts = track(range(0, utterances, block), "simulating", console=Console(stderr=True), transient=True)
    for start in starts:
        count = min(block, utterances - start)
        z = law.simulate(count, frames, stream(seed, "paths", start)).float().numpy()
        for i in range(count):
            speaker = speakers[(start + i) % len(speakers)]
            yield f"{speaker}-{start + i:0{width}d}", speaker, split[speaker], z[i], None


def main(arguments: list[str], prog: str) -> int:
    """`arlat data synth --process ar1 --rho 0.8 --dim 32 --out STORE`."""
    config = parse(Config, arguments, prog, "Makes a synthetic store whose answers are known.")
    given = config.model_dump(exclude_none=True)
    out = make(**given)
    print(f"{out}: {config.utterances} utterances of {config.frames} frames, {config.process}, D = {config.dim}.")
    print(f"The answers are in {out / 'truth.json'}.")
    return 0
