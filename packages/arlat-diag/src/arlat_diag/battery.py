"""Q1: one command that runs every diagnostic on one latent store and writes `results.json`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.files import atomic_write
from arlat_core.registry import load, names
from arlat_core.run import manifest, run_directory
from arlat_core.types import Count, Result
from arlat_data.store import LatentStore
from pydantic import Field

from arlat_diag.diagnostics.l2 import Config as L2Config
from arlat_diag.diagnostics.p0 import Config as P0Config
from arlat_diag.diagnostics.p1 import Config as P1Config
from arlat_diag.diagnostics.p2 import Config as P2Config
from arlat_diag.diagnostics.p4 import Config as P4Config
from arlat_diag.diagnostics.r1 import Config as R1Config
from arlat_diag.diagnostics.r2 import Config as R2Config
from arlat_diag.diagnostics.r3 import Config as R3Config
from arlat_diag.diagnostics.r4 import Config as R4Config
from arlat_diag.results import Representation, Results, write_results


class DataConfig(BaseConfig):
    """What the battery reads."""

    latents_dir: Path
    """A latent store, as `arlat data extract` or `arlat data synth` writes it."""
    audio_dir: Path | None = None
    """The audio that the store was made from; L2 is run where it is given."""
    codec: str = ""
    """The codec text that decodes the store, for L2 (default: the one that the store names)."""


class Config(BaseConfig):
    """Settings of `arlat diag battery`."""

    data: DataConfig
    """What is measured."""
    out: Path
    """The run directory."""
    only: str = ""
    """Diagnostics to run, separated by commas (default: all; L2 only with data.audio_dir)."""
    name: str = ""
    """The representation's name in reports (default: the store's codec)."""
    device: str = "cpu"
    """Where models are trained: cpu, cuda, cuda:1 …"""
    seed: int = Field(0, ge=0)
    """Seed of every diagnostic that does not set its own."""
    l2: L2Config = L2Config()
    """Reconstruction: decoded against original audio."""
    p0: P0Config = P0Config()
    """Clustering of contexts."""
    p1: P1Config = P1Config()
    """Predictability."""
    p2: P2Config = P2Config()
    """Direction and magnitude apart."""
    p4: P4Config = P4Config()
    """Geometry."""
    r1: R1Config = R1Config()
    """Injection diagnostic."""
    r2: R2Config = R2Config()
    """Rollouts of a model that was trained on rollouts."""
    r3: R3Config = R3Config()
    """Ceilings: forecasts without a network."""
    r4: R4Config = R4Config()
    """Anatomy of a rollout."""


def chosen(only: str, audio: bool = False) -> list[str]:
    """The diagnostics that `only` names, in the order in which the battery runs them; all that can be when it is empty.

    L2 needs the original audio: UserError where it is named without.
    """
    known = list(names("diagnostics"))
    wanted = [part.strip() for part in only.split(",") if part.strip()]
    if "l2" in wanted and not audio:
        raise UserError(
            "--only l2 compares decoded with original audio: give data.audio_dir=DIR, the folder of the extraction."
        )
    wanted = wanted or [name for name in known if audio or name != "l2"]
    unknown = [part for part in wanted if part not in known]
    if unknown:
        raise UserError(f"--only names {', '.join(unknown)}, but the diagnostics are {', '.join(known)}.")
    return [name for name in known if name in wanted]


def diagnostic_config(config: Config, name: str) -> BaseConfig:
    """The configuration of one diagnostic, with the battery's seed where it does not set its own."""
    own: Any = getattr(config, name) if name in type(config).model_fields else load("diagnostics", name).Config()
    fields = type(own).model_fields
    update: dict[str, Any] = {"seed": config.seed} if "seed" in fields and own.seed == 0 else {}
    if name == "l2":
        update |= {"audio_dir": config.data.audio_dir, "codec": config.data.codec}
    if "predictor" in fields:
        update["predictor"] = diagnostic_config(config, "p1")
    copied: BaseConfig = own.model_copy(update=update)
    return copied


def run_battery(config: Config, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Runs the diagnostics that are not done yet and returns the path of `results.json`.

    Each finished diagnostic stays in `out`/parts, so that a killed run goes on and a later `--only` adds to it.
    """
    store = LatentStore.open(config.data.latents_dir)
    settings = config.model_dump(mode="json", exclude={"data", "out", "only", "device"}) | {"store": store.hash}
    wanted = chosen(config.only, config.data.audio_dir is not None)
    with run_directory(config.out, settings):
        parts: dict[str, Result] = {}
        for name in names("diagnostics"):
            path = config.out / "parts" / f"{name}.json"
            if path.exists():
                parts[name] = Result.model_validate_json(path.read_text(encoding="utf-8"))
            elif name in wanted:
                progress(name)
                parts[name] = load("diagnostics", name).run(
                    store, diagnostic_config(config, name), config.out, config.device, progress
                )
                atomic_write(path, parts[name].model_dump_json(indent=1) + "\n")
        path = config.out / "results.json"
        write_results(path, collect(config, store, parts, settings))
    return path


def collect(config: Config, store: LatentStore, parts: dict[str, Result], settings: dict[str, Any]) -> Results:
    """Puts the diagnostics' results together under the representation's name."""
    label = config.name or store.spec.codec
    representation = Representation(
        spec=store.spec,
        store_hash=store.hash,
        counts={split: count(store, split) for split in ("train", "eval")},
        skipped=store.skipped,
        worst=[frame for part in parts.values() for frame in part.worst],
        notes=[note for part in parts.values() for note in part.notes],
        settings={name: part.settings for name, part in parts.items()},
        truth=store.truth,
    )
    values = {key: value for part in parts.values() for key, value in part.values.items()}
    return Results(
        results={label: values},
        representations={label: representation},
        provenance=[manifest(config.seed, settings, {label: store.hash}, config.device)],
    )


def count(store: LatentStore, split: str) -> Count:
    """How much a split of a store holds."""
    ids = store.ids(split)
    return Count(
        speakers=len({store.speaker(item) for item in ids}),
        utterances=len(ids),
        frames=sum(store.length(item) for item in ids),
    )


def main(arguments: list[str], prog: str) -> int:
    """`arlat diag battery data.latents_dir=STORE --out RUN [data.audio_dir=DIR] [--only l2,p0,p1,p2,p4,r1,r2,r3,r4]`."""
    from rich.console import Console

    config = parse(Config, arguments, prog, "Measures a latent store and writes results.json.")
    console = Console(stderr=True)
    with console.status("battery") as status:
        path = run_battery(config, lambda text: status.update(text))
    print(f"{path}\nnext: arlat diag report {config.out} --out {config.out / 'report.html'}")
    return 0
