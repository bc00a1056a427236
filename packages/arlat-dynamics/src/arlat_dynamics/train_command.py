"""`arlat dynamics train`: a latent store to a dynamics model, or a [grid] of them to one table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse_sweep
from arlat_core.files import atomic_write, safe_name, write_json
from arlat_core.run import keep_settings, manifest, resumed, run_directory, says_how_to_go_on
from pydantic import Field

from arlat_dynamics.noise import NoiseConfig
from arlat_dynamics.rollout_config import RolloutTrainConfig

if TYPE_CHECKING:
    from arlat_core.distributed import Ranks
    from arlat_core.types import Value
    from arlat_data.store import LatentStore
    from rich.console import Console

STEPS = (1, 4, 16, 64)  # columns of the table, as far as rollouts reach


class Data(BaseConfig):
    """What to train on."""

    latents_dir: Path
    """A latent store."""


class Config(RolloutTrainConfig):
    """Settings of `arlat dynamics train`."""

    data: Data
    """What to train on."""
    out: Path
    """Run directory: the same command goes on with a killed training there, and reads a finished one."""
    device: str = "cpu"
    """Where to train; under torchrun each process takes the GPU of its rank."""
    measured_steps: int | None = Field(default=None, gt=0)
    """Steps of the rollouts that the table measures (default: the largest K)."""

    together: int = Field(16, gt=0)
    """[grid]: models at most that are trained in the same launches, where they take the fused route and have one shape."""

    def training(self) -> RolloutTrainConfig:
        """The training alone."""
        return RolloutTrainConfig(**{name: getattr(self, name) for name in RolloutTrainConfig.model_fields})


def train_one(config: Config, store: LatentStore, console: Console, measured: int, here: Ranks) -> dict[str, Value]:
    """Trains the model of OUT/model and writes its figures on held-out rollouts of `measured` steps to OUT/figures.json.

    Of several processes the first alone holds the run directory and writes.
    """
    from arlat_dynamics.rollout_figures import rollout_figures
    from arlat_dynamics.rollout_train import train_rollout

    training = config.training()
    with contextlib.ExitStack() as held:
        with here.first_decides():
            if here.first:
                held.enter_context(opened(config, store))
        status = held.enter_context(console.status("training"))
        model = train_rollout(store, training, config.out, config.device, status.update, console.print)
        if not here.first:
            return {}
        status.update("figures")
        bar = None if config.longest is None else config.longest * float(model.head.scale)
        values = rollout_figures(model, store, config.context, measured, bar, config.seed)
        write_json(config.out / "figures.json", {key: value.model_dump(mode="json") for key, value in values.items()})
    return values


@contextlib.contextmanager
def opened(config: Config, store: LatentStore) -> Iterator[None]:
    """Holds the run directory of a training, with its settings and manifest in it."""
    settings = config.training().model_dump(mode="json") | {"store": store.hash}
    with run_directory(config.out, settings):
        keep_settings(config.out, {"": config})
        about = manifest(config.seed, settings, {"store": store.hash}, config.device)
        write_json(config.out / "manifest.json", about)
        yield


def linear_figures(config: Config, store: LatentStore, measured: int) -> dict[str, Value]:
    """The figures of the linear VAR, whose mean rollouts decay by nature: what a collapse is measured against."""
    from arlat_data.windows import windows

    from arlat_dynamics.models.linear import fit_linear
    from arlat_dynamics.rollout_figures import rollout_figures
    from arlat_dynamics.train import split_speakers

    near = windows(store.load("train"), config.context, 1)
    var = fit_linear(near, *split_speakers(near, config.seed))
    return rollout_figures(var, store, config.context, measured, None, config.seed)


def groups(points: dict[str, Config], dim: int) -> list[list[str]]:
    """The points, of latents of `dim` dimensions, that can be trained in the same launches: two or more, at most `together`."""
    from arlat_dynamics.rollout_together import shared
    from arlat_dynamics.rollout_train import planned_route

    alike: dict[str, list[str]] = {}
    for name, config in points.items():
        alike.setdefault(shared(config), []).append(name)
    found = []
    for names in alike.values():
        first = points[names[0]]
        if len(names) > 1 and planned_route(first.training(), dim, first.device).way == "fused":
            parts = [names[at : at + first.together] for at in range(0, len(names), first.together)]
            found += [part for part in parts if len(part) > 1]
    return found


def train_group(configs: list[Config], store: LatentStore, console: Console) -> None:
    """Trains the models of points that share launches; what is left unfinished is gone on with alone."""
    from arlat_dynamics.rollout_train import planned_route, train_several

    some = configs[0]
    with contextlib.ExitStack() as held:
        for config in configs:
            held.enter_context(opened(config, store))
        console.print(f"{len(configs)} points at once, {planned_route(some.training(), store.spec.dim, some.device)}")
        status = held.enter_context(console.status("training"))
        train_several(store, {config.out: config.training() for config in configs}, some.device, status.update)


def train_grid(
    points: dict[str, Config], store: LatentStore, console: Console, measured: int, here: Ranks
) -> tuple[dict[str, dict[str, Value]], dict[str, str]]:
    """Trains every point under OUT/points, the others going on where one fails; figures and failures by name.

    Of several processes all must fail alike for the others to go on: else they would wait for each other.
    """
    figures: dict[str, dict[str, Value]] = {}
    failed: dict[str, str] = {}
    passed = (UserError, ValueError, RuntimeError) if here.world == 1 else (UserError,)
    points = {
        name: point.model_copy(update={"out": point.out / "points" / safe_name(name)}) for name, point in points.items()
    }
    if here.world == 1:
        for group in groups(points, store.spec.dim):
            try:
                train_group([points[name] for name in group], store, console)
            except passed as error:
                console.print(f"These points are trained one by one: {error}")
    for name, config in points.items():
        console.print(name)
        try:
            figures[name] = train_one(config, store, console, measured, here)
        except passed as error:
            failed[name] = str(error)
            console.print(f"  failed: {error}")
    return figures, failed


def with_baselines(points: dict[str, Config]) -> dict[str, Config]:
    """The points, and before them what each model is before rollout training: trained on one step alone, without noise."""
    before: dict[str, Config] = {}
    for name, config in points.items():
        alone = {"steps": 1, "objective": "mean_nll", "teacher_weight": 0.0, "state_weight": 0.0, "curriculum": 0.0}
        one = config.model_copy(update=alone | {"true_frames": (0.0, 0.0), "noise": NoiseConfig()})
        if all(one != other for other in (before | points).values()):
            before[f"one step (model of {name})" if before else "one step"] = one
    return before | points


def table(figures: dict[str, dict[str, Value]], failed: dict[str, str]) -> str:
    """The figures as a Markdown table, a point a row; intervals are 95 %, over speakers."""
    reached = [s for s in STEPS if any(f"ratio[{s}]" in values for values in figures.values())]
    last = max((s for values in figures.values() for s in steps_of(values)), default=1)
    columns = [f"ratio[{s}]" for s in reached] + [f"cosine[{s}]" for s in reached]
    columns += [f"nll[{last}]", f"energy[{last}]", "teacher.nll[1]", f"clipped[{last}]", "saturated[1]"]
    lines = [
        "Mean rollouts on held-out speakers: ratio of lengths Σ‖Δ̂‖/Σ‖Δ‖ (mean rollouts decay by nature: a collapse is a fall against "
        "`linear VAR`, the best linear model's, and against `one step`, before rollout training), cosine and NLL (nats/frame) at "
        "step s; energy score of sampled rollouts; the NLL at true windows; shortened steps and saturated parameters. "
        "Small print: 95 % intervals over speakers.",
        "",
        "| point | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for name, values in figures.items():
        lines.append(f"| {name} | " + " | ".join(shown(values.get(key)) for key in columns) + " |")
    lines += [f"| {name} | failed: {why} |" + " |" * (len(columns) - 1) for name, why in failed.items()]
    some = next((value for values in figures.values() for value in values.values()), None)
    if some is not None:
        n = some.n
        lines += ["", f"Behind each figure: {n.speakers} speakers, {n.utterances} utterances, {n.frames} starts."]
    return "\n".join(lines) + "\n"


def steps_of(values: dict[str, Value]) -> list[int]:
    """The steps that were measured."""
    return [int(key[6:-1]) for key in values if key.startswith("ratio[")]


def shown(value: Value | None) -> str:
    """A figure and its interval."""
    if value is None or value.value is None:
        return "–"
    span = "" if value.low is None or value.high is None else f" <small>[{value.low:.3g}, {value.high:.3g}]</small>"
    return f"{value.value:.3g}{span}"


def main(arguments: list[str], prog: str) -> int:
    """Trains one model, or all points of a [grid] and writes OUT/table.md and table.json; returns the exit status."""
    described = "Trains a dynamics model on its own rollouts."
    points = resumed(Config, arguments) or parse_sweep(Config, arguments, prog, described)
    from arlat_core.distributed import ranks
    from arlat_data.store import LatentStore
    from rich.console import Console

    some = next(iter(points.values()))
    store = LatentStore.open(some.data.latents_dir)
    for config in points.values():  # nothing starts until every point can be built
        config.model.settings(store.spec.dim, config.context)
    measured = max(config.measured_steps or config.steps for config in points.values())
    failed: dict[str, str] = {}
    with ranks(some.device) as here, says_how_to_go_on(some.out, prog, here.first):
        console = Console(stderr=True, quiet=not here.first)
        if list(points) == [""]:
            figures = {"this model": train_one(some, store, console, measured, here)}
        else:
            if here.first:
                keep_settings(some.out, points)
            figures, failed = train_grid(with_baselines(points), store, console, measured, here)
    if not here.first:
        return 1 if failed else 0
    figures = {"linear VAR": linear_figures(some, store, measured)} | figures
    text = table(figures, failed)
    if list(points) == [""]:
        print(f"{some.out / 'model'}\n\n{text}")
        return 0
    atomic_write(some.out / "table.md", text)
    rows = {
        name: {key: value.model_dump(mode="json") for key, value in found.items()} for name, found in figures.items()
    }
    write_json(some.out / "table.json", {"figures": rows, "failed": failed})
    print(f"{text}\n{some.out / 'table.md'}")
    return 1 if failed else 0
