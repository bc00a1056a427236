"""One training loop for one-step models: minibatches by counter, early stopping on held-out training speakers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from arlat_core.config import Config
from pydantic import Field
from torch import Tensor

from arlat_dynamics.base import Rows, Stage, WindowModel, WindowSource, row_blocks

CERTAINTY = 1.64  # training must beat the start on the validation part by so many standard errors to be kept
MOST_SKIPPED = 20  # steps in a row without a finite loss or gradient

Progress = Callable[[int, int], None]  # steps done, steps planned


class TrainConfig(Config):
    """Settings of one fit."""

    lr: float = Field(2e-3, gt=0)
    """Highest learning rate of AdamW; linear warm-up over the first 5 % of the steps, then a cosine to 0."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's decoupled weight decay."""
    batch: int = Field(512, gt=0)
    """Windows in a minibatch; fewer where D is large (`batch_size`)."""
    max_steps: int = Field(400, ge=0)
    """Steps at most (of a stage: its part of them)."""
    max_epochs: float = Field(12.0, gt=0)
    """Passes of a stage over the windows at most."""
    evaluate_every: int = Field(40, gt=0)
    """Steps between two looks at the validation part."""
    patience: int = Field(3, gt=0)
    """Looks in a row without a gain after which a stage stops."""
    validation_rows: int = Field(4096, gt=1)
    """Validation windows looked at, evenly spaced; fewer where D is large, down to a quarter."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of the NLL per dimension."""
    max_seconds: float | None = Field(None, gt=0)
    """Time after which training stops, for interactive use: it makes the result depend on the machine."""


@dataclass(frozen=True)
class FitLog:
    """What a fit did: validation NLL in nats per frame before and at the best step (0 = the start was kept)."""

    steps: int
    best_step: int
    initial_nll: float
    best_nll: float
    skipped: int
    saturated: float
    history: tuple[tuple[int, float], ...]


def split_speakers(windows: WindowSource, seed: int, fraction: float = 0.15) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows to stop on: whole speakers, drawn by seed until they make up `fraction` of the windows.

    With one speaker whole utterances are drawn, with one utterance the last `fraction` of it is taken.
    """
    group = next((part for part in (windows.speaker, windows.utterance) if len(part.unique()) > 1), None)  # type: ignore[no-untyped-call]
    every = torch.arange(len(windows))
    if group is None:
        cut = len(windows) - max(1, int(fraction * len(windows)))
        return every[:cut], every[cut:]
    names, counts = group.cpu().unique(return_counts=True)  # type: ignore[no-untyped-call]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    before = counts[order].cumsum(0) - counts[order]
    drawn = order[before < fraction * len(windows)][: len(names) - 1]
    held_out = torch.isin(group.cpu(), names[drawn])
    return every[~held_out], every[held_out]


def batch_size(batch: int, dim: int) -> int:
    """Windows in a minibatch: at most 65 536 targets' coordinates, so that a step costs no more at a large D, and 64 at least.

    >>> [batch_size(512, dim) for dim in (64, 512, 640, 2048)]
    [512, 128, 102, 64]
    """
    return min(batch, max(64, 2**16 // dim))


def standard_error(gain: Tensor, speaker: Tensor, utterance: Tensor) -> float:
    """Standard error of the mean of `gain` [n], whose rows are independent between speakers alone.

    With one speaker utterances take their place, with one utterance rows do.
    """
    group = next((part for part in (speaker, utterance) if int(part.max()) > int(part.min())), torch.arange(len(gain)))
    _, index = group.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    count = int(index.max()) + 1
    sums = torch.zeros(count, dtype=gain.dtype).index_add_(0, index, gain - gain.mean())
    return math.sqrt(float(sums.square().sum()) * count / max(1, count - 1)) / len(gain)


def batch_rows(rows: Tensor, size: int, seed: int, step: int) -> Tensor:
    """The minibatch of `step`: a function of (seed, step) alone, so that going on needs one integer."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return rows[torch.randint(len(rows), (min(size, len(rows)),), generator=generator)]


def log_prob(model: WindowModel, batch: Rows) -> Tensor:
    """log p(Δ) [n] of a gathered batch, on the model's device."""
    device = model_device(model)
    return model.distribution(batch.context.to(device)).log_prob(batch.target.to(device))


def model_device(model: torch.nn.Module) -> torch.device:
    """Where the model's buffers are."""
    return next(iter(model.buffers())).device


@torch.no_grad()
def validation_nll(model: WindowModel, windows: WindowSource, rows: Tensor) -> Tensor:
    """NLL [n] in nats per frame of the windows at `rows`, float64 on the CPU."""
    return torch.cat([-log_prob(model, windows.gather(part)).double().cpu() for part in row_blocks(rows, 1024)])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine to 0."""
    warm = max(1, steps // 20)
    return peak * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / max(1, steps))))


def planned_steps(rows: int, config: TrainConfig, stage: Stage) -> int:
    """Steps that a stage takes at most on `rows` windows."""
    return math.ceil(stage.steps * min(config.max_steps, max(1.0, config.max_epochs * rows / config.batch)))


def fit(
    model: WindowModel,
    windows: WindowSource,
    fit_rows: Tensor,
    validation_rows: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    progress: Progress = lambda done, planned: None,
) -> FitLog:
    """Trains `model` in place by maximum likelihood, stage after stage, and leaves it at its best on `validation_rows`.

    What a stage began with is a candidate too, and stays unless the stage beats it by more than chance: a model never
    ends worse on the validation part than it began. Raises RuntimeError when losses stay non-finite.
    """
    looked_at = min(config.validation_rows, max(config.validation_rows // 4, 2**20 // model.dim))
    some = validation_rows[spaced(len(validation_rows), looked_at)]
    first = best = validation_nll(model, windows, some)
    stages = model.stages()
    planned = sum(planned_steps(len(fit_rows), config, stage) for stage in stages)
    history = [(0, float(first.mean()))]
    done = best_step = skipped = 0
    for stage in stages:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        kept = copy_state(model)
        shown = partial(_show, progress, done, planned)
        log = fit_stage(model, stage, windows, fit_rows, some, config, seed, shown)
        gain = best - log.nll
        if float(gain.mean()) > CERTAINTY * standard_error(gain, windows.speaker[some], windows.utterance[some]):
            best, best_step = log.nll, done + log.best_step
        else:
            model.load_state_dict(kept)
        history += [(done + step, value) for step, value in log.history]
        done, skipped = done + log.steps, skipped + log.skipped
    progress(planned, planned)
    saturated = model.saturated_fraction(windows.gather(some[:1024]).context.to(model_device(model)))
    return FitLog(done, best_step, float(first.mean()), float(best.mean()), skipped, saturated, tuple(history))


def _show(progress: Progress, before: int, planned: int, step: int) -> None:
    """Reports step `step` of a stage that began after `before` steps."""
    progress(before + step, planned)


@dataclass(frozen=True)
class StageLog:
    """One stage of a fit: validation NLL [n] at its best step, at which the model was left."""

    steps: int
    best_step: int
    nll: Tensor
    skipped: int
    history: tuple[tuple[int, float], ...]


def fit_stage(
    model: WindowModel,
    stage: Stage,
    windows: WindowSource,
    fit_rows: Tensor,
    held_out: Tensor,
    config: TrainConfig,
    seed: int,
    progress: Callable[[int], None],
) -> StageLog:
    """Trains the parameters of `stage` alone and leaves the model at the best step that was looked at."""
    steps, began = planned_steps(len(fit_rows), config, stage), time.monotonic()
    optimiser = torch.optim.AdamW(stage.parameters, lr=config.lr, weight_decay=config.weight_decay)
    best: tuple[int, Tensor, dict[str, Tensor]] | None = None
    history: list[tuple[int, float]] = []
    skipped = in_a_row = step = 0
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step - 1, steps, stage.rate * config.lr)
        batch = windows.gather(batch_rows(fit_rows, batch_size(config.batch, model.dim), seed, step))
        loss = -log_prob(model, batch).mean() / model.dim
        norm = gradient(loss, stage.parameters, config.clip)
        if bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)):
            optimiser.step()
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row >= MOST_SKIPPED:
                raise RuntimeError(
                    f"{MOST_SKIPPED} steps in a row had no finite loss or gradient, last at step {step}."
                )
        progress(step)
        late = config.max_seconds is not None and time.monotonic() - began > config.max_seconds
        if step % config.evaluate_every == 0 or step == steps or late:
            nll = validation_nll(model, windows, held_out)
            history.append((step, float(nll.mean())))
            if best is None or float(nll.mean()) < float(best[1].mean()):
                best = step, nll, copy_state(model)
            if late or step - best[0] >= config.patience * config.evaluate_every:
                break
    if best is None:
        return StageLog(0, 0, validation_nll(model, windows, held_out), 0, ())
    model.load_state_dict(best[2])
    return StageLog(step, best[0], best[1], skipped, tuple(history))


def gradient(loss: Tensor, parameters: list[torch.nn.Parameter], clip: float) -> Tensor:
    """Sets the parameters' gradients, clipped to the norm `clip`, and returns their norm before."""
    for parameter, value in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = value
    return torch.nn.utils.clip_grad_norm_(parameters, clip)


def spaced(count: int, at_most: int) -> Tensor:
    """At most `at_most` evenly spaced positions of `count`."""
    return torch.linspace(0, count - 1, min(count, at_most), dtype=torch.float64).round().long()


def copy_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
