"""One visible training loop of a VAE.

Every draw is a function of (seed, step), so that a killed run goes on, on a CPU to the bit, as if nothing had been.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from arlat_core.files import atomic_write
from arlat_core.seed import seeded
from arlat_data.mel_distance import MelDistance
from torch import Tensor

from arlat_vae import ar_losses
from arlat_vae import trainee as states
from arlat_vae.balancer import balance
from arlat_vae.bottleneck import kl_report
from arlat_vae.crops import Clips, batch, counter
from arlat_vae.discriminator import Discriminator, adversarial_loss, discriminator_loss, feature_loss
from arlat_vae.inner import InnerVAE
from arlat_vae.losses import Loss, STFTLoss, waveform_loss
from arlat_vae.model import VAE, build, sized
from arlat_vae.train_config import Config, OptimiserConfig
from arlat_vae.trainee import Trainee

MOST_SKIPPED = 20  # steps in a row without a finite loss or gradient
Progress = Callable[[int, int], None]


def start(config: Config) -> Trainee:
    """The untrained state."""
    generator = torch.Generator().manual_seed(config.seed)
    model = build(sized(config.size, bottleneck=config.bottleneck.model_dump()), generator).to(config.device)
    average = copy.deepcopy(model).requires_grad_(False)
    friend = ar_losses.start(config.bottleneck.dim, config.ar, counter(config.seed, 0, "predictor"), config.device)
    trainee = Trainee(model, average, adamw(model, config.train), ar=friend)
    if config.loss.adversarial > 0 or config.loss.feature > 0:
        with seeded(generator):
            trainee.judge = Discriminator(config.judge).to(config.device)
        trainee.judge_optimiser = adamw(trainee.judge, config.train)
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


def reconstruction_losses(config: Config, sample_rate: int) -> dict[str, Loss]:
    """The losses on audio that need no discriminator, by name."""
    return {"waveform": waveform_loss, "stft": STFTLoss(), "mel": MelDistance(sample_rate).to(config.device)}


def judged(trainee: Trainee, audio: Tensor, decoded: Tensor, config: Config) -> dict[str, Tensor]:
    """Trains the discriminator, where there is one, on this batch, and returns what it then says about the decoded audio."""
    if trainee.judge is None or trainee.judge_optimiser is None:
        return {}
    loss = discriminator_loss(trainee.judge(audio), trainee.judge(decoded.detach()))
    descend(trainee.judge, trainee.judge_optimiser, lambda: loss.backward(), trainee.step, config.train)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        real = trainee.judge(audio)
    fake = trainee.judge(decoded)
    return {"adversarial": adversarial_loss(fake), "feature": feature_loss(real, fake), "judge": loss.detach()}


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
    """One step on crops [b n]; returns the metrics of the batch."""
    generator = counter(config.seed, trainee.step, "noise")
    with torch.autocast(audio.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        law = trainee.model.encode(audio)
        z = law.sample(generator)
        decoded = trainee.model.decode(z).float()
        kl = law.kl().mean()
    latents = law.mean if config.ar.latent == "mean" else z
    drawn = counter(config.seed, trainee.step, "ar")
    extra, weighed, shown = ar_losses.ar_losses(trainee.ar, latents, trainee.model.decode, config.ar, drawn)
    values = {name: loss(audio, decoded) for name, loss in losses.items()} | judged(trainee, audio, decoded, config)
    weights = {name: weight for name, weight in config.loss.on_audio().items() if weight > 0}
    if config.loss.balanced:
        scale = config.loss.balanced_norm / len(audio)
        chosen = {name: values[name] for name in weights}
        balanced = balance(chosen, weights, decoded, trainee.norms, scale=scale)
        gradient, norms = balanced.gradient, balanced.norms
    else:
        total = torch.stack([weight * values[name] for name, weight in weights.items()]).sum()
        gradient, norms = torch.autograd.grad(total, decoded)[0], trainee.norms

    on_latents = sum((weighed[name] * value for name, value in extra.items()), start=config.loss.kl * kl)

    def backward() -> None:
        torch.autograd.backward([decoded, on_latents], [gradient, None])

    norm, taken = descend(trainee.model, trainee.optimiser, backward, trainee.step, config.train)
    if taken:
        trainee.norms = norms
        follow(trainee.average, trainee.model, trainee.step, config.train)
    trainee.skipped += not taken
    trainee.in_a_row = 0 if taken else trainee.in_a_row + 1
    shown |= {name: float(value.detach()) for name, value in values.items()}
    shown |= {"gradient_norm": norm, "skipped": float(trainee.skipped)}
    return shown | kl_report(law, trainee.model.config.frame_rate)


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


def train(config: Config, clips: Clips, held_out: Clips, progress: Progress = lambda done, planned: None) -> Trainee:
    """Trains to the end, from the newest state under `config.out` where there is one.

    Raises RuntimeError when losses stay non-finite.
    """
    trainee = start(config)
    folder, record = config.out / "state", config.out / "metrics.jsonl"
    for note in states.load(trainee, folder):
        warnings.warn(note, stacklevel=2)
    rows = [row for row in read_rows(record) if row["step"] <= trainee.step]
    samples = config.data.crop.frames * trainee.model.config.hop
    losses = reconstruction_losses(config, trainee.model.config.sample_rate)
    crop = config.data.crop
    heard = batch(held_out, config.held_out_crops, samples, crop, counter(config.seed, 0, "held_out"))
    heard = heard.to(config.device)
    while trainee.step < config.train.steps:
        audio = batch(clips, config.train.batch, samples, crop, counter(config.seed, trainee.step, "crops"))
        metrics = update(trainee, audio.to(config.device), losses, config)
        trainee.step += 1
        if trainee.in_a_row >= MOST_SKIPPED:
            raise RuntimeError(f"{MOST_SKIPPED} steps in a row had no finite gradient, last at step {trainee.step}.")
        last = trainee.step == config.train.steps
        if trainee.step % config.log_every == 0 or last:
            rows.append({"step": trainee.step, "part": "train", **finite(metrics)})
        if trainee.step % config.save_every == 0 or last:
            rows.append({"step": trainee.step, "part": "held_out", **finite(listen(trainee.average, heard, losses))})
            atomic_write(record, "".join(json.dumps(row) + "\n" for row in rows))
            states.save(trainee, folder)
        progress(trainee.step, config.train.steps)
    return trainee


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none where there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """None in place of what is not finite, which JSON has no word for."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
