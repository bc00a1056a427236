"""P0: do clusters of contexts tell the next step? Variance ratios of k-means clusters, after SPEC §12.6.

Lag form: Δ_t = z_t − z_{t−1} and a context of frames up to z_{t−k}. The key of a context is the mean of its last 8 frames
(standardised with the training moments of z), turned onto its first 32 principal axes and not whitened. Centres are fitted on
training contexts. Δ is standardised with its own training moments: x. Only clusters of enough training frames count.

| key | definition | knowing nothing |
| --- | --- | --- |
| p0.lag{k}.variance_ratio | Σ ⟨x − a_c, x − b_c⟩ / Σ ⟨x − a, x − b⟩ over held-out frames; a, b: means of x over either half of the training utterances, a_c, b_c: those in cluster c | 1 |
| p0.lag{k}.permuted | the same with cluster ids permuted among frames: must be 1.00 ± 0.01 | 1 |
| p0.lag{k}.mean_reversion | the same for clusters of the newest frame z_{t−k} alone, which hold mean reversion | 1 |
| p0.lag{k}.linear_variance_ratio | 1 − R² of the linear regression of Δ on z_{t−k} | 1 |
| p0.lag{k}.cross_speaker_loss | ratio on held-out speakers − ratio on other utterances of the training speakers; centres and means of half of their utterances | 0 |

The product of the errors of two independent means is an unbiased estimate of the squared error of the true cluster mean;
the plain square is too large by 1/n_c, which at 100 frames would be all of the ± 0.01 that the control may be off. The total
is taken in the same way: where utterances differ in their mean step, halves do too, and that is no gain of clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.intervals import bootstrap_weights, clusters, make_value, percentiles
from arlat_core.types import Count, Result, Value
from arlat_data.windows import Windows, windows
from arlat_dynamics.clustering import k_means
from arlat_dynamics.models.linear import LinearModel, fit_linear
from arlat_dynamics.train import split_speakers
from pydantic import Field
from torch import Tensor

from arlat_diag.geometry import Scale, scale_of
from arlat_diag.utterance_halves import halves, rank

if TYPE_CHECKING:
    from arlat_data.store import LatentStore

BAR = 0.6
CONTROL_TOLERANCE = 0.01
FEWEST_IN_HALF = 10  # frames of a cluster in either half of the training utterances: a mean of fewer is mostly noise
BLOCK = 16_384  # frames in memory at a time


class Config(BaseConfig):
    """Settings of P0."""

    lags: tuple[int, ...] = (1, 2, 4)
    """Lags k: the one-step Δ_t from frames up to z_{t−k}."""
    context: int = Field(8, gt=0)
    """Frames that are pooled to a context's key."""
    dimensions: int = Field(32, gt=0)
    """Principal axes of the keys that are kept."""
    clusters: int = Field(64, gt=1)
    """Clusters K."""
    fewest_frames: int = Field(100, gt=1)
    """A cluster of fewer training frames does not count."""
    iterations: int = Field(20, ge=0)
    """Lloyd's steps of k-means."""
    rows: int = Field(20_000, gt=1)
    """At most so many training contexts place the centres; all are assigned to them."""
    seed: int = 0
    """Seed of the centres, the halves of utterances, the permutations, the regression's validation speakers and the bootstrap."""


@dataclass(frozen=True)
class Subject:
    """The windows of one lag; masks [N] of the training frames: `half` parts the utterances behind the two means, and
    `known` has every other utterance of each speaker, from which the loss on new speakers takes its centres and means."""

    train: Windows
    held_out: Windows
    known: Tensor
    half: Tensor
    frames: Scale
    steps: Scale
    config: Config

    def x(self, cut: Windows, rows: Tensor) -> Tensor:
        """Standardised Δ [n kept] of the windows `rows`."""
        return self.steps.apply(steps_of(cut, rows))


@dataclass(frozen=True)
class Errors:
    """Within-cluster and total squared error of evaluated frames, each [n] float64, and where those frames come from."""

    within: Tensor
    total: Tensor
    speaker: Tensor
    utterance: Tensor


@dataclass(frozen=True)
class Means:
    """Mean of x per half and cluster, [2 K kept] float64, and over all clusters, [2 kept]; `counted` [K]: which clusters count."""

    mean: Tensor
    overall: Tensor
    counted: Tensor


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs P0 on a store; writes nothing to `run_dir`. Definitions: this module's docstring.

    A lag that leaves fewer windows than clusters is not run, and a note says so.
    """
    train, held_out = store.load("train"), store.load("eval")
    frames = scale_of(torch.as_tensor(store.mean), torch.as_tensor(store.covariance))
    truth = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    values: dict[str, Value] = {}
    notes: list[str] = []
    for lag in config.lags:
        progress(f"P0 lag{lag}")
        cut, rest = (windows(split, config.context, lag, "lag") for split in (train, held_out))
        if len(cut) < config.clusters or len(rest) == 0:
            why = (
                f"{len(cut)} training and {len(rest)} held-out windows of {config.context} frames and lag {lag}; P0 needs one "
                f"per cluster ({config.clusters}) and one at least"
            )
            none = Count(speakers=0, utterances=0, frames=0)
            values[f"p0.lag{lag}.variance_ratio"] = Value(value=None, n=none, status=f"not run: {why}", floor=1.0)
            notes.append(f"p0.lag{lag}: not run on {why}. Give longer or more audio, or fewer clusters.")
            continue
        place = rank(cut, config.seed)
        subject = Subject(cut, rest, place % 2 == 0, halves(place, cut.speaker), frames, step_scale(cut), config)
        found, said = one_lag(subject, f"p0.lag{lag}", device)
        best = truth.get(f"p0.lag{lag}.linear_variance_ratio")
        for key, value in found.items():
            # a store that knows its linear ratio is Gaussian and linear: no function of the context explains more
            ceiling = best if key.endswith((".variance_ratio", ".mean_reversion")) else None
            values[key] = value.model_copy(update={"truth": truth.get(key), "ceiling": ceiling})
        notes += said
    return Result(values=values, notes=notes, settings=config.model_dump(mode="json"))


def one_lag(subject: Subject, prefix: str, device: str) -> tuple[dict[str, Value], list[str]]:
    """Every figure of one lag, and the notes on it."""
    config = subject.config
    generator = torch.Generator().manual_seed(config.seed)
    held_out = torch.arange(len(subject.held_out))
    every = torch.ones(len(subject.train), dtype=torch.bool)

    def measured(ids: Tensor, held_ids: Tensor) -> tuple[Value, Means]:
        means = fit_means(subject, ids, every)
        return ratio(errors(subject, subject.held_out, held_out, held_ids, means), config.seed), means

    ids, held_ids = cluster(subject, config.context, every, generator, device)
    found, means = measured(ids, held_ids)
    mixed = (part[torch.randperm(len(part), generator=generator)] for part in (ids, held_ids))
    values = {
        f"{prefix}.variance_ratio": found,
        f"{prefix}.permuted": measured(*mixed)[0],
        f"{prefix}.mean_reversion": measured(*cluster(subject, 1, every, generator, device))[0],
        f"{prefix}.linear_variance_ratio": ratio(linear_errors(subject), config.seed),
        f"{prefix}.cross_speaker_loss": cross_speaker_loss(subject, generator, device),
    }
    notes = left_out(prefix, config, means, held_ids)
    return values, notes + verdicts(prefix, values)


def steps_of(cut: Windows, rows: Tensor) -> Tensor:
    """Δ [n d] of the windows `rows`, without their contexts."""
    at = cut.index[rows] + cut.step
    return cut.z[at] - cut.z[at - 1]


def blocks(count: int) -> tuple[Tensor, ...]:
    """Positions 0 … count − 1 in blocks."""
    return torch.split(torch.arange(count), BLOCK)


def step_scale(cut: Windows) -> Scale:
    """Mean and standard deviation of the training Δ per dimension; dimensions that never move are left out."""
    dim = cut.z.shape[1]
    first, second = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for rows in blocks(len(cut)):
        first += steps_of(cut, rows).double().sum(0)
    mean = first / len(cut)
    for rows in blocks(len(cut)):
        second += (steps_of(cut, rows).double() - mean).square().sum(0)
    return scale_of(mean, torch.diag(second / len(cut)))


def cluster(
    subject: Subject, width: int, used: Tensor, generator: torch.Generator, device: str
) -> tuple[Tensor, Tensor]:
    """Cluster ids [N] of training and held-out windows, by the mean of the newest `width` frames of the context.

    Axes and centres are of the training contexts that the mask `used` [N] picks.
    """
    config, train = subject.config, subject.train
    rows = used.nonzero()[:, 0]
    some = rows[torch.randperm(len(rows), generator=generator)[: max(config.rows, config.clusters)]]
    pooled = torch.cat([pool(subject.frames, train, rows, width) for rows in torch.split(some, BLOCK)])
    axes = torch.linalg.eigh(torch.cov(pooled.double().mT, correction=0).reshape(pooled.shape[1], -1)).eigenvectors
    axes = axes.flip(-1)[:, : config.dimensions].float()
    centres = k_means(pooled @ axes, config.clusters, generator, config.iterations).to(device)

    def nearest(cut: Windows) -> Tensor:
        keys = (pool(subject.frames, cut, rows, width) @ axes for rows in blocks(len(cut)))
        return torch.cat([torch.cdist(key.to(device), centres).argmin(-1).cpu() for key in keys])

    return nearest(train), nearest(subject.held_out)


def pool(scale: Scale, cut: Windows, rows: Tensor, width: int) -> Tensor:
    """Mean of the newest `width` standardised frames of each context, [n kept]."""
    at = cut.index[rows]
    total = scale.apply(cut.z[at])
    for back in range(1, width):
        total += scale.apply(cut.z[at - back])
    return total / width


def fit_means(subject: Subject, ids: Tensor, used: Tensor) -> Means:
    """Cluster means of x over the training frames that the mask `used` [N] picks, one per half of the utterances."""
    count = subject.config.clusters
    sums = torch.zeros(2 * count, len(subject.steps.kept), dtype=torch.float64)
    place = ids + count * subject.half.long()
    for rows in torch.split(used.nonzero()[:, 0], BLOCK):
        sums.index_add_(0, place[rows], subject.x(subject.train, rows).double())
    size = torch.bincount(place[used], minlength=2 * count).reshape(2, count)
    mean = sums.reshape(2, count, -1) / size.clamp_min(1)[..., None]
    overall = sums.reshape(2, count, -1).sum(1) / size.sum(1).clamp_min(1)[:, None]
    return Means(mean, overall, (size.sum(0) >= subject.config.fewest_frames) & (size.amin(0) >= FEWEST_IN_HALF))


def errors(subject: Subject, cut: Windows, rows: Tensor, ids: Tensor, means: Means) -> Errors:
    """Errors of those windows `rows` whose cluster counts; `ids` is of all windows of `cut`."""
    rows = rows[means.counted[ids[rows]]]
    within, total = [], []
    for part in torch.split(rows, BLOCK):
        x = subject.x(cut, part).double()
        first, second = means.mean[:, ids[part]]
        within.append(((x - first) * (x - second)).sum(-1))
        total.append(((x - means.overall[0]) * (x - means.overall[1])).sum(-1))
    return Errors(torch.cat(within), torch.cat(total), cut.speaker[rows], cut.utterance[rows])


def linear_errors(subject: Subject) -> Errors:
    """Errors of the linear regression on z_{t−k}, shrunk as far as training speakers left out of it ask for (B3's form)."""
    train, held_out = subject.train, subject.held_out
    fit_rows, validation_rows = split_speakers(train, seed=subject.config.seed)
    model: LinearModel = fit_linear(train, fit_rows, validation_rows, (1,))
    within, total = [], []
    for rows in blocks(len(held_out)):
        batch = held_out.gather(rows)
        x, guess = subject.steps.apply(batch.target), subject.steps.apply(model.predict(batch.context))
        within.append((x - guess).double().square().sum(-1))
        total.append(x.double().square().sum(-1))
    return Errors(torch.cat(within), torch.cat(total), held_out.speaker, held_out.utterance)


def ratio(found: Errors, seed: int) -> Value:
    """Within-cluster over total squared error, with its interval over held-out speakers."""
    return make_value(
        found.within.numpy(),
        found.speaker.numpy(),
        found.utterance.numpy(),
        denominator=found.total.numpy(),
        floor=1.0,
        seed=seed,
    )


def cross_speaker_loss(subject: Subject, generator: torch.Generator, device: str) -> Value:
    """Ratio on held-out speakers − ratio on the training speakers' utterances that centres and means were not taken from."""
    known, rest = subject.known, subject.held_out
    if int(known.sum()) < subject.config.clusters:
        group = clusters(rest.speaker.numpy(), rest.utterance.numpy())
        why = "half of the training utterances have fewer frames than there are clusters"
        return Value(value=None, n=group.n, resampled=group.resampled, status=why, floor=0.0)
    ids, held_ids = cluster(subject, subject.config.context, known, generator, device)
    means = fit_means(subject, ids, known)
    strange = errors(subject, rest, torch.arange(len(rest)), held_ids, means)
    familiar = errors(subject, subject.train, (~known).nonzero()[:, 0], ids, means)
    return difference(strange, familiar, subject.config.seed)


def difference(strange: Errors, familiar: Errors, seed: int) -> Value:
    """The ratio of `strange` − that of `familiar`, whose speakers are drawn apart; counts are those of `strange`."""
    drawn, counts = [], []
    for salt, part in enumerate((strange, familiar)):
        group = clusters(part.speaker.numpy(), part.utterance.numpy())
        sums = np.zeros((2, group.count))
        np.add.at(sums[0], group.index, part.within.numpy())
        np.add.at(sums[1], group.index, part.total.numpy())
        some = bootstrap_weights(group.count, 1000, seed + salt) if group.count > 1 else None
        weights = np.vstack([np.ones((1, group.count)), *([] if some is None else [some])])
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append((weights @ sums[0]) / (weights @ sums[1]))
        counts.append(group.count)
    group = clusters(strange.speaker.numpy(), strange.utterance.numpy())
    if min(counts) == 0:
        why = (
            "no held-out frame lies in a cluster that counts"
            if counts[0] == 0
            else "no second utterance of a training speaker lies in a cluster that counts"
        )
        return Value(value=None, n=group.n, resampled=group.resampled, status=why, floor=0.0)
    value = float(drawn[0][0] - drawn[1][0])
    if min(counts) == 1:
        status = "no interval: fewer than 2 speakers and 2 utterances"
        return Value(value=value, n=group.n, resampled=group.resampled, status=status, floor=0.0)
    low, high = percentiles((drawn[0] - drawn[1])[1:, None], min(counts))
    return Value(value=value, low=float(low[0]), high=float(high[0]), n=group.n, resampled=group.resampled, floor=0.0)


def left_out(prefix: str, config: Config, means: Means, held_ids: Tensor) -> list[str]:
    """A sentence on the clusters that do not count, where there are any."""
    small = int((~means.counted).sum())
    if not small:
        return []
    share = 100 * float((~means.counted[held_ids]).double().mean())
    return [
        f"{prefix}: {small} of {config.clusters} clusters have fewer than {config.fewest_frames} training frames, or fewer than "
        f"{FEWEST_IN_HALF} in a half of the training utterances, and do not count; {share:.1f} % of the held-out frames lie in them."
    ]


def verdicts(prefix: str, values: dict[str, Value]) -> list[str]:
    """Whether the ratio passes the bar, and whether the control is what it must be."""
    found, control = (values[f"{prefix}.{key}"].value for key in ("variance_ratio", "permuted"))
    out = []
    if found is None:
        out.append(f"{prefix}: no cluster counts. Give more speech, or ask for fewer clusters.")
    else:
        verdict = "passes" if found < BAR else "does not pass"
        out.append(f"{prefix}: the variance ratio {found:.3f} {verdict} the bar of {BAR}.")
    if control is not None and abs(control - 1) > CONTROL_TOLERANCE:
        out.append(
            f"{prefix}: the permuted control is {control:.3f}, not 1.00 ± {CONTROL_TOLERANCE}: there are too few frames for "
            "these clusters, and the ratio is not to be trusted."
        )
    return out
