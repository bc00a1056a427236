"""The loop of every VAE's training: when it looks, logs and saves, what signals do, and the way back where losses stay non-finite."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from arlat_core.config import UserError
from arlat_core.signals import stopping

from arlat_vae import trainee as states
from arlat_vae.record import Record
from arlat_vae.train_config import TrainingConfig
from arlat_vae.trainee import Model, Trainee

MOST_SKIPPED = 5  # steps in a row without a finite gradient, after which the newest state is gone back to
MOST_RETURNS = 5  # to the same state
Progress = Callable[[int, int], None]


class DivergedError(UserError):
    """Losses stayed non-finite whatever crops were drawn, in every process alike."""


def silent(done: int, planned: int) -> None:
    """Shows no progress."""


def run(
    trainee: Trainee[Model],
    config: TrainingConfig,
    advance: Callable[[], dict[str, float]],
    look: Callable[[Record], None],
    progress: Progress = silent,
) -> None:
    """Trains to the end, from the newest state under `config.out` where there is one.

    `advance` makes step `trainee.step` and returns its metrics, `look` adds what held-out speakers tell to the record, in the first
    process. SIGUSR1 and SIGTERM save after the step.

    Raises DivergedError when losses stay non-finite, SystemExit after SIGTERM.
    """
    here = trainee.here
    record = resume(trainee, config.out)
    with stopping() as signals:
        while trainee.step < config.train.steps:
            metrics = advance()
            trainee.step += 1
            if trainee.in_a_row >= MOST_SKIPPED:
                record = go_back(trainee, config.out)
                continue
            last = trainee.step == config.train.steps
            due = trainee.step % config.save_every == 0 or last
            if record and (trainee.step % config.log_every == 0 or last):
                record.add(trainee.step, "train", metrics)
            if record and due:
                look(record)
            told = [signals.pop(0) for _ in range(len(signals))]
            stop, save = here.asked([signal.SIGTERM in told, signal.SIGUSR1 in told])
            if due and trainee.in_a_row == 0:
                trainee.stuck = 0
            if (due and trainee.in_a_row == 0) or last or stop or save:
                states.save(trainee, config.out / "state")
            progress(trainee.step, config.train.steps)
            if stop and not last:
                raise SystemExit(128 + signal.SIGTERM)


def resume(trainee: Trainee[Model], out: Path) -> Record | None:
    """Brings `trainee` to the newest state, or writes the first; returns the record from there on, in the first process."""
    found, notes = states.load(trainee, out / "state")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if not found:
        states.save(trainee, out / "state")
    return Record(out, trainee.step) if trainee.here.first else None


def go_back(trainee: Trainee[Model], out: Path) -> Record | None:
    """Brings `trainee` back to the newest state, from where other crops and noise are drawn; returns the record from there on."""
    at, skipped, returns, stuck = trainee.step, trainee.skipped, trainee.returns + 1, trainee.stuck + 1
    found, notes = states.load(trainee, out / "state")
    if not found or stuck > MOST_RETURNS:
        why = f"{MOST_RETURNS} returns to step {trainee.step} did not help" if found else "no state can be read"
        raise DivergedError(
            f"{MOST_SKIPPED} steps in a row had no finite loss or gradient, last at step {at}, and {why}. "
            "Lower train.lr or train.clip, or lengthen train.warmup_steps, and start anew with another --out."
        )
    notes.append(f"No finite loss or gradient in {MOST_SKIPPED} steps up to step {at}: back to step {trainee.step}.")
    for note in notes if trainee.here.first else []:
        warnings.warn(note, stacklevel=2)
    trainee.skipped, trainee.returns, trainee.stuck, trainee.in_a_row = skipped, returns, stuck, 0
    states.save(trainee, out / "state")
    return Record(out, trainee.step) if trainee.here.first else None
