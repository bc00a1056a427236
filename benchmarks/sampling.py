"""Forward-only ops on a CUDA device: sampled rollouts of residual MLPs and Langevin steps, each against loops in eager and compiled PyTorch.

`python benchmarks/sampling.py [--dim 32 …] [--hidden 256 …] [--steps 16 …]`: D × H × steps × rows (4096, and one full wave). A
shape is timed after every way has passed at small size: sampled rollouts against the law that the model has in float64 at
their own states, Langevin steps against float64. Rivals take turns in one process, all with bfloat16 operands. Rows
(p20/p50/p80, ratio to eager, device, versions) are appended to benchmarks/results/sampling.jsonl. Without a CUDA device one
small shape of the op's plain PyTorch is timed against the loop and printed as a figure of the CPU; nothing is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arlat_dynamics.fused import twin
from arlat_dynamics.models.mlp import ResidualMLP
from arlat_dynamics.rollout import Route, injections
from arlat_dynamics.rollout import rollout as rolled_out
from arlat_kernels import langevin_op, vmf_draw, vmf_mean_resultant
from rollout import LARGEST_ERROR, ROUNDS, ROWS, Shape, make, timed, wave
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "sampling.jsonl"
DIMS, HIDDEN, STEPS = (32, 64, 128), (256,), (16,)
CHECKED_ROWS, CHECKED_STEPS = 500, 4
ERRORS_ALLOWED = 5.0  # standard errors by which a mean of draws may miss that of its law
ON_CPU = Shape(dim=32, hidden=64, steps=8, rows=256, layers=2, window=4)
Numbers = tuple[Tensor, Tensor]  # normals [b k] and seeds [k 1] of a rollout
Way = Callable[[], Any]


class Drawn(NamedTuple):
    """A sampled rollout: states entering and steps [b k d], log p of the true steps [b k]."""

    state_in: Tensor
    step: Tensor
    log_prob: Tensor


def draw(model: ResidualMLP, window: int, frames: Tensor, generator: torch.Generator, route: Route) -> Drawn:
    """The rollout of frames [b w+k d] by `arlat_dynamics.rollout`."""
    prefix, truth = frames[:, :window], frames[:, window:]
    return Drawn(*rolled_out(model, prefix, truth, injections("S", truth.shape[1]), True, generator, route=route)[:3])


def numbers(frames: Tensor, window: int, generator: torch.Generator) -> Numbers:
    """What chance gives a rollout of frames [b w+k d]."""
    rows, steps = len(frames), frames.shape[1] - window
    noise = torch.randn(rows, steps, generator=generator, device=frames.device)
    return noise, torch.randint(-(2**63), 2**63 - 1, (steps, 1), generator=generator, device=frames.device)


class Stepped:
    """The same with one step compiled, by normals and seeds that come from outside."""

    def __init__(self, model: ResidualMLP, window: int, frames: Tensor) -> None:
        self.model, self.window, self.frames = model, window, frames
        self.step = torch.compile(self.one_step)

    def one_step(self, window: Tensor, true_step: Tensor, noise: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next window [b w d], the step [b d], and log p of the true one [b]."""
        law = self.model.distribution(window)
        length = (law.mu + law.log_sigma.exp() * noise).exp()
        dx = length[:, None] * vmf_draw(law.direction, law.kappa, seed)
        return torch.cat([window[:, 1:], window[:, -1:] + dx[:, None]], 1), dx, law.log_prob(true_step)

    def __call__(self, noise: Tensor, seeds: Tensor) -> Drawn:
        """The rollout by these numbers."""
        window, found = self.frames[:, : self.window], []
        for s, true_step in enumerate(self.frames[:, self.window - 1 :].diff(dim=1).unbind(1)):
            entering = window[:, -1]
            window, dx, log_prob = self.step(window, true_step, noise[:, s], seeds[s])
            found.append((entering, dx, log_prob))
        return Drawn(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))


def captured(run: Callable[..., Any], held: tuple[Tensor, ...]) -> Callable[..., Any]:
    """`run` of inputs like `held` as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*held)

    def replay(*fresh: Tensor) -> Any:
        for kept, new in zip(held, fresh, strict=True):
            kept.copy_(new)
        graph.replay()
        return out

    return replay


def sampled_ways(shape: Shape, model: ResidualMLP, frames: Tensor) -> dict[str, Way]:
    """Every way of one sampled rollout, each with draws of its own; the fused one on a device where it is in one kernel."""
    w, device = shape.window, frames.device
    generator = torch.Generator(device).manual_seed(0)
    stepped = Stepped(model, w, frames)
    ways: dict[str, Way] = {
        "eager": lambda: draw(model, w, frames, generator, "eager"),
        "compile": lambda: stepped(*numbers(frames, w, generator)),
    }
    if device.type == "cuda":
        replayed = captured(stepped, numbers(frames, w, generator))
        ways["compile+graph"] = lambda: replayed(*numbers(frames, w, generator))
    if device.type == "cpu" or twin(model, "bfloat16")[0] == "triton":
        ways["fused"] = lambda: draw(model, w, frames, generator, "fused")
    return ways


def unlawful(model: ResidualMLP, window: int, frames: Tensor, out: Drawn) -> str | None:
    """What speaks against a sampled rollout of the float64 `model` beside frames [b w+k d], or None."""
    state, step, log_prob = (part.double() for part in out)
    truth = frames.double()
    before = torch.cat([truth[:, : window - 1], state], 1)
    law = model.distribution(before.unfold(1, window, 1).movedim(-1, -2))
    expected = law.log_prob(truth[:, window - 1 :].diff(dim=1))
    error = float((log_prob - expected).norm() / expected.norm())
    if not error <= LARGEST_ERROR:
        return f"log p is {error:.1e} from float64 at the same states, and {LARGEST_ERROR:.1e} is allowed"
    moved = float((state[:, 1:] - (state + step)[:, :-1]).norm() / step.norm())
    if not moved <= 1e-3:
        return f"states are {moved:.1e} of a step from where steps lead"
    residual = (step.norm(dim=-1).log() - law.mu) / law.log_sigma.exp()
    along = torch.cosine_similarity(step, law.direction, dim=-1) - vmf_mean_resultant(law.kappa, model.dim)
    moments = {
        "mean of standardised log-lengths": residual,
        "variance of standardised log-lengths, less 1,": residual.square() - 1,
        "mean cosine, less A(κ),": along,
    }
    for name, values in moments.items():
        off = float(values.mean().abs() * math.sqrt(values.numel()) / values.std())
        if not off <= ERRORS_ALLOWED:
            return f"the {name} is {off:.1f} standard errors from 0"
    return None


def langevin_inputs(shape: Shape, device: str) -> tuple[Tensor, ...]:
    """Inputs of `langevin` at this shape, noise given: [1 steps rows d]."""
    sizes = {"m": 1, "b": shape.rows, "j": shape.steps, "d": shape.dim, "s": shape.dim, "h": shape.hidden}
    made = langevin_op.make_inputs(**sizes, layers=shape.layers, generator=torch.Generator().manual_seed(0))
    return tuple(tensor.to(device) for tensor in made.values())


def langevin_by_steps(step: Callable[..., Any], z: Tensor, noise: Tensor, *rest: Tensor) -> Tensor:
    """The last states by a `step` that takes one entry of noise, level and moves."""
    context, level, moves, *weights = rest
    for j in range(level.shape[1]):
        one = slice(j, j + 1)
        z = step(z, noise[:, one], context, level[:, one], moves[:, one], *weights)[0]
    return z


def langevin_ways(inputs: tuple[Tensor, ...]) -> dict[str, Way]:
    """Every way of the same Langevin steps, to the last states, and the fused one with the noise made inside."""
    z, noise, *rest = inputs
    by_steps = partial(langevin_by_steps, torch.compile(langevin_op.reference))
    ways: dict[str, Way] = {
        "eager": lambda: langevin_op.reference(*inputs)[0],
        "compile": lambda: by_steps(*inputs),
    }
    if z.device.type == "cuda":
        held = z.clone(), noise.clone()
        replayed = captured(lambda *states: by_steps(*states, *rest), held)
        ways["compile+graph"] = lambda: replayed(z, noise)
    if langevin_op.pick(*inputs, operands="bfloat16") == "triton":
        fused = partial(unwidened, partial(langevin_op.implementation("triton"), operands="bfloat16"), z.device.type)
        ways["fused"] = lambda: fused(*inputs)[0]
        seed = torch.zeros(1, dtype=torch.int64, device=z.device)
        ways["fused, noise made"] = lambda: fused(z, seed, *rest)[0]
    return ways


def unwidened(run: Callable[..., Any], device: str, *inputs: Tensor) -> Any:
    """`run` with its own operands, whatever autocast says."""
    with torch.autocast(device, enabled=False):
        return run(*inputs)


def far(inputs: tuple[Tensor, ...], ways: dict[str, Way]) -> str | None:
    """Which Langevin steps miss float64, in words, or None."""
    device = inputs[0].device.type
    z, noise, *rest = (tensor.double() for tensor in inputs)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    for name, way in ways.items():
        drawn = seed if name.endswith("noise made") else noise
        expected = unwidened(langevin_op.reference, device, z, drawn, *rest)[0]
        error = float((way().double() - expected).norm() / expected.norm())
        if not error <= LARGEST_ERROR:
            return f"{name} is {error:.1e} from float64, and {LARGEST_ERROR:.1e} is allowed"
    return None


@torch.no_grad()
def wrong(shape: Shape, device: str) -> str | None:
    """Why this shape must not be timed, or None: every way at small size."""
    small = replace(shape, rows=CHECKED_ROWS, steps=CHECKED_STEPS)
    model, frames = make(small, device)
    outs = {name: way() for name, way in sampled_ways(small, model, frames).items()}
    with torch.autocast(device, enabled=False):
        exact = model.double()
        found = {name: unlawful(exact, shape.window, frames, out) for name, out in outs.items()}
    if why := next((f"{name}: {said}" for name, said in found.items() if said), None):
        return why
    inputs = langevin_inputs(small, device)
    return far(inputs, langevin_ways(inputs))


def by_the_clock(run: Way) -> float:
    """Milliseconds of one run on the CPU."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def in_turn(ways: dict[str, Way], clock: Callable[[Way], float]) -> dict[str, list[float]]:
    """p20, p50 and p80 of each way, in ms, after a warm-up; the ways take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for at in range(3 + ROUNDS):
        for name, run in ways.items():
            took = clock(run)
            if at >= 3:
                times[name].append(took)
    return {name: torch.tensor(each).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist() for name, each in times.items()}


def rows_of(op: str, shape: Shape, found: dict[str, list[float]], about: dict[str, Any]) -> list[dict[str, Any]]:
    """One result for each way; its ratio is to eager."""
    base, case = found["eager"][1], asdict(shape)
    return [
        {
            "op": op,
            "implementation": name,
            "case": case,
            "p20_ms": p20,
            "p50_ms": p50,
            "p80_ms": p80,
            "ratio": base / p50,
        }
        | about
        for name, (p20, p50, p80) in found.items()
    ]


def measure(shape: Shape) -> list[dict[str, Any]]:
    """Times both ops on the CUDA device."""
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    torch.compiler.reset()
    ways = {
        "residual_rollout_sample": sampled_ways(shape, *make(shape, "cuda")),
        "langevin": langevin_ways(langevin_inputs(shape, "cuda")),
    }
    return [row for op, each in ways.items() for row in rows_of(op, shape, in_turn(each, timed), about)]


@torch.no_grad()
def on_cpu(shape: Shape = ON_CPU) -> str:
    """What a CPU can say: the op's plain PyTorch against the loop, where both have the law of the model."""
    model, frames = make(shape, "cpu")
    ways = {name: way for name, way in sampled_ways(shape, model, frames).items() if name in ("eager", "fused")}
    outs = {name: way() for name, way in ways.items()}
    exact = make(shape, "cpu")[0].double()
    if why := next((said for out in outs.values() if (said := unlawful(exact, shape.window, frames, out))), None):
        return f"CPU: not timed: {why}"
    eager, fused = (in_turn(ways, by_the_clock)[name][1] for name in ("eager", "fused"))
    said = f"the op's plain PyTorch {fused:.1f} ms, the eager loop {eager:.1f} ms, ratio {eager / fused:.2f}"
    return f"CPU, float32, threads: {torch.get_num_threads()}, sampled rollout, {shape}: {said}"


@torch.no_grad()
def main(arguments: list[str]) -> int:
    """Checks, times and appends shape by shape; 1 where a shape was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in {"dim": DIMS, "hidden": HIDDEN, "steps": STEPS}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA device here: no kernel is measured, and no row is written.")
        print(on_cpu())
        return 0
    processors, failed = torch.cuda.get_device_properties(0).multi_processor_count, 0
    RESULTS.parent.mkdir(exist_ok=True)
    for dim, hidden, steps in itertools.product(options.dim, options.hidden, options.steps):
        for count in (wave(processors, dim), ROWS):
            shape = Shape(dim, hidden, steps, count)
            with torch.autocast(
                "cuda", torch.bfloat16, cache_enabled=False
            ):  # a graph may not keep casts made outside it
                why = wrong(shape, "cuda")
                found = [] if why else measure(shape)
            if why:
                print(f"{shape} is not timed: {why}", file=sys.stderr)
                failed = 1
            for result in found:
                print(json.dumps(result))
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result, sort_keys=True) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
