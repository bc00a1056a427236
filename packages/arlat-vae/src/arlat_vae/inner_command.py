"""`arlat vae train data.latents_dir=STORE`: a latent store to RUN/inner, which `inner=RUN/inner|CODEC` uses, and to RUN/latents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from arlat_core.config import UserError
from arlat_core.distributed import Ranks
from arlat_core.files import write_json
from arlat_core.run import keep_settings, manifest, run_directory
from arlat_core.types import Value
from arlat_data.splits import SPLITS
from arlat_data.store import LatentStore, write_store
from rich.progress import Progress as Bar

from arlat_vae import checkpoint
from arlat_vae.checkpoint import Training
from arlat_vae.codecs.inner import latent_spec
from arlat_vae.inner import InnerVAE
from arlat_vae.inner_train import Config, train
from arlat_vae.probe import Sequences, probe
from arlat_vae.sweep import PROBED, Judged, read_judged, show

Utterance = tuple[str, str, str, np.ndarray, np.ndarray | None]


@torch.no_grad()
def encoded(model: InnerVAE, store: LatentStore) -> Iterator[Utterance]:
    """Every utterance of the store: id, speaker, split, posterior means [t dim] and frame energies."""
    for split in SPLITS:
        for name in store.ids(split):
            latents = torch.from_numpy(store.frames(name))[None].to(model.mean.device)
            yield name, store.speaker(name), split, model.encode(latents).mean[0].cpu().numpy(), store.energy(name)


def judge(model: InnerVAE, store: LatentStore, config: Config) -> dict[str, Value]:
    """The probe's figures of the posterior means."""
    found: dict[str, tuple[list[torch.Tensor], list[str]]] = {split: ([], []) for split in SPLITS}
    for _, speaker, split, z, _ in encoded(model, store):
        found[split][0].append(torch.from_numpy(z))
        found[split][1].append(speaker)
    parts = [Sequences(*found[split]) for split in SPLITS]
    return probe(parts[0], parts[1], store.spec.frame_rate, config.probe, config.seed)


def trainer(bar: Bar, here: Ranks) -> partial[Judged]:
    """`train_one` for every point of a sweep."""
    if here.world > 1:
        raise UserError("A VAE of stored latents is small and trains in one process. Start it without torchrun.")
    return partial(train_one, bar)


def train_one(bar: Bar, config: Config, shared: Path) -> Judged:
    """Trains the VAE of OUT/inner, writes its latents to OUT/latents and judges them in OUT/probe.json; points share no files."""
    store = LatentStore.open(config.data.latents_dir)
    settings = config.model_dump(mode="json", exclude={"out": True, "data": {"latents_dir"}}) | {"store": store.hash}
    folder, latents = config.out / "inner", config.out / "latents"
    with run_directory(config.out, settings):
        if not checkpoint.exists(folder, "inner"):
            keep_settings(config.out, {"": config})
            write_json(
                config.out / "manifest.json", manifest(config.seed, settings, {"store": store.hash}, config.device)
            )
            task = bar.add_task("training", total=config.train.steps)
            model = train(config, store, partial(show, bar, task)).average
            bar.update(task, description="probing")
            figures = judge(model, store, config)
            write_json(config.out / PROBED, {name: value.model_dump(mode="json") for name, value in figures.items()})
            bar.remove_task(task)
            training = Training(beta=config.kl, ar_loss=config.ar.label())
            shutil.rmtree(latents, ignore_errors=True)  # what a killed run left there
            write_store(latents, latent_spec(model, training), encoded(model, store))
            checkpoint.save(model, folder, training, "inner")
    return read_judged(config.out)
