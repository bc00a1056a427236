"""`arlat vae train`: a folder of speech to a VAE, RUN/vae, which `vae=RUN/vae` uses as a codec; a latent store to one of latents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arlat_core.config import read_preset, split_arguments
from arlat_core.distributed import Ranks
from arlat_core.files import write_json
from arlat_core.run import keep_settings, kept_settings, manifest, run_directory
from arlat_data.corpus import Corpus, Utterance, scan
from arlat_data.splits import SPLITS
from rich.progress import Progress as Bar
from torch import Tensor

from arlat_vae import checkpoint, inner_command
from arlat_vae.crops import Clips, prepare
from arlat_vae.inner_train import Config as InnerConfig
from arlat_vae.model import VAE, sized
from arlat_vae.probe import Sequences, probe
from arlat_vae.sweep import PROBED, Judged, read_judged, run, show
from arlat_vae.train import train
from arlat_vae.train_config import Config

STORE_FLAG = re.compile(r"--data\.latents[_-]dir(=|$)")
BLOCK_SECONDS = 20.0  # of audio that are encoded at once, so that long clips need no more memory


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
        """The clips of either split, from below `folder` where they have been read already."""
        parts: dict[str, Clips] = {}
        sample_rate = sized(config.size).sample_rate
        folder = folder / f"{self.corpus(config).hash}-{sample_rate}"
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


def train_one(speech: Speech, here: Ranks, config: Config, shared: Path) -> Judged:
    """Trains the VAE of OUT/vae and judges its latents in OUT/probe.json; the samples that are read lie under `shared`.

    Of several processes the first alone holds the run directory, decodes the speech, judges and writes; the others return nothing.
    """
    folder = config.out / "vae"
    with ExitStack() as held:
        with here.first_decides():
            if here.first:
                held.enter_context(opened(speech, config, shared))
        if not checkpoint.exists(folder):
            parts = speech.read(config, shared / "audio")
            task = speech.bar.add_task("training", total=config.train.steps)
            model = train(config, parts["train"], parts["eval"], partial(show, speech.bar, task), here).average
            speech.bar.update(task, description="probing")
            if here.first:
                judge(model, parts, speech.corpus(config), config)
                checkpoint.save(model, folder, checkpoint.Training(beta=config.loss.kl, ar_loss=config.ar.label()))
            speech.bar.remove_task(task)
    return read_judged(config.out) if here.first else ({}, [])


@contextmanager
def opened(speech: Speech, config: Config, shared: Path) -> Iterator[None]:
    """Holds the run directory of a training, with its settings, its manifest and the decoded speech in it."""
    corpus = speech.corpus(config)
    settings = config.model_dump(mode="json", exclude={"out": True, "data": {"audio_dir"}}) | {"corpus": corpus.hash}
    with run_directory(config.out, settings):
        if not checkpoint.exists(config.out / "vae"):
            keep_settings(config.out, {"": config})
            about = manifest(config.seed, settings, {"corpus": corpus.hash}, config.device)
            write_json(config.out / "manifest.json", about)
            speech.read(config, shared / "audio")
        yield


def judge(model: VAE, parts: dict[str, Clips], corpus: Corpus, config: Config) -> None:
    """Writes what a predictor from scratch finds in the latents to OUT/probe.json."""
    latents = [sequences(model, parts[split], of_split(corpus, split), config.probe_utterances) for split in SPLITS]
    figures = probe(latents[0], latents[1], model.config.frame_rate, config.probe, config.seed)
    write_json(config.out / PROBED, {name: value.model_dump(mode="json") for name, value in figures.items()})


def on_latents(arguments: list[str]) -> bool:
    """Whether the arguments, a preset among them, or the run that they resume, name a latent store (data.latents_dir)."""
    if arguments[:1] == ["--resume"] and len(arguments) == 2:
        return any("latents_dir" in settings["data"] for settings in kept_settings(Path(arguments[-1])).values())
    presets, flags = split_arguments(arguments, Config.model_fields)
    data: list[dict[str, Any]] = [read_preset(path)[0].get("data", {}) for path in presets]
    return any("latents_dir" in table for table in data) or any(STORE_FLAG.match(flag) for flag in flags)


def main(arguments: list[str], prog: str) -> int:
    """Trains one VAE, or all points of a [grid], and says what came of it; returns the exit status."""
    if on_latents(arguments):
        make = inner_command.trainer
        return run(InnerConfig, make, "inner", arguments, prog, "Trains a VAE of the latents of a store.")
    return run(
        Config,
        trainer,
        "vae",
        arguments,
        prog,
        "Trains a VAE on a folder of speech, or with --data.latents-dir STORE on the latents of a store.",
    )


def trainer(bar: Bar, here: Ranks) -> partial[Judged]:
    """`train_one` for every point of a sweep, which share the speech."""
    return partial(train_one, Speech(bar), here)
