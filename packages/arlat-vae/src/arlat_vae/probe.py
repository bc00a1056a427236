"""What frozen latents are worth to a predictor that is trained on them from scratch: the judge of AR losses, never trained against.

It is a quick look beside training; the battery (`arlat diag battery`) measures the same with its own models and baselines.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.distributions import StepDistribution
from arlat_core.intervals import make_value
from arlat_core.types import Value
from pydantic import Field
from torch import Tensor

from arlat_vae.predictor import FLOOR, TINY, Predictor, PredictorConfig, build_predictor

LOOK_EVERY = 25  # steps between two looks at the part that decides when to stop
KEPT_BACK = 5  # one in so many training utterances decides it


class ProbeConfig(BaseConfig):
    """How the probe is trained."""

    steps: int = Field(default=400, gt=0)
    """Steps of AdamW; the best look at utterances kept back is taken."""
    batch: int = Field(default=256, gt=0)
    """Windows in a step."""
    predictor: PredictorConfig = PredictorConfig(window_frames=8)
    """Its shape; 8 frames as the battery's predictors."""


@dataclass(frozen=True)
class Sequences:
    """Utterances of latents, each [t d], and who speaks."""

    z: Sequence[Tensor]
    speakers: Sequence[str]

    @cached_property
    def frames(self) -> Tensor:
        """All of them, one after the other [T d]."""
        return torch.cat([one.float().cpu() for one in self.z])

    def targets(self, width: int) -> tuple[Tensor, Tensor]:
        """Rows of `frames` [n] that have `width` frames of their utterance before them, and the utterance of each."""
        length = torch.tensor([len(one) for one in self.z])
        start = length.cumsum(0) - length
        rows = [torch.arange(int(a) + min(width, int(n)), int(a + n)) for a, n in zip(start, length, strict=True)]
        return torch.cat(rows), torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in rows]))


def probe(
    train: Sequences, held_out: Sequences, frame_rate: float, config: ProbeConfig, seed: int = 0
) -> dict[str, Value]:
    """The figures of latents, by their names in docs/metrics.md, on the held-out utterances.

    Raises UserError where no utterance of one part is longer than the window.
    """
    width = config.predictor.window_frames
    rows, utterance = train.targets(width)
    held_rows, held_utterance = held_out.targets(width)
    if not len(rows) or not len(held_rows):
        raise UserError(
            f"The probe needs utterances longer than its window of {width} frames, for training and held out, but the longest have "
            f"{max(map(len, train.z))} and {max(map(len, held_out.z))}. Give longer ones, or a smaller probe.predictor.window_frames."
        )
    centre, whiten = whitening(train.frames[rows])
    y, held_y = ((part.frames - centre) @ whiten for part in (train, held_out))
    step = (y[rows] - y[rows - 1]).square().mean(0)
    unit = (step + FLOOR * step.mean() + TINY).sqrt()
    predictor = fit(y, unit, rows, utterance, config, seed)
    nll = surprise(predictor, held_y, unit, held_rows)
    reversion = reversion_nll(y, unit, rows, held_y, held_rows)
    marginal = gaussian_nll(y[rows], held_y[held_rows])
    information = marginal - (nll + unit.double().log().sum())
    moved = (held_out.frames[held_rows] - held_out.frames[held_rows - 1]).square().sum(-1)
    spread = (held_out.frames[held_rows] - held_out.frames[held_rows].mean(0)).square().sum(-1)
    who = [held_out.speakers[index] for index in held_utterance.tolist()], held_utterance.numpy()
    dim = y.shape[1]
    floor = float(reversion.mean()) / dim
    found = {
        "probe.pred": make_value(nll / dim, *who, unit="nats per dimension", floor=floor),
        "probe.information": make_value(information, *who, unit="nats per frame", floor=0.0),
        "probe.information_rate": make_value(information * (frame_rate / math.log(2)), *who, unit="bit/s", floor=0.0),
        "probe.smooth": make_value(moved, *who, denominator=spread, floor=2.0),
    }
    if len(rows) <= dim:  # a Gaussian of so few frames has no density: whatever is held against it is won
        none: dict[str, Any] = dict.fromkeys(("value", "low", "high", "median", "trimmed_mean"))
        none["status"] = f"{len(rows)} training frames say nothing of the marginal of {dim} dimensions"
        found |= {key: found[key].model_copy(update=none) for key in ("probe.information", "probe.information_rate")}
    return found


def whitening(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and the map [d d] after which frames [T d] have covariance 1, but for directions of less than a hundredth of the spread.

    A predictor whose law has no correlations would else be charged for those that the marginal knows of. Frames are those that are
    predicted: with an utterance's first ones, which may lie far from the rest, the others would be of less than that hundredth.
    """
    mean = z.double().mean(0)
    values, vectors = torch.linalg.eigh((z.double() - mean).T.cov(correction=0).reshape(z.shape[1], z.shape[1]))
    values = values.clamp(min=0)
    return mean.float(), (vectors * (values + FLOOR * values.mean() + TINY).rsqrt()).float()


def windows(y: Tensor, rows: Tensor, width: int) -> Tensor:
    """[n w d], the frames before `rows` [n] of y [T d]."""
    return y[rows[:, None] + torch.arange(-width, 0)]


@torch.no_grad()
def surprise(predictor: Predictor, y: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
    """−log p(δ) [n] in nats, float64, of the frames at `rows`."""
    return torch.cat([negative_log_prob(predictor, y, unit, part).double() for part in torch.split(rows, 1024)])


def negative_log_prob(predictor: Predictor, y: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
    """−log p(δ) [n] with gradients."""
    law: StepDistribution = predictor(windows(y, rows, predictor.window_frames))
    return -law.log_prob((y[rows] - y[rows - 1]) / unit)


def fit(y: Tensor, unit: Tensor, rows: Tensor, utterance: Tensor, config: ProbeConfig, seed: int) -> Predictor:
    """A predictor from scratch, at its best look at every fifth utterance (at the last fifth of the only one)."""
    generator = torch.Generator().manual_seed(seed)
    predictor = build_predictor(y.shape[1], config.predictor, generator)
    several = len(utterance.unique()) > 1  # type: ignore[no-untyped-call]
    kept = utterance % KEPT_BACK == 0 if several else torch.arange(len(rows)) >= len(rows) * (1 - 1 / KEPT_BACK)
    kept = kept if bool((~kept).any()) else torch.arange(len(rows)) % 2 == 0
    learned, watched = rows[~kept], rows[kept]
    optimiser = torch.optim.AdamW(predictor.parameters(), config.predictor.lr)
    best, least = copy.deepcopy(predictor.state_dict()), float(surprise(predictor, y, unit, watched).mean())
    for step in range(1, config.steps + 1):
        drawn = learned[torch.randint(len(learned), (config.batch,), generator=generator)]
        loss = negative_log_prob(predictor, y, unit, drawn).mean() / y.shape[1]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimiser.step()
        if step % LOOK_EVERY == 0 or step == config.steps:
            now = float(surprise(predictor, y, unit, watched).mean())
            if now < least:
                best, least = copy.deepcopy(predictor.state_dict()), now
    predictor.load_state_dict(best)
    return predictor


def reversion_nll(y: Tensor, unit: Tensor, rows: Tensor, held_y: Tensor, held_rows: Tensor) -> Tensor:
    """−log p(δ) [n] of the Gaussian whose mean is linear in the frame before, each dimension by itself, fitted on `rows`."""
    before, step = y[rows - 1].double(), ((y[rows] - y[rows - 1]) / unit).double()
    centre, level = before.mean(0), step.mean(0)
    spread = (before - centre).square().mean(0) + TINY
    slope = ((before - centre) * (step - level)).mean(0) / spread
    left = (step - level - slope * (before - centre)).square().mean(0) + TINY
    error = ((held_y[held_rows] - held_y[held_rows - 1]) / unit).double() - level
    error = error - slope * (held_y[held_rows - 1].double() - centre)
    return 0.5 * (error.square() / left + left.log() + math.log(2 * math.pi)).sum(-1)


def gaussian_nll(known: Tensor, x: Tensor) -> Tensor:
    """−log p(x) [n] of the full Gaussian fitted on `known` [m d]: a frame without its past."""
    known, x = known.double(), x.double()
    covariance = known.T.cov(correction=0).reshape(known.shape[1], known.shape[1])
    covariance = covariance + (1e-6 * covariance.diagonal().mean() + TINY) * torch.eye(len(covariance))
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, (x - known.mean(0)).T, upper=False)
    whole = len(covariance) * math.log(2 * math.pi) + 2 * factor.diagonal().log().sum()
    nll: Tensor = 0.5 * (white.square().sum(0) + whole)
    return nll
