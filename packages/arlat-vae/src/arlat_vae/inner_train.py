"""Crops of stored latents to a VAE of them, RUN/inner: what a step is. No audio is read.

Every draw is a function of (seed, step), so that a killed run goes on, on a CPU to the bit.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.distributed import Ranks
from arlat_data.store import LatentStore
from pydantic import Field, model_validator
from torch import Tensor

from arlat_vae import ar_losses, loop
from arlat_vae.bottleneck import kl_report
from arlat_vae.crops import counter
from arlat_vae.inner import Config as InnerConfig
from arlat_vae.inner import InnerVAE, Shape, build
from arlat_vae.loop import Progress
from arlat_vae.optimiser import adamw, descend, follow
from arlat_vae.record import Record
from arlat_vae.train import listen
from arlat_vae.train_config import OptimiserConfig, TrainingConfig, require_reach
from arlat_vae.trainee import Trainee

LEAST = 1e-6  # of the mean variance: what a dimension that never moves is divided by


class Data(BaseConfig):
    """What to train on."""

    latents_dir: Path
    """A latent store; its train split is trained on, its eval split is looked at."""
    crop_frames: int = Field(default=32, gt=1)
    """Frames of a training crop."""


class Config(TrainingConfig):
    """Settings of `arlat vae train` on a latent store."""

    data: Data
    """What to train on."""
    shape: Shape = Shape()
    """The VAE's size and bottleneck."""
    kl: float = Field(default=0.01, ge=0)
    """β, on the KL averaged over batch, time and dimension, beside the mean square error of standardised latents."""
    train: OptimiserConfig = OptimiserConfig(steps=2000, batch=32, betas=(0.9, 0.99))
    """The optimiser."""
    log_every: int = Field(default=50, gt=0)
    """Steps between two rows of metrics.jsonl."""
    save_every: int = Field(default=500, gt=0)
    """Steps between two states on disk, and between two looks at held-out speakers."""
    held_out_crops: int = Field(default=64, gt=1)
    """Crops of held-out speakers that are looked at."""

    @model_validator(mode="after")
    def _reaches(self) -> Self:
        require_reach(self.ar, self.data.crop_frames, "data.crop_frames")
        return self


def start(config: Config, store: LatentStore) -> Trainee[InnerVAE]:
    """The untrained state."""
    variance = torch.from_numpy(store.covariance).diagonal()
    deviation = (variance + LEAST * variance.mean()).sqrt().float()
    shape = InnerConfig(inner=store.spec, **config.shape.model_dump())
    generator = torch.Generator().manual_seed(config.seed)
    model = build(shape, torch.from_numpy(store.mean).float(), deviation, generator).to(config.device)
    average = copy.deepcopy(model).requires_grad_(False)
    trainee = Trainee(model, average, adamw(model, config.train), Ranks(0, 1, config.device), model)
    trainee.ar = ar_losses.start(shape.bottleneck.dim, config.ar, counter(config.seed, 0, "predictor"), config.device)
    return trainee


def update(trainee: Trainee[InnerVAE], latents: Tensor, config: Config) -> dict[str, float]:
    """One step on crops [b t d]; returns the metrics of the batch."""
    model = trainee.model
    law = model.encode(latents)
    z = law.sample(counter(config.seed, trainee.step, "noise", attempt=trainee.returns))
    error = model.error(latents, model.decode(z))
    seen = law.mean if config.ar.latent == "mean" else z
    drawn = counter(config.seed, trainee.step, "ar", attempt=trainee.returns)
    extra, weights, shown = ar_losses.ar_losses(trainee.ar, seen, model.decode, config.ar, drawn)
    total = sum((weights[name] * value for name, value in extra.items()), start=error + config.kl * law.kl().mean())
    norm, went = descend(model, trainee.optimiser, lambda: torch.autograd.backward(total), trainee.step, config.train)
    if went:
        follow(trainee.average, model, trainee.step, config.train)
    trainee.skipped += not went
    trainee.in_a_row = 0 if went else trainee.in_a_row + 1
    shown |= {
        "mse": float(error.detach()),
        "gradient_norm": norm,
        "skipped": float(trainee.skipped),
        "returns": trainee.returns,
    }
    return shown | kl_report(law, model.config.frame_rate)


def train(config: Config, store: LatentStore, progress: Progress = loop.silent) -> Trainee[InnerVAE]:
    """Trains to the end, from the newest state under `config.out` where there is one; raises as `loop.run`.

    Raises UserError too where the store has no utterance of a crop's length, or no held-out ones.
    """
    trainee = start(config, store)
    learned, held_out = store.load("train"), store.load("eval")
    if not len(held_out.length):
        raise UserError(f"{store.path} has no eval split to look at. Extract it anew from several speakers.")
    frames = config.data.crop_frames
    looked_at = held_out.crops(frames, config.held_out_crops, counter(config.seed, 0, "held_out")).to(config.device)

    def advance() -> dict[str, float]:
        drawn = counter(config.seed, trainee.step, "crops", attempt=trainee.returns)
        return update(trainee, learned.crops(frames, config.train.batch, drawn).to(config.device), config)

    def look(record: Record) -> None:
        record.add(trainee.step, "held_out", listen(trainee.average, looked_at, {"mse": trainee.average.error}))

    loop.run(trainee, config, advance, look, progress)
    return trainee
