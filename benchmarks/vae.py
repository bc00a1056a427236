"""Training and coding speed of the VAE, and the memory that it takes: `python benchmarks/vae.py [--size tiny] [--rounds 5]`.

Steps per second of `arlat vae train`'s loop (crops, guards, schedules, average, log included; looks and states not) against a
bare hand-written loop of the same model and losses on the same crops, in turn in one process; seconds of audio per second that
`encode` and `decode` take, and their peak memory, whole and streamed, against the length. Memory is how far
the peak rises above that of 2 s of audio, in a process of its own. Rows are appended to benchmarks/results/vae.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from arlat_core.testing.codec import example_audio
from arlat_vae import train
from arlat_vae.crops import Clips, counter
from arlat_vae.crops import batch as crops
from arlat_vae.model import VAE, build, sized
from arlat_vae.train_config import Config

RESULTS = Path(__file__).parent / "results" / "vae.jsonl"
STEPS = 5  # in a round
PIECE = 12  # frames of a streamed step: about a second


def bare_loop(model: VAE, clips: Clips, config: Config, count: int) -> None:
    """What a researcher would write: crops, losses, AdamW, an average of the weights."""
    optimiser = torch.optim.AdamW(model.parameters(), config.train.lr, config.train.betas)
    average = [value.detach().clone() for value in model.parameters()]
    losses = train.reconstruction_losses(model.config.sample_rate, config.device)
    samples = config.data.crop.frames * model.config.hop
    for step in range(count):
        draws = [counter(0, step, "crops", row) for row in range(config.train.batch)]
        audio = crops(clips, samples, config.data.crop, draws).to(config.device)
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            law = model.encode(audio)
            decoded = model.decode(law.draw(torch.randn_like(law.mean))).float()
        loss = torch.stack([part(audio, decoded) for part in losses.values()]).sum() + config.loss.kl * law.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
        optimiser.step()
        with torch.no_grad():
            for kept, value in zip(average, model.parameters(), strict=True):
                kept.lerp_(value, 0.001)


def in_turn(rivals: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each rival in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
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


def training(config: Config, clips: Clips, rounds: int) -> list[dict[str, Any]]:
    """Both loops, `STEPS` steps at a time, the measured one being the command's own."""
    model = build(sized(config.size), torch.Generator().manual_seed(0)).to(config.device)
    marks: list[float] = []
    seconds: dict[str, list[float]] = {"arlat": [], "bare loop": []}

    def turn(done: int, planned: int) -> None:
        """Between two rounds of the command's loop the bare one has its turn."""
        if done % STEPS:
            return
        marks.append(time.perf_counter())
        if len(marks) > 1:
            seconds["arlat"].append(marks[-1] - marks[-2])
            start = time.perf_counter()
            bare_loop(model, clips, config, STEPS)
            seconds["bare loop"].append(time.perf_counter() - start)
        else:
            bare_loop(model, clips, config, STEPS)  # does not count
        marks[-1] = time.perf_counter()

    train.train(config, clips, clips, turn)
    # the last round holds the last look and the last state
    kept = {name: times[:-1] for name, times in seconds.items()}
    case = f"{config.size} batch={config.train.batch} frames={config.data.crop.frames} {config.precision}"
    return rows("vae.train", case, {name: times[:rounds] for name, times in kept.items()}, "bare loop", STEPS)


@torch.no_grad()
def coders(model: VAE, audio: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Ways through the model for audio [1 n]; those that stream keep nothing of what has passed."""
    z = model.encode(audio).mean
    piece = PIECE * model.config.hop

    def encode_streamed() -> None:
        state = model.encoder.initial(1)
        for part in audio.split(piece, 1):
            _, state = model.encode_step(part, state)

    def decode_streamed() -> None:
        state = model.decoder.initial(1)
        for part in z.split(PIECE, 1):
            _, state = model.decode_step(part, state)

    return {
        "encode": lambda: model.encode(audio),
        "encode streamed": encode_streamed,
        "decode": lambda: model.decode(z),
        "decode streamed": decode_streamed,
    }


def peak_bytes() -> int:
    """The most memory that this process has held since it began; getrusage's figure is its parent's where that was more."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_memory(size: str, device: str, name: str, seconds: float, answer: Connection) -> None:
    """Sends how far the peak rises while `name` runs on that many seconds of audio, which are there before."""
    model = build(sized(size), torch.Generator().manual_seed(0)).to(device).eval()
    rate, hop = model.config.sample_rate, model.config.hop
    with torch.no_grad():
        for run in coders(model, torch.zeros(1, 2 * PIECE * hop, device=device)).values():
            run()  # what is loaded on use
        frames = round(seconds * rate / hop)
        audio = 0.1 * torch.randn(1, frames * hop, device=device)
        z = torch.randn(1, frames, model.config.bottleneck.dim, device=device)
        state: Any = model.encoder.initial(1) if "encode" in name else model.decoder.initial(1)
        pieces = (
            (audio.split(PIECE * hop, 1) if "encode" in name else z.split(PIECE, 1)) if "streamed" in name else None
        )
        step = model.encode_step if "encode" in name else model.decode_step
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if device.startswith("cuda") else peak_bytes()
        for part in pieces if pieces is not None else [audio if "encode" in name else z]:
            _, state = step(part, state)  # type: ignore[operator]
        after = torch.cuda.max_memory_allocated() if device.startswith("cuda") else peak_bytes()
    answer.send(after - before)


def memory(size: str, device: str, name: str, seconds: float) -> int:
    """`measure_memory` in a fresh process, since a peak never falls."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=measure_memory, args=(size, device, name, seconds, there))
    child.start()
    there.close()
    risen: int = here.recv()
    child.join()
    return risen


def coding(size: str, device: str, lengths: list[float], rounds: int) -> list[dict[str, Any]]:
    """Speed and memory of every way through the model at every length."""
    model = build(sized(size), torch.Generator().manual_seed(0)).to(device).eval()
    found = []
    for length in lengths:
        audio = example_audio(1, round(length * model.config.sample_rate), model.config.sample_rate).to(device)
        with torch.no_grad():
            times = in_turn(coders(model, audio), rounds)
        for kind in ("encode", "decode"):
            pair = {name: values for name, values in times.items() if kind in name}
            found += rows(f"vae.{kind}", f"{size} {length:g} s of audio", pair, kind, length)
    for row, length in zip(found, [length for length in lengths for _ in range(4)], strict=True):
        row["memory_bytes"] = memory(size, device, row["implementation"], length)
    return found


def main() -> None:
    """Times and measures, prints and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", choices=["tiny", "small", "base"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 8.0, 32.0])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    samples = (example_audio(4, 96_000, 24_000) * 32767).to(torch.int16).flatten().numpy()
    clips = Clips(samples, torch.arange(4) * 96_000, torch.full((4,), 96_000))
    with tempfile.TemporaryDirectory() as folder:
        steps = STEPS * (options.rounds + 2)
        values = {
            "data": {"audio_dir": folder},
            "out": folder,
            "size": options.size,
            "device": options.device,
            "precision": options.precision,
            "train": {"steps": steps, "batch": options.batch},
            "save_every": 10 * steps,
            "sample_crops": 0,
        }
        found = training(Config.model_validate(values), clips, options.rounds)
    found += coding(options.size, options.device, options.seconds, options.rounds)
    RESULTS.parent.mkdir(exist_ok=True)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    for row in found:
        row |= {"device": f"{name}, {torch.get_num_threads()} CPU threads", "cores": os.cpu_count()}
        row |= {"torch": torch.__version__, "python": platform.python_version()}
        print(json.dumps(row))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
