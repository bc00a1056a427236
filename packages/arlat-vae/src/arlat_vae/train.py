"""One visible loop: crops of speech to a trained VAE.

Every draw is a function of (seed, step, row), so that a killed run goes on, on a CPU to the bit, as if nothing had been, and
several processes have the loss curve of one.
"""

from __future__ import annotations

import copy
import math
import signal
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from arlat_core.config import UserError
from arlat_core.distributed import Ranks
from arlat_core.seed import seeded
from arlat_core.signals import stopping
from arlat_data.mel_distance import MelDistance
from torch import Tensor

from arlat_vae import ar_losses
from arlat_vae import trainee as states
from arlat_vae.balancer import balance
from arlat_vae.bottleneck import active_units, kl_report
from arlat_vae.crops import Clips, batch, counter
from arlat_vae.discriminator import Discriminator, adversarial_loss, feature_loss
from arlat_vae.inner import InnerVAE
from arlat_vae.losses import Loss, STFTLoss, waveform_loss
from arlat_vae.model import VAE, build, sized
from arlat_vae.reconstruction import Judging, Reconstruction
from arlat_vae.record import Record
from arlat_vae.teacher import Teacher, build_teacher, lessons
from arlat_vae.train_config import Config, OptimiserConfig
from arlat_vae.trainee import Trainee

MOST_SKIPPED = 5  # steps in a row without a finite gradient, after which the newest state is gone back to
MOST_RETURNS = 5  # to the same state
Progress = Callable[[int, int], None]


class DivergedError(UserError):
    """Losses stayed non-finite whatever crops were drawn, in every process alike."""


def start(config: Config, here: Ranks | None = None, teacher: Teacher | None = None) -> Trainee:
    """The untrained state, of one process or of those that are `here`; a teacher, where there is one, is asked at every step."""
    here = here or Ranks(0, 1, config.device)
    generator = torch.Generator().manual_seed(config.seed)
    model = build(sized(config.size, bottleneck=config.bottleneck.model_dump()), generator).to(here.device)
    average = copy.deepcopy(model).requires_grad_(False)
    projection = None
    if teacher is not None:
        with seeded(counter(config.seed, 0, "teacher")):
            projection = torch.nn.Linear(config.bottleneck.dim, teacher.dim).to(here.device)
    once = Reconstruction(model, projection)
    if config.compile:
        once.compile()
    trainee = Trainee(model, average, adamw(once, config.train), here, here.wrap(once))
    trainee.projection, trainee.teacher = projection, teacher
    trainee.ar = ar_losses.start(config.bottleneck.dim, config.ar, counter(config.seed, 0, "predictor"), here.device)
    if config.loss.adversarial > 0 or config.loss.feature > 0:
        with seeded(generator):
            trainee.judge = Discriminator(config.judge).to(here.device)
        trainee.judge_optimiser = adamw(trainee.judge, config.train)
        trainee.judging = here.wrap(Judging(trainee.judge))
    return trainee


def adamw(module: torch.nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW on what is trained; matrices and kernels decay, biases, scales and the single σ do not."""
    trained = [value for value in module.parameters() if value.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [value for value in trained if value.dim() > 1]},
        {"params": [value for value in trained if value.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay)


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def reconstruction_losses(sample_rate: int, device: str = "cpu") -> dict[str, Loss]:
    """The losses on audio that need no discriminator, by name."""
    return {"waveform": waveform_loss, "stft": STFTLoss(), "mel": MelDistance(sample_rate).to(device)}


def judged(trainee: Trainee, audio: Tensor, decoded: Tensor, config: Config) -> tuple[dict[str, Tensor], bool]:
    """Trains the discriminator, where there is one and its time has come, on this batch.

    Returns what it then says about the decoded audio, and whether its gradient was finite.
    """
    if trainee.judging is None or trainee.judge is None or trainee.judge_optimiser is None:
        return {}, True
    if trainee.step < config.loss.adversarial_start:
        return {}, True
    loss = trainee.judging(audio, decoded.detach())
    _, fine = descend(trainee.judge, trainee.judge_optimiser, loss.backward, trainee.step, config.train)
    with torch.no_grad():
        real = trainee.judge(audio)
    fake = trainee.judge(decoded)
    return {"adversarial": adversarial_loss(fake), "feature": feature_loss(real, fake), "judge": loss.detach()}, fine


def descend(
    module: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    backward: Callable[[], None],
    step: int,
    config: OptimiserConfig,
) -> tuple[float, bool]:
    """One step of `optimiser`, unless the gradient is not finite; returns its norm before clipping, and whether it was."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, config)
    optimiser.zero_grad()
    backward()
    norm = float(torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip))
    if math.isfinite(norm):
        optimiser.step()
    return norm, math.isfinite(norm)


def update(trainee: Trainee, audio: Tensor, losses: Mapping[str, Loss], config: Config) -> dict[str, float]:
    """One step on this process's crops [b n] of a batch; returns the metrics of the whole batch.

    A step without a finite gradient leaves the model as it is. A loss whose gradient is not finite, and a discriminator that
    could not be trained, count as such a step too.
    """
    here, shape = trainee.here, trainee.model.config
    generator = counter(config.seed, trainee.step, "noise", attempt=trainee.returns)
    frames = -(-audio.shape[1] // shape.hop)
    noise = torch.randn(len(audio) * here.world, frames, shape.bottleneck.dim, generator=generator)
    features = None
    if trainee.teacher is not None:
        features = lessons(trainee.teacher, audio, shape.sample_rate, frames, shape.frame_rate)
    with torch.autocast(audio.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        law, z, decoded, distill = trainee.reconstruct(audio, here.share(noise).to(audio.device), features)
        kl = law.kl().mean()
    latents = here.gather(law.mean if config.ar.latent == "mean" else z)
    drawn = counter(config.seed, trainee.step, "ar", attempt=trainee.returns)
    extra, weighed, found = ar_losses.ar_losses(trainee.ar, latents, trainee.model.decode, config.ar, drawn)
    said, fine = judged(trainee, audio, decoded, config)
    values = {name: loss(audio, decoded) for name, loss in losses.items()} | said
    weights = {name: weight for name, weight in config.loss.at(trainee.step).items() if weight > 0}
    if config.loss.balanced:
        scale = config.loss.balanced_norm / len(noise)
        chosen = {name: values[name] for name in weights}
        balanced = balance(
            chosen, weights, decoded, trainee.norms, scale=scale, shared=lambda norms: here.mean(norms) / here.world
        )
        gradient, norms = balanced.gradient, balanced.norms
        fine = fine and not balanced.refused
    else:
        total = torch.stack([weight * values[name] for name, weight in weights.items()]).sum()
        gradient, norms = torch.autograd.grad(total, decoded)[0], trainee.norms

    beta = config.loss.beta(trainee.step)
    on_latents = sum((weighed[name] * value for name, value in extra.items()), start=beta * kl)
    if trainee.teacher is not None:
        on_latents = on_latents + config.loss.distill * distill
        values["distill"] = distill

    def backward() -> None:
        torch.autograd.backward([decoded, on_latents], [gradient, None])

    norm, taken = descend(trainee.reconstruct, trainee.optimiser, backward, trainee.step, config.train)
    if taken:
        trainee.norms = norms
        follow(trainee.average, trainee.model, trainee.step, config.train)
    trainee.skipped += not taken
    trainee.in_a_row = 0 if taken and fine else trainee.in_a_row + 1
    shown = {name: float(value.detach()) for name, value in values.items()} | kl_report(law, shape.frame_rate)
    counts = {"active_units": active_units(here.gather(law.mean.detach())), "skipped": trainee.skipped}
    return here.means(shown) | found | {"gradient_norm": norm, "returns": trainee.returns, **counts}


def follow(average: torch.nn.Module, model: torch.nn.Module, step: int, config: OptimiserConfig) -> None:
    """Moves the average towards the model: a ← d·a + (1 − d)·w with d = min(ema, (1 + step)/(10 + step))."""
    decay = min(config.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, value in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(value, 1 - decay)


@torch.no_grad()
def listen(model: VAE | InnerVAE, audio: Tensor, losses: Mapping[str, Loss]) -> dict[str, float]:
    """The losses on the decoded posterior mean of crops ([b n], or latents [b t d] where they are what is encoded), and their KL.

    `NAME_floor` is a loss with the latents of another crop: what the decoder has without hearing anything. A model whose
    losses are at their floors has collapsed.
    """
    law = model.encode(audio)
    decoded, other = model.decode(law.mean), model.decode(law.mean.roll(1, 0))
    values = {name: float(loss(audio, decoded)) for name, loss in losses.items()}
    floors = {f"{name}_floor": float(loss(audio, other)) for name, loss in losses.items()}
    return values | floors | kl_report(law, model.config.frame_rate)


def train(
    config: Config,
    clips: Clips,
    held_out: Clips,
    progress: Progress = lambda done, planned: None,
    here: Ranks | None = None,
) -> Trainee:
    """Trains to the end, from the newest state under `config.out` where there is one; SIGUSR1 and SIGTERM save after the next step.

    Raises DivergedError when losses stay non-finite, SystemExit after SIGTERM.
    """
    if config.loss.distill > 0:
        rate, device = sized(config.size).sample_rate, here.device if here else config.device
        trainee = start(config, here, build_teacher(config.teacher, clips, rate, device))
    else:
        trainee = start(config, here)
    here, crop = trainee.here, config.data.crop
    samples = crop.frames * trainee.model.config.hop
    losses = reconstruction_losses(trainee.model.config.sample_rate, here.device)
    looks = [counter(config.seed, 0, "held_out", row) for row in range(config.held_out_crops)]
    heard = batch(held_out, samples, crop, looks).to(here.device)
    record = resume(trainee, config)
    mine = here.share(torch.arange(config.train.batch)).tolist()
    with stopping() as signals:
        while trainee.step < config.train.steps:
            draws = [counter(config.seed, trainee.step, "crops", row, trainee.returns) for row in mine]
            metrics = update(trainee, batch(clips, samples, crop, draws).to(here.device), losses, config)
            trainee.step += 1
            if trainee.in_a_row >= MOST_SKIPPED:
                record = go_back(trainee, config)
                continue
            last = trainee.step == config.train.steps
            due = trainee.step % config.save_every == 0 or last
            if record and (trainee.step % config.log_every == 0 or last):
                record.add(trainee.step, "train", metrics)
            if record and due:
                record.add(trainee.step, "held_out", listen(trainee.average, heard, losses))
                show(trainee, record, heard[: config.sample_crops])
            told = [signals.pop(0) for _ in range(len(signals))]
            stop, save = here.asked([signal.SIGTERM in told, signal.SIGUSR1 in told])
            if due and trainee.in_a_row == 0:
                trainee.stuck = 0
            if (due and trainee.in_a_row == 0) or last or stop or save:
                states.save(trainee, config.out / "state")
            progress(trainee.step, config.train.steps)
            if stop and not last:
                raise SystemExit(128 + signal.SIGTERM)
    return trainee


@torch.no_grad()
def show(trainee: Trainee, record: Record, audio: Tensor) -> None:
    """Writes what crops [b n] sound like now."""
    decoded = trainee.average.decode(trainee.average.encode(audio).mean)
    record.hear(trainee.step, audio, decoded, trainee.model.config.sample_rate)


def resume(trainee: Trainee, config: Config) -> Record | None:
    """Brings `trainee` to the newest state, or writes the first; returns the record from there on, in the first process."""
    folder = config.out / "state"
    found, notes = states.load(trainee, folder)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if not found:
        states.save(trainee, folder)
    return Record(config.out, trainee.step) if trainee.here.first else None


def go_back(trainee: Trainee, config: Config) -> Record | None:
    """Brings `trainee` back to the newest state, from where other crops and noise are drawn; returns the record from there on."""
    folder = config.out / "state"
    at, skipped, returns, stuck = trainee.step, trainee.skipped, trainee.returns + 1, trainee.stuck + 1
    found, notes = states.load(trainee, folder)
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
    states.save(trainee, folder)
    return Record(config.out, trainee.step) if trainee.here.first else None
