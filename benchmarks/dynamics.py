"""Training and rollout speed of the dynamics models: `python benchmarks/dynamics.py [--dim 64] [--steps 16]`.

Updates per second of `arlat dynamics train`'s loop (crops, schedules, guards, log and states included) against a bare
hand-written loop of the same model and loss, and steps per second of `rollout` eager against torch.compile. Rivals take
turns in one process; rows with p20/p50/p80 of the rounds are appended to benchmarks/results/dynamics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arlat_core.distributed import Ranks
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_data.windows import windows
from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.models import mlp
from arlat_dynamics.rollout import injections, rollout
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_run import Run
from arlat_dynamics.sequences import cut
from arlat_dynamics.train import split_speakers

RESULTS = Path(__file__).parent / "results" / "dynamics.jsonl"


def bare_loop(
    model: HeadedModel, z: torch.Tensor, starts: torch.Tensor, config: RolloutTrainConfig, count: int
) -> None:
    """What a researcher would write: crops, rollout by hand, NLL, AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    w, k = config.context, config.steps
    offsets = torch.arange(w + k)
    for _ in range(count):
        frames = z[starts[torch.randint(len(starts), (config.batch,))][:, None] + offsets]
        state, _ = model.unroll(frames[:, : w - 1])
        x, loss = frames[:, w - 1], frames.new_zeros(())
        for s in range(k):
            state, law = model.step(state, x)
            loss = loss - law.log_prob(frames[:, w + s] - frames[:, w + s - 1]).mean()
            x = x + law.point()
        teacher = model.unroll(frames[:, :-1])[1].slice((slice(None), slice(w - 1, None)))
        loss = loss / k - 0.1 * teacher.log_prob(frames[:, w:] - frames[:, w - 1 : -1]).mean()
        optimiser.zero_grad()
        (loss / model.dim).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def in_turn(rivals: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each rival in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows(op: str, case: str, seconds: dict[str, list[float]], rival: str, work: float) -> list[dict[str, Any]]:
    """One row for each rival; `ratio` is its speed over that of `rival` in the same round, in the median."""
    out = []
    for name, times in seconds.items():
        low, middle, high = (statistics.quantiles(times, n=10)[at] for at in (1, 4, 7))
        ratio = statistics.median(b / a for a, b in zip(times, seconds[rival], strict=True))
        rate = {"p20_s": low, "p50_s": middle, "p80_s": high, "per_second": work / middle}
        out.append({"op": op, "implementation": name, "case": case, "ratio": ratio, **rate})
    return out


def main() -> None:
    """Makes a store, times both pairs, prints and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = LatentStore.open(make("ar1", options.dim, 64, 100, 16, 0, Path(folder) / "store", rho=0.8))
        never = 10**9  # neither looks at the validation part nor states on disk nor a log line: both rivals train alone
        config = RolloutTrainConfig(
            steps=options.steps, updates=10**6, curriculum=0.0, longest=None, evaluate_every=never, log_every=100
        )
        near = windows(store.load("train"), config.context, 1)
        settings = config.model.settings(options.dim, config.context)
        model = mlp.start(settings, near, *split_speakers(near, 0), torch.Generator().manual_seed(0)).to(options.device)
        sequences = cut(store, config)
        starts = sequences.windows.index[sequences.fit_rows] - (config.context - 1)
        run = Run(model, sequences, config, Path(folder) / "run", Ranks(0, 1, options.device), lambda _: None)
        count = 5

        def ours() -> None:
            for _ in range(count):
                run.advance([])

        z = sequences.windows.z.to(options.device)
        case = f"mlp vmf D={options.dim} K={options.steps} batch={config.batch}"
        training = in_turn(
            {"arlat": ours, "bare loop": lambda: bare_loop(model, z, starts, config, count)}, options.rounds
        )
        found = rows("dynamics.train", case, training, "bare loop", count)
        prefix, truth = z[: 8 * 128].view(128, 8, -1), z[: options.steps * 128].view(128, options.steps, -1)
        free = injections("D", options.steps)
        torch.set_grad_enabled(False)
        compiled: Any = torch.compile(lambda: rollout(model, prefix, truth, free, route="eager").state_in)
        pair = {"eager": lambda: rollout(model, prefix, truth, free, route="eager"), "torch.compile": compiled}
        found += rows("dynamics.rollout", case, in_turn(pair, options.rounds), "eager", options.steps)
    RESULTS.parent.mkdir(exist_ok=True)
    for row in found:
        row |= {"device": f"{options.device}, {torch.get_num_threads()} CPU threads"}
        row |= {"torch": torch.__version__, "python": platform.python_version()}
        print(json.dumps(row))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
