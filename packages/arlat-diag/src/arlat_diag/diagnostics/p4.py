"""P4: the geometry of latent trajectories. How long is their memory, how many dimensions do they use, how rough are they?

Values are over held-out frames, standardised with the training moments; directions and effective dimension are of the
training covariance. x is a standardised frame, z one in the store's units, f the frame rate.

| key | definition | white noise |
| --- | --- | --- |
| p4.rho[k] | Σ ⟨x_t, x_{t+k}⟩ / Σ ½(‖x_t‖² + ‖x_{t+k}‖²) over all pairs in one utterance: the mean over dimensions of autocovariance / variance | 0 |
| p4.spectrum[i] | power at i·f/segment Hz: Hann periodograms of segments at half overlap, mean over dimensions, ÷ window power | 1 |
| p4.effective_dim | (tr C)² / tr C²; tr C² from pairs of different speakers, so that few frames do not bias it | D |
| p4.directions_{90,95,99} | eigenvectors of C that hold so much of the variance | ≈ D |
| p4.step_median | median ‖z_{t+1} − z_t‖ | ≈ √(2 tr C) |
| p4.step_relative.{q05,q25,q75,q95,q99} | quantiles of ‖z_{t+1} − z_t‖ ÷ its training median | near 1 |
| p4.lipschitz.{median,q95} | ‖x_{a+1} − x_{b+1}‖ / ‖x_a − x_b‖ for b the nearest training frame of a; its floor takes b+1 at random | its floor |
| p4.curvature | mean cos(z_{t+1} − z_t, z_{t+2} − z_{t+1}) | −1/2 |
| p4.distance_median | median ‖z_a − z_b‖ of random frames of different utterances | ≈ √(2 tr C) |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.intervals import Clusters, Floats, bootstrap_weights, clusters, make_curve, make_value, percentiles
from arlat_core.types import Result, Value
from pydantic import Field
from torch import Tensor

from arlat_diag.geometry import Frames, Scale, frames_of, nearest, scale_of, step_lengths, strangers

if TYPE_CHECKING:
    from arlat_data.store import LatentStore, Split

SHARES = (90, 95, 99)
QUANTILES = (5, 25, 75, 95, 99)


class Config(BaseConfig):
    """Settings of P4."""

    lags: int = Field(16, gt=0)
    """ρ_1 … ρ_lags."""
    segment: int = Field(32, gt=3)
    """Frames of one segment of the spectrum."""
    queries: int = Field(2000, gt=0)
    """At most so many held-out frames look for their nearest training frame."""
    reference: int = Field(20_000, gt=0)
    """At most so many training frames are searched."""
    pairs: int = Field(20_000, gt=0)
    """Pairs of random frames behind the median distance."""
    seed: int = 0
    """Seed of every choice of frames and of the bootstrap."""


@dataclass(frozen=True)
class Subject:
    """What the parts of P4 measure: both splits, their frames and the training scale."""

    train: Split
    held_out: Split
    train_frames: Frames
    frames: Frames
    scale: Scale
    mean: Tensor
    seed: int

    def value(self, numbers: Tensor, at: Frames, **options: Any) -> Value:
        """The figure of per-frame numbers [n] with its interval over speakers."""
        return make_value(numbers.double().numpy(), at.speaker.numpy(), at.utterance.numpy(), seed=self.seed, **options)


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs P4 on a store; writes nothing to `run_dir`. Definitions: this module's docstring."""
    progress("P4 geometry")
    train, held_out = store.load("train"), store.load("eval")
    mean, covariance = torch.as_tensor(store.mean), torch.as_tensor(store.covariance)
    scale = scale_of(mean, covariance)
    subject = Subject(train, held_out, frames_of(train), frames_of(held_out), scale, mean, config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    values = autocorrelation(subject, config.lags) | spectrum(subject, config.segment)
    progress("P4 dimension")
    values |= dimension(subject)
    progress("P4 neighbours")
    values |= lipschitz(subject, config, generator, device)
    stepping, notes = steps(subject)
    values |= stepping
    distance, first = strangers(held_out.z, subject.frames, config.pairs, generator)
    values["p4.distance_median"] = subject.value(distance, first, statistic="median")
    truth = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    values = {key: value.model_copy(update={"truth": truth.get(key)}) for key, value in values.items()}
    left_out = store.spec.dim - len(scale.kept)
    if left_out:
        notes.append(
            f"P4: {left_out} of {store.spec.dim} dimensions never vary and are left out where frames are standardised."
        )
    rate = store.spec.frame_rate
    settings = config.model_dump(mode="json") | {
        "spectrum_hz": [i * rate / config.segment for i in range(config.segment // 2 + 1)]
    }
    return Result(values=values, notes=notes, settings=settings)


def autocorrelation(subject: Subject, lags: int) -> dict[str, Value]:
    """p4.rho[1 … lags]: a ratio of sums per lag; a lag that no utterance is long enough for has no value."""
    x = subject.scale.apply(subject.held_out.z)
    power = x.square().mean(-1)
    out = {}
    for lag in range(1, lags + 1):
        at = subject.frames.followed(lag)
        product = torch.cat([(x[rows] * x[rows + lag]).mean(-1) for rows in torch.split(at.row, 65_536)])
        below = (power[at.row] + power[at.row + lag]) / 2
        out[f"p4.rho[{lag}]"] = subject.value(product, at, denominator=below.double().numpy(), floor=0.0)
    return out


def spectrum(subject: Subject, segment: int) -> dict[str, Value]:
    """p4.spectrum[0 … segment/2], relative to white noise of the same variance; the mean is not removed per segment."""
    window = torch.hann_window(segment)
    power, speaker, utterance = [], [], []
    names = sorted(set(subject.held_out.speakers))
    spans = zip(subject.held_out.start.tolist(), subject.held_out.length.tolist(), strict=True)
    for item, (start, length) in enumerate(spans):
        if length < segment:
            continue
        x = subject.scale.apply(subject.held_out.z[start : start + length])
        cut = x.unfold(0, segment, segment // 2) * window  # [s d segment]
        power.append(torch.fft.rfft(cut).abs().square().mean(1) / window.square().sum())
        speaker += [names.index(subject.held_out.speakers[item])] * len(cut)
        utterance += [item] * len(cut)
    table = torch.cat(power).double().numpy() if power else np.zeros((0, segment // 2 + 1))
    curve = make_curve(table, speaker, utterance, unit="relative to white noise", floor=1.0, seed=subject.seed)
    return {f"p4.spectrum[{i}]": value for i, value in enumerate(curve)}


def moments(subject: Subject) -> tuple[Floats, Floats, Clusters]:
    """Second moments about the training mean of each cluster of training frames, [clusters d d], and its frames [clusters].

    More clusters than fit half a gigabyte (256 at most, 20 at least) are folded into that many: still whole clusters are drawn.
    """
    frames = subject.train_frames
    group = clusters(frames.speaker.numpy(), frames.utterance.numpy())
    dim = subject.train.z.shape[1]
    count = min(group.count, 256, max(20, int(6e7 // dim**2)))
    index = torch.from_numpy(group.index) % count
    second, size = np.zeros((count, dim, dim)), np.zeros(count)
    for item in range(count):
        x = (subject.train.z[frames.row[index == item]] - subject.mean).double()
        second[item], size[item] = (x.mT @ x).numpy(), len(x)
    return second, size, Clusters(index.numpy(), count, group.resampled, group.n)


def dimension(subject: Subject, draws: int = 1000) -> dict[str, Value]:
    """p4.effective_dim and p4.directions_*, with intervals over training speakers; directions by fewer draws, as each is an O(D³)."""
    second, size, group = moments(subject)
    flat = second.reshape(group.count, -1)
    every = np.ones((1, group.count))
    some = bootstrap_weights(group.count, draws, subject.seed) if group.count > 1 else every[:0]
    ratio = participation(flat, size, np.vstack([every, some]))
    dim = subject.train.z.shape[1]
    few = int(min(100, max(20, 2e10 // dim**3)))
    shares = directions(flat, size, np.vstack([every, some[:few]]), dim)
    # a draw repeats speakers, which makes every covariance look lower-dimensional: the spread of the draws is kept, their offset is not
    shares[1:] += shares[0] - shares[1:].mean(0) if len(shares) > 1 else 0.0
    return {"p4.effective_dim": drawn_value(ratio, group)} | {
        f"p4.directions_{share}": drawn_value(shares[:, column], group) for column, share in enumerate(SHARES)
    }


def participation(flat: Floats, size: Floats, weights: Floats) -> Floats:
    """(tr C)² / tr C² [draws] for cluster weights [draws clusters] and second moments [clusters d·d].

    tr C² is the mean of ⟨S_g, S_h⟩ over pairs of different clusters g ≠ h: the products within a cluster, which noise
    makes too large, do not enter. One cluster alone has no such pair and is taken as it is.
    """
    dim = int(np.sqrt(flat.shape[1]))
    trace = flat[:, :: dim + 1].sum(1)
    gram, sizes = flat @ flat.T, np.outer(size, size)
    if len(size) > 1:
        np.fill_diagonal(gram, 0.0)
        np.fill_diagonal(sizes, 0.0)
    squares = ((weights @ gram) * weights).sum(1) / ((weights @ sizes) * weights).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = ((weights @ trace) / (weights @ size)) ** 2 / squares
    ratio[~(squares > 0)] = np.nan  # so few frames that chance outweighs tr C², or one draw of a single cluster
    return ratio


def directions(flat: Floats, size: Floats, weights: Floats, dim: int) -> Floats:
    """How many eigenvectors hold 90, 95 and 99 % of the variance, [draws 3]."""
    out = np.zeros((len(weights), len(SHARES)))
    for row, weight in enumerate(weights):
        covariance = (weight @ flat / (weight @ size)).reshape(dim, dim)
        share = np.cumsum(np.linalg.eigvalsh(covariance)[::-1].clip(min=0))
        out[row] = [np.searchsorted(share, part / 100 * share[-1] * (1 - 1e-12)) + 1 for part in SHARES]
    return out


def drawn_value(drawn: Floats, group: Clusters) -> Value:
    """A figure from its draws: the first is the value itself, the rest are the bootstrap."""
    value = float(drawn[0])
    if not np.isfinite(value):
        return Value(
            value=None, n=group.n, resampled=group.resampled, status="too few frames to tell tr C² from chance"
        )
    ends = np.stack(percentiles(drawn[1:, None], group.count))[:, 0] if group.count > 1 else np.full(2, np.nan)
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    status = "ok" if low is not None else "no interval: fewer than 2 speakers and 2 utterances"
    return Value(value=value, low=low, high=high, n=group.n, resampled=group.resampled, status=status)


def lipschitz(subject: Subject, config: Config, generator: torch.Generator, device: str) -> dict[str, Value]:
    """p4.lipschitz.*: do frames that lie near each other go on to lie near each other?"""
    reference = subject.train_frames.followed(1).choose(config.reference, generator)
    query = subject.frames.followed(1).choose(config.queries, generator)
    seen, asked = (subject.scale.apply(split.z) for split in (subject.train, subject.held_out))
    distance, index = nearest(asked[query.row].to(device), seen[reference.row].to(device), 1)
    apart, mate = distance[:, 0].cpu(), reference.row[index[:, 0].cpu()]
    moved = apart > 0
    chance = reference.row[torch.randint(len(reference.row), (len(query.row),), generator=generator)]
    future = asked[query.row + 1]
    ratio, floor = ((future - seen[rows + 1]).norm(dim=-1)[moved] / apart[moved] for rows in (mate, chance))
    at = query.take(moved)
    out = {}
    for name, level in (("median", 0.5), ("q95", 0.95)):
        known = float(floor.quantile(level)) if len(floor) else None
        out[f"p4.lipschitz.{name}"] = subject.value(ratio, at, statistic=level, floor=known)
    return out


def steps(subject: Subject) -> tuple[dict[str, Value], list[str]]:
    """p4.step_median, p4.step_relative.* and p4.curvature, with a note on frames that do not move."""
    length, at = step_lengths(subject.held_out.z, subject.frames)
    out = {"p4.step_median": subject.value(length, at, statistic="median")}
    trained = float(step_lengths(subject.train.z, subject.train_frames)[0].median())
    for share in QUANTILES if trained > 0 else ():
        out[f"p4.step_relative.q{share:02d}"] = subject.value(length / trained, at, statistic=share / 100)
    two = subject.frames.followed(2)
    z = subject.held_out.z
    first, second = z[two.row + 1] - z[two.row], z[two.row + 2] - z[two.row + 1]
    moving = (first.norm(dim=-1) > 0) & (second.norm(dim=-1) > 0)
    cosine = torch.cosine_similarity(first[moving], second[moving], dim=-1)
    out["p4.curvature"] = subject.value(cosine, two.take(moving), floor=-0.5)
    still = int((~moving).sum())
    return out, [
        f"P4: {still} of {len(moving)} pairs of steps hold one of length 0 and have no curvature."
    ] if still else []
