"""`arlat dynamics train`: a latent store to a one-step dynamics model in a run directory."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.files import write_json
from arlat_core.run import manifest, run_directory
from pydantic import Field

from arlat_dynamics.train import Progress, TrainConfig

if TYPE_CHECKING:
    from arlat_data.store import LatentStore

    from arlat_dynamics.models.mdn import ResidualMixture
    from arlat_dynamics.train import FitLog


class Data(BaseConfig):
    """What to train on."""

    latents_dir: Path
    """A latent store."""


class Config(BaseConfig):
    """Settings of `arlat dynamics train`."""

    data: Data
    """What to train on."""
    out: Path
    """Run directory: the same command reuses a finished model there, and starts a killed one anew."""
    horizon: int = Field(default=1, gt=0)
    """Frames ahead of the predicted displacement; a dynamics model for rollouts has 1."""
    context: int = Field(default=8, gt=0)
    """Frames that the model sees."""
    components: int = Field(default=8, gt=0)
    """Mixture components."""
    train: TrainConfig = TrainConfig()
    """The fit."""
    seed: int = 0
    """Seed of the validation split, the initial weights and the minibatches."""
    device: str = "cpu"
    """Where to train."""


def train(store: LatentStore, config: Config, progress: Progress) -> tuple[ResidualMixture, FitLog]:
    """Fits the VAR, then the network on top of it, on the training split; validation is by its speakers.

    Raises UserError when the store is too small.
    """
    import torch
    from arlat_data.windows import windows

    from arlat_dynamics.models.linear import fit_linear
    from arlat_dynamics.models.mdn import ResidualMixture
    from arlat_dynamics.train import fit, split_speakers

    cut = windows(store.load("train"), config.context, config.horizon)
    fit_rows, validation_rows = split_speakers(cut, config.seed) if len(cut) > 1 else (torch.arange(0), torch.arange(0))
    if min(len(fit_rows), len(validation_rows)) < 2:
        raise UserError(
            f"{store.path} has {len(cut)} windows of {config.context} frames and horizon {config.horizon} to train on. "
            "Give a store with more or longer utterances."
        )
    generator = torch.Generator().manual_seed(config.seed)
    linear = fit_linear(cut, fit_rows, validation_rows)
    model = ResidualMixture.start(linear, cut, fit_rows, validation_rows, config.components, generator).to(
        config.device
    )
    log = fit(model, cut, fit_rows, validation_rows, config.train, generator, progress)
    return model, log


def main(arguments: list[str], prog: str) -> int:
    """Trains, saves to OUT/model and prints what came of it; returns the exit status."""
    config = parse(Config, arguments, prog, "Trains the one-step dynamics model on a latent store.")
    from arlat_data.store import LatentStore
    from rich.console import Console
    from rich.progress import Progress as Bar

    from arlat_dynamics import checkpoint

    store = LatentStore.open(config.data.latents_dir)
    folder = config.out / "model"
    settings = config.model_dump(mode="json", exclude={"out", "data"}) | {"store": store.hash}
    with run_directory(config.out, settings):
        if checkpoint.exists(folder):
            print(f"{folder} is finished already.")
            return 0
        with Bar(console=Console(stderr=True)) as bar:
            task = bar.add_task("training", total=None)
            model, log = train(store, config, lambda done, planned: bar.update(task, completed=done, total=planned))
        write_json(config.out / "manifest.json", manifest(config.seed, settings, {"store": store.hash}, config.device))
        write_json(config.out / "fit.json", asdict(log))
        checkpoint.save(model, folder, store.spec)
    gain = (log.initial_nll - log.best_nll) / math.log(2)
    print(
        f"{folder}: linear order {model.linear.order}; NLL on held-out training speakers {log.initial_nll:.3f} → "
        f"{log.best_nll:.3f} nats/frame ({gain:.3f} bits better), best at step {log.best_step} of {log.steps}."
    )
    return 0
