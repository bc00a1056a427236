"""One training on rollouts: its weights, its optimisers, its record, and the loop."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arlat_core.config import UserError
from arlat_core.distributed import Ranks
from arlat_core.training_state import load_state, pack, save_state, taken, truncate_log, unpack
from torch import Tensor, nn

from arlat_dynamics.captured import CapturedLoss
from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.objectives import JUDGED_BY, Critic
from arlat_dynamics.rollout import Route as Within
from arlat_dynamics.rollout_config import RolloutTrainConfig, rollout_steps, stream, true_share
from arlat_dynamics.rollout_loss import Draws, Losses, RolloutLoss, draw_step, no_draws
from arlat_dynamics.route import Route, Way, training_route
from arlat_dynamics.sequences import Sequences
from arlat_dynamics.train import MOST_SKIPPED, copy_state, learning_rate

SEQUENCES, CHANCE, ROLLOUT, JUDGE = range(4)  # what a generator is for
WITHIN: dict[Way, Within] = {"fused": "fused", "graph": "auto", "eager": "eager"}  # how `rollout` is told
BLOCK = 256  # validation sequences at a time


class DivergedError(UserError):
    """Losses stayed non-finite, in every process alike."""


class Update(NamedTuple):
    """What an update is made of: true frames [b w+K d], draws, steps of the rollout, and the rate as a part of the highest."""

    frames: Tensor
    draws: Draws
    steps: int
    generator: torch.Generator
    rate: float


class Run:
    """A training of `model` on `sequences`, with its record under `out`."""

    def __init__(
        self,
        model: HeadedModel,
        sequences: Sequences,
        config: RolloutTrainConfig,
        out: Path,
        here: Ranks,
        progress: Callable[[str], None],
    ) -> None:
        self.model, self.sequences, self.config, self.out, self.here = model, sequences, config, out, here
        self.progress = progress
        self.route = run_route(model, config, here)
        self.loss = RolloutLoss(model, config, float(model.head.scale), WITHIN[self.route.way])
        self.wrapped = here.wrap(self.loss)
        self.captured = CapturedLoss(self.loss) if self.route.way == "graph" else None
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.critic: Critic | None = None
        self.critic_optimiser: torch.optim.AdamW | None = None
        if config.objective == "adversarial":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.critic = Critic(model.dim, config.context + config.steps).to(here.device)
            self.wrapped_critic = here.wrap(self.critic)
            self.critic_optimiser = torch.optim.AdamW(self.critic.parameters(), lr=config.critic_lr)
        self.update = self.skipped = self.in_a_row = 0
        self.judged = self.judge()
        self.initial = self.judged
        self.best: tuple[int, float] = (0, self.judged)
        self.best_weights = copy_state(model)
        self.notes: list[str] = []

    @property
    def log_path(self) -> Path:
        """The record: one JSON object a line."""
        return self.out / "metrics.jsonl"

    def train(self, stopped: list[int]) -> None:
        """Makes the updates that are left, and leaves the model at its best.

        A signal in `stopped`, to whichever process it came, saves after the next update and ends all processes.

        Raises:
            DivergedError: When update after update has no finite loss or gradient.
            SystemExit: After a signal, with 128 + its number.
        """
        while self.update < self.config.updates:
            if self.advance(stopped):
                raise SystemExit(128 + (stopped[0] if stopped else signal.SIGTERM))
        self.model.load_state_dict(self.best_weights)

    def advance(self, stopped: list[int]) -> bool:
        """Makes one update, and looks, logs and saves where that is due; whether a process was told to stop before it.

        A stop saves and does not look: a training that is never stopped does not either.
        """
        asked = len(stopped)
        update = self.begin()
        losses = self.losses(update)
        losses.total.backward()  # type: ignore[no-untyped-call]
        return self.end(update, losses, asked)

    def begin(self) -> Update:
        """What the next update is made of; clears the gradients."""
        self.update += 1
        rows, draws, rolling = self.batch(self.update)
        self.optimiser.zero_grad()
        frames = self.sequences.frames(rows).to(self.here.device)
        rate = learning_rate(self.update - 1, self.config.updates, 1.0)
        return Update(frames, draws, rollout_steps(self.config, self.update), rolling, rate)

    def end(self, update: Update, losses: Losses, asked: float) -> bool:
        """What follows the backward pass: the step of the optimisers, and looks, logs and saves where that is due."""
        config = self.config
        norm = self.step(update, losses)
        mine = [*(part.detach().float() for part in losses[:5]), norm.new_tensor(asked).float()]
        *parts, asked = self.here.mean(torch.stack(mine)).tolist()
        self.guard(parts[0], float(norm))
        last = self.update == config.updates
        due = self.update % config.evaluate_every == 0 or last
        if due:
            self.look()
        if self.update % config.log_every == 0 or last:
            self.log(parts, norm, update.steps, update.rate)
        if due or asked > 0:
            self.save()
        return asked > 0

    def batch(self, update: int) -> tuple[Tensor, Draws, torch.Generator]:
        """This process's sequences and draws of an update: functions of (seed, update) alone, whatever the number of processes."""
        seed, config = self.config.seed, self.config
        fit = self.sequences.fit_rows
        rows = fit[torch.randint(len(fit), (config.batch,), generator=stream(seed, update, SEQUENCES))]
        every = draw_step(config, self.model.dim, true_share(config, update), stream(seed, update, CHANCE))
        return self.here.share(rows), every.share(self.here), stream(seed, update, ROLLOUT)

    def losses(self, update: Update) -> Losses:
        """The losses of an update, with gradients to the model alone."""
        frames, draws, steps, generator, _ = update
        if self.critic is not None:
            self.critic.requires_grad_(False)
        cached = self.captured is None  # a graph may not keep casts that were made outside of it
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.config.bf16, cache_enabled=cached):
            if self.captured is not None:
                return self.captured(frames, draws, steps, generator)
            losses: Losses = self.wrapped(frames, draws, steps, generator, critic=self.critic)
        return losses

    def step(self, update: Update, losses: Losses) -> Tensor:
        """One step of the model's optimiser, and of the critic's where there is one; the norm of the gradient before clipping."""
        config = self.config
        frames, draws, steps, generator, rate = update
        set_rate(self.optimiser, rate * config.lr)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if bool(torch.isfinite(self.here.mean(losses.total.detach().clone()))) and bool(torch.isfinite(norm)):
            self.optimiser.step()
            if self.critic is not None and self.critic_optimiser is not None:
                self.critic.requires_grad_(True)
                set_rate(self.critic_optimiser, rate * config.critic_lr)
                self.critic_optimiser.zero_grad()
                task = self.loss.begin(frames, draws, steps, generator)[0]
                self.wrapped_critic(task, losses.states).backward()
                self.critic_optimiser.step()
        return norm

    def guard(self, loss: float, norm: float) -> None:
        """Counts updates that could not be made, and gives up after some in a row."""
        fine = math.isfinite(loss) and math.isfinite(norm)
        self.skipped += not fine
        self.in_a_row = 0 if fine else self.in_a_row + 1
        if self.in_a_row >= MOST_SKIPPED:
            raise DivergedError(
                f"{MOST_SKIPPED} updates in a row had no finite loss or gradient, the last of them update {self.update}. "
                "Lower lr, or longest, or the number of steps."
            )

    @torch.no_grad()
    def judge(self) -> float:
        """The loss on the validation sequences, at all K steps, without noise or injections; infinite where it is none."""
        rows, config = self.sequences.validation_rows, self.config
        total = 0.0
        for at, part in enumerate(torch.split(rows, BLOCK)):
            frames = self.sequences.frames(part).to(self.here.device)
            generator = stream(config.seed, at, JUDGE)
            objective = JUDGED_BY.get(config.objective)
            losses = self.loss(frames, no_draws(frames, config.steps), config.steps, generator, objective)
            total += float(losses.total) * len(part)
        return total / len(rows) if math.isfinite(total) else math.inf

    def look(self) -> None:
        """Judges the model and keeps it where it is the best so far."""
        self.judged = self.judge()
        if self.judged < self.best[1]:
            self.best, self.best_weights = (self.update, self.judged), copy_state(self.model)
        self.progress(f"update {self.update} of {self.config.updates}, validation {self.judged:.4f}")

    def log(self, parts: list[float], norm: Tensor, steps: int, rate: float) -> None:
        """Adds a line to the record; numbers that are not finite are written as null."""
        if not self.here.first:
            return
        names = ("loss", "objective", "teacher", "state", "clipped")
        numbers = dict(zip(names, parts, strict=True)) | {"grad_norm": float(norm), "validation": self.judged}
        sequences = self.sequences.frames(self.sequences.validation_rows[:64])[:, : self.config.context]
        numbers["saturated"] = self.model.saturated_fraction(sequences.to(self.here.device))
        entry: dict[str, Any] = {"step": self.update, "k": steps, "lr": rate * self.config.lr, "skipped": self.skipped}
        entry |= {name: number(value) for name, value in numbers.items()}
        self.out.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")

    def save(self) -> None:
        """Writes the state that a killed training goes on from."""
        if not self.here.first:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        tensors |= pack("optimiser", self.optimiser)
        if self.critic is not None and self.critic_optimiser is not None:
            tensors |= {f"critic.{name}": value for name, value in self.critic.state_dict().items()}
            tensors |= pack("critic_optimiser", self.critic_optimiser)
        about: dict[str, Any] = {
            "best": (self.best[0], number(self.best[1])),
            "initial": number(self.initial),
            "judged": number(self.judged),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
        }
        save_state(self.out / "state", self.update, tensors, about)

    def resume(self) -> None:
        """Goes on from the newest whole state under `out`, where there is one."""
        state = load_state(self.out / "state")
        truncate_log(self.log_path, 0 if state is None else state.step)
        if state is None:
            return
        self.notes += state.notes
        for note in state.notes:
            self.progress(note)
        if not state.tensors:
            return
        self.update, about = state.step, state.about
        self.model.load_state_dict(taken("model", state.tensors))
        self.best_weights = taken("best", state.tensors)
        unpack("optimiser", state.tensors, self.optimiser)
        if self.critic is not None and self.critic_optimiser is not None:
            self.critic.load_state_dict(taken("critic", state.tensors))
            unpack("critic_optimiser", state.tensors, self.critic_optimiser)
        known = (about["best"][1], about["initial"], about["judged"])
        best, self.initial, self.judged = (math.inf if value is None else value for value in known)
        self.best = about["best"][0], best
        self.skipped, self.in_a_row = about["skipped"], about["in_a_row"]

    def report(self) -> dict[str, Any]:
        """What came of the training."""
        sequences = {"fit": len(self.sequences.fit_rows), "validation": len(self.sequences.validation_rows)}
        return {
            "updates": self.update,
            "best_update": self.best[0],
            "initial_loss": number(self.initial),
            "best_loss": number(self.best[1]),
            "skipped": self.skipped,
            "route": str(self.route),
            "sequences": sequences,
            "notes": self.notes,
        }


def run_route(model: HeadedModel, config: RolloutTrainConfig, here: Ranks) -> Route:
    """The way of a training of `model`."""
    operands = "bfloat16" if config.bf16 else "float32"
    return training_route(config.route, model, config.objective != "mean_nll", operands, here.device, here.world)


def number(value: float) -> float | None:
    """What JSON can hold of a number: none where it is not finite."""
    return value if math.isfinite(value) else None


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
