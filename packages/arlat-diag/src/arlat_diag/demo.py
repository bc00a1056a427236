"""The whole line in one command: speech to latents of several representations, to the battery, to a report.

`arlat demo [--audio DIR] [--out RUN] [--codec NAME[=FOLDER] …]` only calls what the separate commands call. Every step
that is finished stays on disk, so that the same command goes on after Ctrl-C or a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.files import safe_name
from arlat_core.run import run_directory
from pydantic import Field

from arlat_diag.demo_stores import Source, make_sources
from arlat_diag.results import AudioExample, Results, merge_results, read_results, write_results

if TYPE_CHECKING:
    from arlat_data.store import LatentStore
    from rich.console import Console

MEASURED = "p1,p4,r1,r3"  # P0 takes its own time: `arlat diag battery … --only p0`
STAND_IN = (
    "The audio is a synthetic stand-in: voices of the synthesiser espeak-ng, not recorded speech. Its figures show that the "
    "battery runs, and say nothing about real speech. Give --audio DIR for that."
)
QUICK = "This is a quick run: two horizons, short training, one short calibration. Its figures are rough."


class Config(BaseConfig):
    """Settings of `arlat demo`."""

    audio: Path | None = None
    """Folder of speech (default: synthetic voices, made on the spot)."""
    out: Path = Path("demo")
    """The run directory. The same command goes on with it after a kill."""
    codec: tuple[str, ...] = ()
    """Further codecs, NAME[=FOLDER], beside a trained VAE, log-mel (stacked and pooled), framed PCA and a linear readout."""
    seed: int = Field(0, ge=0)
    """Seed of voices, splits, training and draws."""
    device: str = "cpu"
    """Where codecs and models run: cpu, cuda, cuda:1 …"""
    pca_dim: int = Field(64, gt=0)
    """Dimension of the framed PCA."""
    readout_dim: int = Field(32, gt=0)
    """Dimension of the linear readout of the stacked log-mel."""
    max_speakers: int | None = Field(None, gt=1)
    """Use so many speakers only."""
    quick: bool = False
    """Small models, few horizons, one calibration process: minutes become seconds, figures become rough."""
    calibrate: bool = True
    """Whether the battery proves itself on processes with known answers."""
    listen: bool = True
    """Whether rollouts are decoded for the report."""


def settings_of(config: Config) -> dict[str, Any]:
    """What decides the figures of a run; another value of these does not resume it."""
    return config.model_dump(mode="json", exclude={"out", "device"})


def find_audio(config: Config) -> Path:
    """The folder of speech: the given one, or synthetic voices."""
    if config.audio is not None:
        if not config.audio.is_dir():
            raise UserError(f"--audio {config.audio} is no folder. Give a folder of speech, or leave it out.")
        return config.audio
    from arlat_data.voices import make_voices

    speakers, utterances = (8, 4) if config.quick else (24, 6)
    return Path(make_voices(config.out / "audio", speakers=speakers, utterances=utterances, seed=config.seed))


def measure(config: Config, source: Source, label: str, console: Console) -> Path:
    """The battery on one store, with a bar over its parts; returns the run directory."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from arlat_diag.battery import Config as BatteryConfig
    from arlat_diag.battery import DataConfig, run_battery

    run = config.out / "runs" / safe_name(label)
    battery = BatteryConfig(
        data=DataConfig(latents_dir=source.store),
        out=run,
        name=label,
        only=MEASURED,
        seed=config.seed,
        device=config.device,
        **battery_settings(config),
    )
    # P4 and R1 tell three each, R3 one, and so do the four starts.
    parts = len(battery.p1.horizons) + len(battery.p1.lags) + 11
    columns = (TextColumn("  {task.description:<30}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=parts)
        run_battery(battery, lambda text: bar.update(task, advance=1, description=f"{label[:20]} {text}"))
    return run


def battery_settings(config: Config) -> dict[str, Any]:
    """The battery's settings: lighter than those of `arlat diag battery` on real speech, more so
    for the stand-in voices, lightest for --quick."""
    from arlat_dynamics.train import TrainConfig

    from arlat_diag.diagnostics import p1, r1

    inputs = 1300  # widest VAR: 2 frames of the 640-d stacked log-mel, 8 frames of whatever has up to 162 dimensions
    if config.quick:
        small = p1.Config(horizons=(1, 8), lags=(8,), components=4, var_inputs=inputs, train=TrainConfig(max_steps=60))
        return {"p1": small, "r1": r1.Config(starts_per_utterance=2, manifold_starts=64)}
    if config.audio is None:
        light = p1.Config(
            lags=(2,), components=4, var_inputs=inputs, median_frames=500, train=TrainConfig(max_steps=80)
        )
        return {"p1": light, "r1": r1.Config(starts_per_utterance=2)}
    return {"p1": p1.Config(lags=(2,), var_inputs=inputs, train=TrainConfig(max_steps=300))}


def prove(config: Config, console: Console) -> None:
    """Makes the calibration runs of the report: small synthetic stores whose answers are known."""
    from arlat_dynamics.train import TrainConfig

    from arlat_diag.calibration import Config as CalibrationConfig
    from arlat_diag.calibration import calibrate
    from arlat_diag.diagnostics.p1 import Config as P1Config

    folder = config.out / "calibration"
    processes, utterances = (("white",), 64) if config.quick else (("white", "ar1"), 128)
    with console.status("  calibration") as status:
        calibrate(
            CalibrationConfig(
                out=folder,
                dims=(8,),
                processes=processes,
                utterances=utterances,
                frames=200,
                seed=config.seed,
                p1=P1Config(horizons=(1, 8), lags=(2,), train=TrainConfig(max_steps=100)),
                only=MEASURED,
            ),
            lambda text: status.update(f"  calibration: {text}"),
        )


def decode(config: Config, source: Source, label: str, run: Path) -> tuple[list[AudioExample], list[str]]:
    """Rollouts of one representation as audio under RUN/audio_examples; a codec that cannot decode is named in a note."""
    from arlat_data.codecs import build_codec
    from arlat_data.store import LatentStore
    from arlat_dynamics import checkpoint
    from arlat_dynamics.models.mdn import ResidualMixture

    from arlat_diag.audio import audio_examples

    if not checkpoint.exists(run / "models" / "h1"):
        return [], [f"No audio of {label}: P1 was not run, so there is no one-step model."]
    store = LatentStore.open(source.store)
    model = checkpoint.load(run / "models" / "h1", store.spec, ResidualMixture).to(config.device)
    folder = config.out / "audio_examples" / safe_name(label)
    codec = build_codec(source.codec, config.device)
    entries, notes = audio_examples(store, codec, model, folder, count=1, seed=config.seed, device=config.device)
    examples = [AudioExample(label=row["label"], path=f"audio_examples/{row['path']}") for row in entries]
    return examples, notes


def label_of(store: LatentStore, taken: Sequence[str]) -> str:
    """A representation's name: its codec's, with the fingerprint where that is taken."""
    name = store.spec.codec
    return f"{name} ({store.spec.fingerprint[:6]})" if name in taken else name


def collect(
    config: Config, runs: dict[str, Path], sources: dict[str, Source], missing: list[str], console: Console
) -> Results:
    """The results of all representations, with audio examples, what is missing and what must be known of the material."""
    results = merge_results([read_results(run) for run in runs.values()])
    described = dict(results.representations)
    for label, source in sources.items() if config.listen else ():
        with console.status(f"  decoding {label}"):
            examples, notes = decode(config, source, label, runs[label])
        about = described[label]
        described[label] = about.model_copy(update={"audio": examples, "notes": [*about.notes, *notes]})
    notes = [*([STAND_IN] if config.audio is None else []), *([QUICK] if config.quick else []), *missing]
    return results.model_copy(update={"representations": described, "notes": notes})


def show(results: Results, config: Config) -> None:
    """Prints the headline figures and where to look."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from arlat_diag.tables import cell

    table = Table(title="Held-out speakers: value and 95 % interval")
    table.add_column("representation", overflow="fold")
    table.add_column("D, Hz", justify="right")
    keys = {
        "bit/s": "p1.h1.information_rate",
        "ΔNLL_B5": "p1.h1.dnll_b5",
        "cosine": "p1.h1.cosine",
        "horizon": "r1.horizon.info_curve",
    }
    for head in keys:
        table.add_column(head, justify="right", no_wrap=True)
    for label, values in results.results.items():
        spec = results.representations[label].spec
        found = [cell(values.get(key), floor=True) for key in keys.values()]
        texts = [Text("\n".join(part for part in (c.text, c.small, c.floor) if part)) for c in found]
        table.add_row(Text(label), f"{spec.dim}\n{spec.frame_rate:g}", *texts)
    console = Console()
    console.print(table)
    for note in results.notes:
        console.print(Text(note, style="yellow"))
    for name in ("report.html", "report.md", "results.json"):
        print(config.out / name)


def demo(config: Config) -> Results:
    """Runs the whole line into `config.out` and returns its results."""
    from arlat_data.encode import codec_of
    from arlat_data.store import LatentStore
    from rich.console import Console

    from arlat_diag.report import write_report

    if repeated := sorted({text for text in config.codec if config.codec.count(text) > 1}):
        raise UserError(f"--codec names {', '.join(repeated)} more than once. Name each codec once.")
    for text in config.codec:
        codec_of(text, config.device)  # a codec that cannot be built is said before an hour's work, not after
    console = Console(stderr=True)
    with run_directory(config.out, settings_of(config)):
        console.print("[b]1/5[/b] speech")
        audio = find_audio(config)
        console.print("[b]2/5[/b] latents")
        sources: dict[str, Source] = {}
        found, missing = make_sources(config, audio, console)
        for source in found:
            sources[label_of(LatentStore.open(source.store), list(sources))] = source
        console.print("[b]3/5[/b] battery")
        runs = {label: measure(config, source, label, console) for label, source in sources.items()}
        console.print("[b]4/5[/b] proof of the battery")
        if config.calibrate:
            prove(config, console)
        console.print("[b]5/5[/b] report")
        results = collect(config, runs, sources, missing, console)
        write_results(config.out / "results.json", results)
        write_report([config.out], config.out / "report.html")
    return results


def gather(arguments: Sequence[str], flag: str = "--codec") -> list[str]:
    """Brings all values of a repeated flag together, so that `--codec A --codec B` is `--codec A B`.

    >>> gather(["--codec", "a", "--seed", "1", "--codec=b"])
    ['--seed', '1', '--codec', 'a', 'b']
    """
    rest, values, inside = [], [], False
    for argument in arguments:
        if argument == flag:
            inside = True
        elif argument.startswith(f"{flag}="):
            values.append(argument.removeprefix(f"{flag}="))
            inside = False
        elif inside and not argument.startswith("-"):
            values.append(argument)
        else:
            rest.append(argument)
            inside = False
    return [*rest, *([flag, *values] if values else [])]


def main(arguments: list[str], prog: str) -> int:
    """`arlat demo [--audio DIR] [--out RUN] [--codec NAME[=FOLDER] …]`."""
    config = parse(Config, gather(arguments), prog, "Speech to latents, to the battery, to a report, in one command.")
    show(demo(config), config)
    return 0
