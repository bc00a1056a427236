"""`arlat vae train`: a folder of speech to a VAE, RUN/vae, which `vae=RUN/vae` uses as a codec, or a [grid] of them to one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arlat_core.config import UserError, parse_sweep
from arlat_core.files import atomic_write, safe_name, write_json
from arlat_core.run import manifest, resumed, run_directory
from arlat_core.types import Value
from arlat_data.corpus import Corpus, Utterance, scan
from arlat_data.splits import SPLITS
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID
from torch import Tensor

from arlat_vae import checkpoint
from arlat_vae.crops import Clips, prepare
from arlat_vae.model import VAE, sized
from arlat_vae.probe import Sequences, probe
from arlat_vae.train import read_rows, train
from arlat_vae.train_config import Config

BLOCK_SECONDS = 20.0  # of audio that are encoded at once, so that long clips need no more memory
Figures = dict[str, Value]


class Speech:
    """The corpora of a sweep, each scanned, decoded and resampled once for all points that read it."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.corpora: dict[tuple[Path, str | None, int], Corpus] = {}

    def corpus(self, config: Config) -> Corpus:
        """What is in the folder, and its split."""
        key = config.data.audio_dir, config.data.speaker_pattern, config.seed
        if key not in self.corpora:
            self.corpora[key] = scan(*key, progress=True)
        return self.corpora[key]

    def read(self, config: Config, folder: Path) -> dict[str, Clips]:
        """The clips of either split, from `folder` where they have been read already."""
        parts: dict[str, Clips] = {}
        sample_rate = sized(config.size).sample_rate
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            task = self.bar.add_task(f"reading {split}", total=None)
            utterances = of_split(self.corpus(config), split)
            parts[split] = prepare(utterances, sample_rate, folder / split, partial(show, self.bar, task))
            self.bar.remove_task(task)
        return parts


def of_split(corpus: Corpus, split: str) -> list[Utterance]:
    """The utterances of a split, in the order in which `Speech.read` lays them down."""
    return [utterance for utterance in corpus.utterances if utterance.split == split]


def show(bar: Bar, task: TaskID, done: int, planned: int) -> None:
    """Moves one task of a progress bar."""
    bar.update(task, completed=done, total=planned)


@torch.no_grad()
def encode_whole(model: VAE, audio: Tensor) -> Tensor:
    """Posterior means [t d] of a clip [n], in blocks."""
    device = next(model.parameters()).device
    padded = torch.nn.functional.pad(audio, (0, -len(audio) % model.config.hop))[None].to(device)
    state, means = model.encoder.initial(1), []
    for block in torch.split(padded, round(BLOCK_SECONDS * model.config.sample_rate), 1):
        law, state = model.encode_step(block, state)
        means.append(law.mean[0].cpu())
    return torch.cat(means)


def sequences(model: VAE, clips: Clips, utterances: list[Utterance], at_most: int) -> Sequences:
    """The latents of evenly spaced utterances."""
    chosen = torch.linspace(0, len(utterances) - 1, min(at_most, len(utterances))).round().long().tolist()
    whole = [clips.read(index, 0, int(clips.length[index])) for index in chosen]
    return Sequences([encode_whole(model, audio) for audio in whole], [utterances[index].speaker for index in chosen])


def train_one(config: Config, speech: Speech, prepared: Path) -> tuple[Figures, list[dict[str, Any]]]:
    """Trains the VAE of OUT/vae and judges its latents in OUT/probe.json; figures, and the rows of held-out speakers."""
    corpus = speech.corpus(config)
    settings = config.model_dump(mode="json", exclude={"out": True, "data": {"audio_dir"}}) | {"corpus": corpus.hash}
    folder, judged = config.out / "vae", config.out / "probe.json"
    with run_directory(config.out, settings):
        if not checkpoint.exists(folder):
            write_json(config.out / "resolved.json", config.model_dump(mode="json"))
            write_json(
                config.out / "manifest.json", manifest(config.seed, settings, {"corpus": corpus.hash}, config.device)
            )
            parts = speech.read(config, prepared)
            task = speech.bar.add_task("training", total=config.train.steps)
            model = train(config, parts["train"], parts["eval"], partial(show, speech.bar, task)).average
            speech.bar.update(task, description="probing")
            latents = [
                sequences(model, parts[split], of_split(corpus, split), config.probe_utterances) for split in SPLITS
            ]
            figures = probe(latents[0], latents[1], model.config.frame_rate, config.probe, config.seed)
            speech.bar.remove_task(task)
            write_json(judged, {name: value.model_dump(mode="json") for name, value in figures.items()})
            checkpoint.save(model, folder, checkpoint.Training(beta=config.loss.kl, ar_loss=config.ar.label()))
    known = json.loads(judged.read_text(encoding="utf-8"))
    rows = [row for row in read_rows(config.out / "metrics.jsonl") if row["part"] == "held_out"]
    return {name: Value.model_validate(value) for name, value in known.items()}, rows


def train_grid(points: dict[str, Config], speech: Speech) -> int:
    """Trains every point under OUT/points, the others going on where one fails, and writes OUT/table.md and table.json."""
    found: dict[str, tuple[Figures, dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    out = next(iter(points.values())).out
    for name, config in points.items():
        speech.bar.console.print(name)
        try:
            prepared = out / "audio" / f"{speech.corpus(config).hash}-{sized(config.size).sample_rate}"
            one = config.model_copy(update={"out": out / "points" / safe_name(name)})
            figures, rows = train_one(one, speech, prepared)
            found[name] = figures, rows[-1]
        except (UserError, ValueError, RuntimeError) as error:
            failed[name] = str(error)
            speech.bar.console.print(f"  failed: {error}")
    text = table(found, failed)
    atomic_write(out / "table.md", text)
    kept = {
        name: {"probe": {key: value.model_dump(mode="json") for key, value in figures.items()}, "held_out": row}
        for name, (figures, row) in found.items()
    }
    write_json(out / "table.json", {"points": kept, "failed": failed})
    print(f"{text}\n{out / 'table.md'}")
    return 1 if failed else 0


def table(found: Mapping[str, tuple[Figures, Mapping[str, Any]]], failed: Mapping[str, str]) -> str:
    """The points as a Markdown table, a point a row."""
    looked = [name for name in ("waveform", "stft", "mel") if any(f"{name}_floor" in row for _, row in found.values())]
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
    known = [name for name in ("waveform", "stft", "mel") if row.get(f"{name}_floor") is not None]
    words = [f"{name} {row[name]:.3f} (floor {row[f'{name}_floor']:.3f})" for name in known]
    return ", ".join([*words, f"KL {row['kl_nats_per_frame']:.1f} nats/frame, {row['active_units']:.0f} active units"])


def main(arguments: list[str], prog: str) -> int:
    """Trains one VAE, or all points of a [grid], and says what came of it; returns the exit status."""
    points = resumed(arguments, Config) or parse_sweep(Config, arguments, prog, "Trains a VAE on a folder of speech.")
    with Bar(console=Console(stderr=True)) as bar:
        speech = Speech(bar)
        if list(points) != [""]:
            return train_grid(points, speech)
        config = points[""]
        done = " is finished already" if checkpoint.exists(config.out / "vae") else ""
        figures, rows = train_one(config, speech, config.out)
    first, last = rows[0], rows[-1]
    print(
        f"{config.out / 'vae'}{done}: on held-out speakers {summary(first)} at step {first['step']}, {summary(last)} at the end; "
        f"a predictor from scratch finds {shown(figures['probe.information_rate'])} bit/s."
    )
    return 0
