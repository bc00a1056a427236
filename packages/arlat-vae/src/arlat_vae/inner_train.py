"""`arlat vae train data.latents_dir=STORE`: the loop that makes a VAE of stored latents, RUN/inner. No audio is read.

Every draw is a function of (seed, step), so that a killed run goes on, on a CPU to the bit.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.training_state import load_state, pack, save_state, taken, truncate_log, unpack
from arlat_data.store import LatentStore
from pydantic import Field, model_validator
from torch import Tensor

from arlat_vae import ar_losses
from arlat_vae.ar_losses import ARConfig, ARState
from arlat_vae.bottleneck import kl_report
from arlat_vae.crops import counter
from arlat_vae.inner import Config as InnerConfig
from arlat_vae.inner import InnerVAE, Shape, build
from arlat_vae.probe import ProbeConfig
from arlat_vae.record import finite
from arlat_vae.steering import Multipliers
from arlat_vae.train import adamw, descend, follow, listen
from arlat_vae.train_config import OptimiserConfig

MOST_SKIPPED = 20  # steps in a row without a finite gradient
LEAST = 1e-6  # of the mean variance: what a dimension that never moves is divided by
Progress = Callable[[int, int], None]


class Data(BaseConfig):
    """What to train on."""

    latents_dir: Path
    """A latent store; its train split is trained on, its eval split is looked at."""
    crop_frames: int = Field(default=32, gt=1)
    """Frames of a training crop."""


class Config(BaseConfig):
    """Settings of `arlat vae train` on a latent store."""

    data: Data
    """What to train on."""
    out: Path
    """Run directory: the same command goes on with a killed run there."""
    shape: Shape = Shape()
    """The VAE's size and bottleneck."""
    kl: float = Field(default=0.01, ge=0)
    """β, on the KL averaged over batch, time and dimension, beside the mean square error of standardised latents."""
    ar: ARConfig = ARConfig()
    """Losses that make latents easy to predict, as `ar.pred.weight=0.1`."""
    train: OptimiserConfig = OptimiserConfig(steps=2000, batch=32, betas=(0.9, 0.99))
    """The optimiser."""
    log_every: int = Field(default=50, gt=0)
    """Steps between two rows of metrics.jsonl."""
    save_every: int = Field(default=500, gt=0)
    """Steps between two states on disk, and between two looks at held-out speakers."""
    held_out_crops: int = Field(default=64, gt=1)
    """Crops of held-out speakers that are looked at."""
    probe: ProbeConfig = ProbeConfig()
    """The judge of the finished latents."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights, the crops and the noise."""
    device: str = "cpu"
    """Where to train."""

    @model_validator(mode="after")
    def _reaches(self) -> Self:
        if self.data.crop_frames < self.ar.frames():
            raise ValueError(
                f"the AR losses need crops of {self.ar.frames()} frames (the predictor's window and what follows it), but "
                f"data.crop_frames is {self.data.crop_frames}; give longer crops, or a smaller ar.predictor.window_frames"
            )
        return self


@dataclass
class Trainee:
    """What training changes; `average` is the moving average of `model`."""

    model: InnerVAE
    average: InnerVAE
    optimiser: torch.optim.Optimizer
    ar: ARState = field(default_factory=ARState)
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def models(self) -> dict[str, torch.nn.Module]:
        """The modules by name."""
        return {"model": self.model, "average": self.average, **self.ar.models()}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name."""
        return {"optimiser": self.optimiser, **self.ar.optimisers()}


def start(config: Config, store: LatentStore) -> Trainee:
    """The untrained state."""
    variance = torch.from_numpy(store.covariance).diagonal()
    deviation = (variance + LEAST * variance.mean()).sqrt().float()
    shape = InnerConfig(inner=store.spec, **config.shape.model_dump())
    generator = torch.Generator().manual_seed(config.seed)
    model = build(shape, torch.from_numpy(store.mean).float(), deviation, generator).to(config.device)
    state = ar_losses.start(shape.bottleneck.dim, config.ar, counter(config.seed, 0, "predictor"), config.device)
    return Trainee(model, copy.deepcopy(model).requires_grad_(False), adamw(model, config.train), state)


def save(trainee: Trainee, folder: Path) -> None:
    """Writes the state after `trainee.step` steps; the newest two are kept."""
    tensors: dict[str, Tensor] = {}
    for name, module in trainee.models().items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in trainee.optimisers().items():
        tensors |= pack(name, optimiser)
    about = {"skipped": trainee.skipped, "in_a_row": trainee.in_a_row, **trainee.ar.about()}
    save_state(folder, trainee.step, tensors, about)


def load(trainee: Trainee, folder: Path) -> list[str]:
    """Makes `trainee` what it was at the newest whole state of `folder`, if there is one; returns notes on broken ones."""
    state = load_state(folder)
    if state is None or not state.tensors:
        return [] if state is None else state.notes
    for name, module in trainee.models().items():
        module.load_state_dict(taken(name, state.tensors))
    for name, optimiser in trainee.optimisers().items():
        unpack(name, state.tensors, optimiser)
    trainee.step, trainee.skipped, trainee.in_a_row = state.step, state.about["skipped"], state.about["in_a_row"]
    trainee.ar.multipliers = Multipliers(**state.about.get("multipliers", {}))
    return state.notes


def update(trainee: Trainee, latents: Tensor, config: Config) -> dict[str, float]:
    """One step on crops [b t d]; returns the metrics of the batch."""
    model = trainee.model
    law = model.encode(latents)
    z = law.sample(counter(config.seed, trainee.step, "noise"))
    error = model.error(latents, model.decode(z))
    seen = law.mean if config.ar.latent == "mean" else z
    drawn = counter(config.seed, trainee.step, "ar")
    extra, weights, shown = ar_losses.ar_losses(trainee.ar, seen, model.decode, config.ar, drawn)
    total = sum((weights[name] * value for name, value in extra.items()), start=error + config.kl * law.kl().mean())
    norm, went = descend(model, trainee.optimiser, lambda: torch.autograd.backward(total), trainee.step, config.train)
    if went:
        follow(trainee.average, model, trainee.step, config.train)
    trainee.skipped += not went
    trainee.in_a_row = 0 if went else trainee.in_a_row + 1
    shown |= {"mse": float(error.detach()), "gradient_norm": norm, "skipped": float(trainee.skipped)}
    return shown | kl_report(law, model.config.frame_rate)


def train(config: Config, store: LatentStore, progress: Progress = lambda done, planned: None) -> InnerVAE:
    """Trains to the end, from the newest state under `config.out` where there is one; returns the averaged model.

    Raises UserError where the store has no utterance of a crop's length, RuntimeError when losses stay non-finite.
    """
    trainee = start(config, store)
    folder, record = config.out / "state", config.out / "metrics.jsonl"
    for note in load(trainee, folder):
        warnings.warn(note, stacklevel=2)
    config.out.mkdir(parents=True, exist_ok=True)
    truncate_log(record, trainee.step)
    learned, held_out = store.load("train"), store.load("eval")
    if not len(held_out.length):
        raise UserError(f"{store.path} has no eval split to look at. Extract it anew from several speakers.")
    frames = config.data.crop_frames
    looked_at = held_out.crops(frames, config.held_out_crops, counter(config.seed, 0, "held_out")).to(config.device)
    while trainee.step < config.train.steps:
        latents = learned.crops(frames, config.train.batch, counter(config.seed, trainee.step, "crops"))
        metrics = update(trainee, latents.to(config.device), config)
        trainee.step += 1
        if trainee.in_a_row >= MOST_SKIPPED:
            raise RuntimeError(f"{MOST_SKIPPED} steps in a row had no finite gradient, last at step {trainee.step}.")
        last = trainee.step == config.train.steps
        rows = []
        if trainee.step % config.log_every == 0 or last:
            rows.append({"step": trainee.step, "part": "train", **finite(metrics)})
        if trainee.step % config.save_every == 0 or last:
            seen = listen(trainee.average, looked_at, {"mse": trainee.average.error})
            rows.append({"step": trainee.step, "part": "held_out", **finite(seen)})
            save(trainee, folder)
        with record.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        progress(trainee.step, config.train.steps)
    return trainee.average
