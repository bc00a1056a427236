"""Crops of speech to a trained VAE: what a step is.

Every draw is a function of (seed, step, row), so that a killed run goes on, on a CPU to the bit, as if nothing had been, and
several processes have the loss curve of one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from arlat_core.distributed import Ranks
from arlat_core.seed import seeded
from arlat_data.mel_distance import MelDistance
from torch import Tensor

from arlat_vae import ar_losses, loop
from arlat_vae.balancer import balance
from arlat_vae.bottleneck import active_units, kl_report
from arlat_vae.crops import Clips, batch, counter
from arlat_vae.discriminator import Discriminator, adversarial_loss, feature_loss
from arlat_vae.inner import InnerVAE
from arlat_vae.loop import Progress
from arlat_vae.losses import Loss, STFTLoss, waveform_loss
from arlat_vae.model import VAE, build, sized
from arlat_vae.optimiser import adamw, descend, follow
from arlat_vae.reconstruction import Judging, Reconstruction
from arlat_vae.record import Record
from arlat_vae.teacher import Teacher, build_teacher, lessons
from arlat_vae.train_config import Config
from arlat_vae.trainee import Trainee


def start(config: Config, here: Ranks | None = None, teacher: Teacher | None = None) -> Trainee[VAE]:
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


def reconstruction_losses(sample_rate: int, device: str = "cpu") -> dict[str, Loss]:
    """The losses on audio that need no discriminator, by name."""
    return {"waveform": waveform_loss, "stft": STFTLoss(), "mel": MelDistance(sample_rate).to(device)}


def judged(trainee: Trainee[VAE], audio: Tensor, decoded: Tensor, config: Config) -> tuple[dict[str, Tensor], bool]:
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


def update(trainee: Trainee[VAE], audio: Tensor, losses: Mapping[str, Loss], config: Config) -> dict[str, float]:
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
    progress: Progress = loop.silent,
    here: Ranks | None = None,
) -> Trainee[VAE]:
    """Trains to the end, from the newest state under `config.out` where there is one; raises as `loop.run`."""
    if config.loss.distill > 0:
        rate, device = sized(config.size).sample_rate, here.device if here else config.device
        trainee = start(config, here, build_teacher(config.teacher, clips, rate, device))
    else:
        trainee = start(config, here)
    here, crop = trainee.here, config.data.crop
    rate, samples = trainee.model.config.sample_rate, crop.frames * trainee.model.config.hop
    losses = reconstruction_losses(rate, here.device)
    looks = [counter(config.seed, 0, "held_out", row) for row in range(config.held_out_crops)]
    heard = batch(held_out, samples, crop, looks).to(here.device)
    mine = here.share(torch.arange(config.train.batch)).tolist()

    def advance() -> dict[str, float]:
        draws = [counter(config.seed, trainee.step, "crops", row, trainee.returns) for row in mine]
        return update(trainee, batch(clips, samples, crop, draws).to(here.device), losses, config)

    def look(record: Record) -> None:
        record.add(trainee.step, "held_out", listen(trainee.average, heard, losses))
        some = heard[: config.sample_crops]
        record.hear(trainee.step, some, decoded(trainee.average, some), rate)

    loop.run(trainee, config, advance, look, progress)
    return trainee


@torch.no_grad()
def decoded(model: VAE, audio: Tensor) -> Tensor:
    """What crops [b n] sound like: the decoded posterior mean."""
    return model.decode(model.encode(audio).mean)
