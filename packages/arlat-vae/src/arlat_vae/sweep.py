"""One training or a sweep of them: each point in its run directory, going on where another fails, and one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from arlat_core.config import UserError, parse_sweep
from arlat_core.distributed import Ranks, ranks
from arlat_core.files import atomic_write, safe_name, write_json
from arlat_core.run import keep_settings, resumed, says_how_to_go_on
from arlat_core.types import Value
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

from arlat_vae import checkpoint
from arlat_vae.inner_train import Config as InnerConfig
from arlat_vae.record import read_rows
from arlat_vae.train_config import Config

PROBED = "probe.json"
LOSSES = ("waveform", "stft", "mel", "mse")  # that held-out rows have with their floors
Judged = tuple[dict[str, Value], list[dict[str, Any]]]  # the probe's figures, and the rows of held-out speakers
C = TypeVar("C", Config, InnerConfig)
One = Callable[[C, Path], Judged]


def run(
    cls: type[C], make: Callable[[Bar, Ranks], One[C]], name: str, arguments: list[str], prog: str, description: str
) -> int:
    """Parses one configuration or a sweep and trains OUT/`name` by what `make` gives; returns the exit status."""
    points = resumed(cls, arguments) or parse_sweep(cls, arguments, prog, description)
    some = next(iter(points.values()))
    with (
        ranks(some.device) as here,
        says_how_to_go_on(some.out, prog, here.first),
        Bar(console=Console(stderr=True, quiet=not here.first)) as bar,
    ):
        one = make(bar, here)
        if list(points) != [""]:
            return train_grid(points, one, bar.console, here)
        done = " is finished already" if checkpoint.exists(some.out / name, name) else ""
        figures, rows = one(some, some.out)
    if not here.first:
        return 0
    first, last = rows[0], rows[-1]
    print(
        f"{some.out / name}{done}: on held-out speakers {summary(first)} at step {first['step']}, {summary(last)} at the end; "
        f"a predictor from scratch finds {shown(figures['probe.information_rate'])} bit/s."
    )
    return 0


def show(bar: Bar, task: TaskID, done: int, planned: int) -> None:
    """Moves one task of a progress bar."""
    bar.update(task, completed=done, total=planned)


def read_judged(out: Path) -> Judged:
    """What a finished run found."""
    known = json.loads((out / PROBED).read_text(encoding="utf-8"))
    rows = [row for row in read_rows(out / "metrics.jsonl") if row["part"] == "held_out"]
    return {name: Value.model_validate(value) for name, value in known.items()}, rows


def train_grid(points: dict[str, C], one: One[C], console: Console, here: Ranks) -> int:
    """Trains every point under OUT/points, the others going on where one fails, and writes OUT/table.md and table.json."""
    found: dict[str, tuple[dict[str, Value], dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    out = next(iter(points.values())).out
    if here.first:
        keep_settings(out, points)
    for name, config in points.items():
        console.print(name)
        try:
            figures, rows = one(config.model_copy(update={"out": out / "points" / safe_name(name)}), out)
            found[name] = figures, rows[-1] if rows else {}
        except (UserError, ValueError, RuntimeError) as error:
            failed[name] = str(error)
            console.print(f"  failed: {error}")
    if not here.first:
        return 1 if failed else 0
    text = table(found, failed)
    atomic_write(out / "table.md", text)
    kept = {
        name: {"probe": {key: value.model_dump(mode="json") for key, value in figures.items()}, "held_out": row}
        for name, (figures, row) in found.items()
    }
    write_json(out / "table.json", {"points": kept, "failed": failed})
    print(f"{text}\n{out / 'table.md'}")
    return 1 if failed else 0


def table(found: Mapping[str, tuple[Mapping[str, Value], Mapping[str, Any]]], failed: Mapping[str, str]) -> str:
    """The points as a Markdown table, a point a row."""
    looked = [name for name in LOSSES if any(f"{name}_floor" in row for _, row in found.values())]
    probed = list(dict.fromkeys(name for figures, _ in found.values() for name in figures))
    columns = [*looked, "KL nats/frame", "active units", *probed]
    lines = [
        "On held-out speakers: losses of crops decoded from the posterior mean (in brackets the floor, the latents of another crop), and what "
        "a predictor trained from scratch on the frozen latents finds (95 % intervals over speakers, or utterances; the floor knows no "
        "dynamics). `arlat diag battery` on a store of each is the measurement; this is a look.",
        "",
        "| point | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for name, (figures, row) in found.items():
        cells = [f"{row[loss]:.3g} ({row[f'{loss}_floor']:.3g})" for loss in looked]
        cells += [f"{row['kl_nats_per_frame']:.3g}", f"{row['active_units']:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells + [shown(figures[key]) for key in probed]) + " |")
    lines += [f"| {name} | failed: {why} |" + " |" * (len(columns) - 1) for name, why in failed.items()]
    some = next((value for figures, _ in found.values() for value in figures.values()), None)
    if some is not None:
        lines += [
            "",
            f"Behind the probe: {some.n.speakers} speakers, {some.n.utterances} utterances, {some.n.frames} frames.",
        ]
    return "\n".join(lines) + "\n"


def shown(value: Value) -> str:
    """A figure, its interval and its floor."""
    if value.value is None:
        return f"– ({value.status})"
    span = "" if value.low is None or value.high is None else f" <small>[{value.low:.3g}, {value.high:.3g}]</small>"
    return f"{value.value:.3g}{span} ({value.floor:.3g})" if value.floor is not None else f"{value.value:.3g}{span}"


def summary(row: Mapping[str, Any]) -> str:
    """One row's losses and KL in words."""
    known = [name for name in LOSSES if row.get(f"{name}_floor") is not None]
    words = [f"{name} {row[name]:.3f} (floor {row[f'{name}_floor']:.3f})" for name in known]
    return ", ".join([*words, f"KL {row['kl_nats_per_frame']:.1f} nats/frame, {row['active_units']:.0f} active units"])
