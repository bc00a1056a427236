"""Rollouts of residual MLPs on a CUDA device, forward and backward: fused, eager, compiled, captured.

`python benchmarks/rollout.py [--dim 32 …] [--hidden 256 …] [--steps 16 …]`: D × H × K × rows (4096, and one full wave). Every shape
is first checked against float64 at small size; what is wrong is not timed. Rivals take turns in one process, all with bfloat16
operands. Rows (p20/p50/p80, TFLOP/s, share of the matrix products' rate measured first, peak memory, device, versions) are
appended to benchmarks/results/rollout.jsonl; that of the fused rollout says beside its ratios what they should be on an H100. Without
a CUDA device the modelled numbers of docs/kernels.md are printed, marked as modelled, with these goals, and nothing is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arlat_dynamics.fused import fused_rollout, twin
from arlat_dynamics.headed import Scales
from arlat_dynamics.models.mlp import Config, ResidualMLP
from arlat_dynamics.rollout import Route, injections, rollout
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "rollout.jsonl"
DIMS, HIDDEN, STEPS, ROWS = (32, 64, 128, 512), (256, 512, 1024), (16, 64), 4096
TILE_ROWS = 64  # rows of one program of the fused forward pass
LAUNCHES, LAUNCH_SECONDS = (
    4534,
    5e-6,
)  # calls of the reference at 3 blocks, 8 frames, 16 steps (docs/kernels.md), and of each
CHECKED_ROWS, CHECKED_STEPS, LARGEST_ERROR = 130, 4, 3e-2
ROUNDS = 20


@dataclass(frozen=True)
class Shape:
    """A rollout of `rows` sequences over `steps` steps, by `layers` blocks of `hidden` units on a stream as wide as `dim`."""

    dim: int
    hidden: int
    steps: int
    rows: int
    layers: int = 3
    window: int = 8


@dataclass(frozen=True)
class Device:
    """What the model knows of a device: multiprocessors, bfloat16 operations and bytes per second."""

    name: str
    processors: int
    operations: float
    bandwidth: float


DEVICES = (Device("A100", 108, 312e12, 2.0e12), Device("H100", 132, 790e12, 3.0e12))
MODELLED = ((32, 256), (64, 256), (64, 512), (128, 256), (128, 512))
MODELLED_STEPS, MODELLED_ROWS = 16, 13_824
GOALS_FOR = "H100"


def operations(shape: Shape, recomputed: bool) -> float:
    """Operations of the matrix products of a rollout and its gradient.

    A block has 2 products of 2·s·h forward and 4 backward, and 3 more where hidden units are recomputed (one in the sweep, two for
    the weights); the window 3 of 2·w·d·s; the head 3 of 2·d·s, and one more where it is recomputed.
    """
    d = s = shape.dim
    block, window, head = 2 * s * shape.hidden, 2 * shape.window * d * s, 2 * d * s
    products = shape.layers * (9 if recomputed else 6) * block + 3 * window + (4 if recomputed else 3) * head
    return float(products) * shape.rows * shape.steps


def traffic(shape: Shape) -> float:
    """Bytes that the fused rollout moves: about 24·s for each block, row and step, forward and backward."""
    return 24.0 * shape.layers * shape.dim * shape.rows * shape.steps


def wave(processors: int, dim: int) -> int:
    """Rows that fill a device once: two programs to a multiprocessor, one where the stream is 128 wide or wider."""
    return processors * TILE_ROWS * (2 if dim < 128 else 1)


def goals(dim: int, hidden: int) -> dict[str, float]:
    """How many times as fast as each rival the fused rollout should be on an H100; nothing for shapes of which nothing is asked."""
    if dim > 128 or hidden > 512:
        return {}
    return {"eager": 12.0, "compile+graph": 2.0} if dim <= 64 else {"eager": 5.0, "compile+graph": 1.3}


def modelled() -> list[dict[str, float | str]]:
    """The rows of the roofline in docs/kernels.md: least times, in ms, of products and of memory."""
    rows: list[dict[str, float | str]] = []
    for (dim, hidden), device in itertools.product(MODELLED, DEVICES):
        shape = Shape(dim, hidden, MODELLED_STEPS, MODELLED_ROWS)
        work = operations(shape, recomputed=True)
        times = {"products_ms": 1e3 * work / device.operations, "memory_ms": 1e3 * traffic(shape) / device.bandwidth}
        rows.append({"device": device.name, "dim": dim, "hidden": hidden, "tflop": work / 1e12, **times})
    return rows


def print_modelled() -> None:
    """Prints them, every line marked."""
    print("No CUDA device here: nothing is measured, and no row is written. MODELLED numbers of docs/kernels.md:")
    print(f"modelled: {MODELLED_ROWS} rows, {MODELLED_STEPS} steps, 3 blocks, 8 frames, bfloat16, forward and backward")
    for row in modelled():
        numbers = (
            f"{row['tflop']:.2f} TFLOP, products {row['products_ms']:.2f} ms, memory {row['memory_ms']:.2f} ms at least"
        )
        print(f"modelled: {row['device']} D={row['dim']} H={row['hidden']}: {numbers}")
    print(
        f"modelled: eager, {LAUNCHES} launches of {LAUNCH_SECONDS * 1e6:.0f} µs: {1e3 * LAUNCHES * LAUNCH_SECONDS:.0f} ms"
    )
    for dim, hidden in itertools.product(DIMS, HIDDEN):
        wanted = ", ".join(f"{times:g} × {rival}" for rival, times in goals(dim, hidden).items())
        if wanted:
            print(f"goal: {GOALS_FOR} D={dim} H={hidden}: at least {wanted}; not measured here")


def make(shape: Shape, device: str) -> tuple[ResidualMLP, Tensor]:
    """A model at which every part matters, and walks [rows window+steps d] at its scale."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    d, scale = shape.dim, torch.ones(shape.dim)
    model = ResidualMLP(Config(dim=d, context=shape.window, width=d, hidden=shape.hidden, depth=shape.layers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.calibrate(Scales(torch.zeros(d), scale, 0.3 * scale, 0.3 * d**0.5, 0.5))
    walk = torch.randn(shape.rows, shape.window + shape.steps, d, generator=generator).mul_(0.3).cumsum_(1)
    return model.to(device), walk.to(device)


class Eager(nn.Module):
    """−log p of the true steps along the mean rollout, by the loop over the model's own steps."""

    route: Route = "eager"

    def __init__(self, model: ResidualMLP, window: int) -> None:
        super().__init__()
        self.model, self.window = model, window

    def forward(self, frames: Tensor) -> Tensor:
        """The loss of frames [b w+k d]."""
        prefix, truth = frames[:, : self.window], frames[:, self.window :]
        free = torch.zeros(truth.shape[:2], dtype=torch.bool, device=frames.device)
        return -rollout(self.model, prefix, truth, free, route=self.route).log_prob.mean()


class Stepped(Eager):
    """The same by compiled steps with one product for each weight's gradient: captured, it is the way of a training on such shapes."""

    route: Route = "compiled"


class Fused(Eager):
    """The same by the fused op."""

    def forward(self, frames: Tensor) -> Tensor:
        """The loss of frames [b w+k d]."""
        prefix, truth = frames[:, : self.window], frames[:, self.window :]
        free, operands = injections("D", truth.shape[1]), "bfloat16" if torch.is_autocast_enabled("cuda") else "float32"
        return -fused_rollout([self.model], prefix, truth, free, operands=operands).rollout.log_prob.mean()


class Compiled(Eager):
    """The same with one step compiled, since a compiler that unrolls all of them takes minutes for each number of steps."""

    def __init__(self, model: ResidualMLP, window: int) -> None:
        super().__init__(model, window)
        self.step = torch.compile(self.one_step)

    def one_step(self, window: Tensor, true_step: Tensor) -> tuple[Tensor, Tensor]:
        """The next window [b w d], and log p of the true step."""
        law = self.model.distribution(window)
        return torch.cat([window[:, 1:], window[:, -1:] + law.point()[:, None]], 1), law.log_prob(true_step)

    def forward(self, frames: Tensor) -> Tensor:
        """The loss of frames [b w+k d]."""
        window, found = frames[:, : self.window], []
        for true_step in frames[:, self.window - 1 :].diff(dim=1).unbind(1):
            window, log_prob = self.step(window, true_step)
            found.append(log_prob)
        return -torch.stack(found).mean()


def captured(module: Eager, frames: Tensor) -> Callable[[Tensor], Tensor]:
    """`module` as CUDA graphs, forward and backward."""
    made: Callable[[Tensor], Tensor] = torch.cuda.make_graphed_callables(module, (frames.clone(),))
    return made


def gradients(module: Callable[[Tensor], Tensor], model: ResidualMLP, frames: Tensor) -> list[Tensor]:
    """The loss, and its gradient in every parameter."""
    loss = module(frames)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def errors(found: list[Tensor], truth: list[Tensor]) -> float:
    """The largest distance from the truth, in norms of each tensor or of a thousandth of all, whichever is larger."""
    whole = torch.stack([part.norm() for part in truth[1:]]).norm()
    pairs = zip(found, truth, strict=True)
    return max(float((a.double() - b).norm() / torch.maximum(b.norm(), 1e-3 * whole)) for a, b in pairs)


def wrong(shape: Shape, device: str, narrow: bool = True) -> str | None:
    """Why the fused rollout of a small case of this shape must not be timed, or None."""
    model, frames = make(replace(shape, rows=CHECKED_ROWS, steps=CHECKED_STEPS), device)
    with torch.autocast(device, torch.bfloat16, enabled=narrow):
        fused, eager = (gradients(kind(model, shape.window), model, frames) for kind in (Fused, Eager))
    truth = gradients(Eager(model.double(), shape.window), model, frames.double())
    error, allowed = errors(fused, truth), max(2 * errors(eager, truth), LARGEST_ERROR if narrow else 1e-4)
    return None if error <= allowed else f"the fused rollout is {error:.1e} from float64, and {allowed:.1e} is allowed"


def rivals(shape: Shape, model: ResidualMLP, frames: Tensor) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """What makes each way, by name; the fused one where it is in one kernel."""
    w = shape.window
    ways: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "eager": lambda: Eager(model, w),
        "graph": lambda: captured(Eager(model, w), frames),
        "compile": lambda: Compiled(model, w),
        "compile+graph": lambda: captured(Compiled(model, w), frames),
        "one product+graph": lambda: captured(Stepped(model, w), frames),
    }
    if twin(model, "bfloat16")[0] == "triton":
        ways["fused"] = lambda: Fused(model, w)
    return ways


def timed(run: Callable[[], object]) -> float:
    """Milliseconds of one run on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def product_rate() -> float:
    """Operations per second of large bfloat16 matrix products."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = sorted(timed(lambda: a @ b) for _ in range(20))
    return 2 * 8192**3 / (times[10] * 1e-3)


def measure(shape: Shape, ceiling: float) -> list[dict[str, Any]]:
    """Times all ways in turn; one row for each, those that do not fit into memory among them."""
    model, frames = make(shape, "cuda")
    torch.compiler.reset()
    runs: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float | None] = {}
    for name, build in rivals(shape, model, frames).items():
        try:
            way = build()
            for _ in range(3):
                torch.cuda.reset_peak_memory_stats()
                gradients(way, model, frames)
            peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            runs[name] = partial(gradients, way, model, frames)
        except torch.cuda.OutOfMemoryError:
            peaks[name] = None
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(timed(run))
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "ceiling_tflops": ceiling / 1e12}
    rows = [
        row(shape, name, times.get(name), peak, ceiling, times.get("eager")) | about for name, peak in peaks.items()
    ]
    return [each | (beside_goals(shape, times) if each["implementation"] == "fused" else {}) for each in rows]


def beside_goals(shape: Shape, times: dict[str, list[float]]) -> dict[str, Any]:
    """How many times as fast as each rival with a goal the fused rollout was, and whether that is enough."""
    wanted = goals(shape.dim, shape.hidden)
    middle = {name: float(torch.tensor(each).median()) for name, each in times.items()}
    ratios = {name: middle[name] / middle["fused"] for name in wanted if {name, "fused"} <= middle.keys()}
    met = {name: ratio >= wanted[name] for name, ratio in ratios.items()}
    return {"goals": wanted, "goals_for": GOALS_FOR, "ratios": ratios, "goals_met": met}


def row(
    shape: Shape, name: str, times: list[float] | None, peak: float | None, ceiling: float, eager: list[float] | None
) -> dict[str, Any]:
    """One result: quantiles in ms, rate of the products that the rollout needs, and the share of the ceiling that those done take."""
    out: dict[str, Any] = {"op": "rollout", "implementation": name, "case": asdict(shape), "peak_mib": peak}
    if times is None:
        return out | {"status": "out of memory"}
    low, middle, high = torch.tensor(times).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    done = operations(shape, recomputed=name == "fused") / (middle * 1e-3)
    needed = operations(shape, recomputed=False) / (middle * 1e-3)
    out |= {"status": "ok", "p20_ms": low, "p50_ms": middle, "p80_ms": high, "tflops": needed / 1e12}
    ratio = None if eager is None else float(torch.tensor(eager).median()) / middle
    return out | {"ceiling_share": done / ceiling, "ratio": ratio}


def main(arguments: list[str]) -> int:
    """Checks, times and appends shape by shape; 1 where a shape was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in {"dim": DIMS, "hidden": HIDDEN, "steps": STEPS}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print_modelled()
        return 0
    ceiling, failed = product_rate(), 0
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    RESULTS.parent.mkdir(exist_ok=True)
    for dim, hidden, steps in itertools.product(options.dim, options.hidden, options.steps):
        for count in (wave(processors, dim), ROWS):
            shape = Shape(dim, hidden, steps, count)
            if why := wrong(shape, "cuda"):
                print(f"{shape} is not timed: {why}", file=sys.stderr)
                failed = 1
                continue
            with torch.autocast(
                "cuda", torch.bfloat16, cache_enabled=False
            ):  # a graph may not keep casts made outside it
                found = measure(shape, ceiling)
            for result in found:
                print(json.dumps(result))
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result, sort_keys=True) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
