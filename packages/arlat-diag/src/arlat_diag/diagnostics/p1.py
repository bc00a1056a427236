"""P1: how predictable is the next displacement?

A mixture density network on the last 8 frames, at horizons 1, 2, 4, 8 (and in the lag form of earlier work), against
the whole ladder of baselines, with floors and the linear VAR beside it. Every figure is over held-out speakers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.intervals import make_value, worst
from arlat_core.types import Result, Value, WorstFrame
from arlat_data.store import LatentStore, Split
from arlat_data.windows import Slice, Windows, median_energy, windows
from arlat_dynamics import checkpoint
from arlat_dynamics.models.linear import LinearModel, fit_several
from arlat_dynamics.models.mdn import ResidualMixture
from arlat_dynamics.train import TrainConfig, fit, split_speakers
from pydantic import Field
from torch import Tensor

from arlat_diag.baselines import Baselines, Marginal, fit_displacement, fit_marginal

Kind = Literal["horizon", "lag"]


class Config(BaseConfig):
    """Settings of P1."""

    context: int = Field(8, gt=0)
    """Frames that the predictor sees."""
    horizons: tuple[int, ...] = (1, 2, 4, 8)
    """Horizons h of Δ^(h)."""
    lags: tuple[int, ...] = (2, 4, 8)
    """Lags k of the one-step displacement, the form of earlier work."""
    components: int = Field(8, gt=0)
    """Mixture components of the predictor, of B2 and of B5."""
    var_inputs: int = Field(2600, gt=0)
    """Inputs (frames × D) of the widest linear VAR tried; its cost grows with their cube. Order 1 is always tried."""
    median_draws: int = Field(256, gt=1)
    """Draws behind the two predictive medians of the step length."""
    median_frames: int = Field(2000, gt=1)
    """At most so many held-out frames enter the log-magnitude R²; fewer where D is large, 500 at least."""
    train: TrainConfig = TrainConfig()
    """Training of the predictor."""
    seed: int = 0
    """Seed of the validation split, the initial weights and every draw."""


@dataclass(frozen=True)
class Data:
    """The windows of one horizon or lag, and which training rows are for fitting and which for stopping."""

    train: Windows
    fit_rows: Tensor
    validation_rows: Tensor
    held_out: Windows


def prepare(store: LatentStore, train: Split, held_out: Split, kind: Kind, step: int, config: Config) -> Data:
    """Cuts both splits into windows; validation is a set of training speakers that the predictor never sees."""
    cut = windows(train, config.context, step, kind)
    rest = windows(held_out, config.context, step, kind)
    fit_rows, validation_rows = split_speakers(cut, seed=config.seed)
    if len(rest) == 0 or len(fit_rows) == 0 or len(validation_rows) == 0:
        raise ValueError(
            f"{store.path} has too few frames for a context of {config.context} and a {kind} of {step}: "
            f"{len(fit_rows)} rows to fit, {len(validation_rows)} to stop on, {len(rest)} held out. Give longer or more audio."
        )
    return Data(cut, fit_rows, validation_rows, rest)


@dataclass(frozen=True)
class Predictor:
    """What one horizon or lag is predicted with: the network, which holds the VAR, and B3."""

    model: ResidualMixture
    reversion: LinearModel


def fit_predictor(data: Data, config: Config, folder: Path, store: LatentStore, device: str) -> Predictor:
    """Loads the predictor of `folder`, or fits it (the linear models first, the network on the VAR's residuals) and saves it."""
    if checkpoint.exists(folder):
        model = checkpoint.load(folder, store.spec, ResidualMixture).to(device)
        return Predictor(model, checkpoint.load(folder / "reversion", store.spec, LinearModel))
    generator = torch.Generator().manual_seed(config.seed)
    linear, reversion = fit_linear_models(data, config, store.spec.dim)
    model = ResidualMixture.start(
        linear, data.train, data.fit_rows, data.validation_rows, config.components, generator
    ).to(device)
    fit(model, data.train, data.fit_rows, data.validation_rows, config.train, generator)
    checkpoint.save(reversion, folder / "reversion", store.spec)
    checkpoint.save(model, folder, store.spec)
    return Predictor(model, reversion)


def fit_linear_models(data: Data, config: Config, dim: int) -> tuple[LinearModel, LinearModel]:
    """The linear VAR, of an order that `var_inputs` allows, and B3."""
    orders = [order for order in (0, 1, 2, 4, config.context) if order <= 1 or order * dim <= config.var_inputs]
    linear, reversion = fit_several(data.train, data.fit_rows, data.validation_rows, [orders, (1,)])
    return linear, reversion


def linear_models(data: Data, config: Config, store: LatentStore, run_dir: Path) -> tuple[LinearModel, LinearModel]:
    """The VAR and B3 at horizon 1: those of the predictor under `run_dir`, fitted where it is not there."""
    folder = run_dir / "models" / "h1"
    if not checkpoint.exists(folder):
        return fit_linear_models(data, config, store.spec.dim)
    found = fit_predictor(data, config, folder, store, "cpu")
    return found.model.linear, found.reversion


def one_step_predictor(data: Data, store: LatentStore, config: Config, run_dir: Path, device: str) -> Predictor:
    """The predictor at horizon 1, which is also the one-step dynamics model of R1; trained when it is not there yet."""
    return fit_predictor(data, config, run_dir / "models" / "h1", store, device)


def fit_baselines(data: Data, config: Config, marginal: Marginal | None, found: Predictor) -> Baselines:
    """Fits the ladder of one horizon or lag on the training split."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    target = data.train.target
    displacement = fit_displacement(target[data.fit_rows], target[data.validation_rows], config.components, generator)
    return Baselines(displacement, None if marginal is None else found.reversion, found.model.linear, marginal)


@dataclass(frozen=True)
class Scores:
    """Per-frame scores on the held-out windows, each [n]; rows of `rest` are aligned with the windows."""

    nll: dict[str, Tensor]
    cosine: dict[str, Tensor]
    length: Tensor
    predicted_length: dict[str, Tensor]
    log_median: Tensor
    median_rows: Tensor


def score(model: ResidualMixture, baselines: Baselines, data: Data, config: Config, device: str) -> Scores:
    """Scores the predictor, the VAR and every baseline on all held-out windows, in blocks."""
    nll: dict[str, list[Tensor]] = {}
    cosine: dict[str, list[Tensor]] = {}
    length: list[Tensor] = []
    predicted: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(data.held_out)), 2048):
            batch = data.held_out.gather(rows)
            law = model.distribution(batch.context.to(device))
            means = {"model": law.mean().cpu(), "var": baselines.var.distribution(batch.context).mean()}
            if baselines.reversion is not None:
                means["floor"] = baselines.reversion.distribution(batch.context).mean()
            parts = {"model": -law.log_prob(batch.target.to(device)).cpu()}
            parts["var"] = -baselines.var.distribution(batch.context).log_prob(batch.target)
            parts |= {name: baselines.nll(name, batch) for name in baselines.names()}
            for name, value in parts.items():
                nll.setdefault(name, []).append(value)
            for name, value in means.items():
                cosine.setdefault(name, []).append(torch.cosine_similarity(value, batch.target, dim=-1))
                predicted.setdefault(name, []).append(value.norm(dim=-1))
            length.append(batch.target.norm(dim=-1))
    rows = median_rows(len(data.held_out), min(config.median_frames, max(500, 2**19 // model.dim)))
    return Scores(
        {name: torch.cat(value).double() for name, value in nll.items()},
        {name: torch.cat(value).double() for name, value in cosine.items()},
        torch.cat(length).double(),
        {name: torch.cat(value).double() for name, value in predicted.items()},
        predictive_log_median(model, data.held_out, rows, config, device),
        rows,
    )


def median_rows(count: int, at_most: int) -> Tensor:
    """Evenly spaced rows, at most `at_most` of them."""
    return torch.linspace(0, count - 1, min(count, at_most)).round().long()


def predictive_log_median(
    model: ResidualMixture, held_out: Windows, rows: Tensor, config: Config, device: str
) -> Tensor:
    """log of the predictive median of ‖Δ‖ for `rows`, twice, from one half of the draws each, [2 r].

    The product of the two errors is an estimate of the squared error that the draws' own noise does not bias.
    """
    generator = torch.Generator(device).manual_seed(config.seed + 2)
    block = max(1, int(2e7 // (config.median_draws * model.dim)))
    parts = []
    with torch.no_grad():
        for part in torch.split(rows, block):
            context = held_out.gather(part).context.to(device)
            lengths = model.distribution(context).expand(config.median_draws).sample(generator).norm(dim=-1)
            halves = lengths[: config.median_draws // 2 * 2].unflatten(0, (2, -1))
            parts.append(halves.quantile(0.5, dim=1).log().cpu())
    return torch.cat(parts, 1).double()


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs P1 on a store; fitted predictors stay under `run_dir`/models, so that a killed run goes on.

    Source of the headline ΔNLL_B5 and of every definition: SPEC §12.1–12.3.
    """
    train, held_out = store.load("train"), store.load("eval")
    truth = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    result: dict[str, Value] = {}
    worst_frames: list[WorstFrame] = []
    notes: list[str] = []
    marginal: Marginal | None = None
    cases: list[tuple[Kind, int]] = [("horizon", h) for h in config.horizons] + [("lag", k) for k in config.lags]
    for kind, step in cases:
        name = f"h{step}" if kind == "horizon" else f"lag{step}"
        progress(f"P1 {name}")
        data = prepare(store, train, held_out, kind, step, config)
        found = fit_predictor(data, config, run_dir / "models" / name, store, device)
        model = found.model
        if kind == "horizon" and marginal is None:
            marginal = marginal_of(data, config)
        baselines = fit_baselines(data, config, marginal if kind == "horizon" else None, found)
        scores = score(model, baselines, data, config, device)
        result |= figures(f"p1.{name}", scores, data, store, truth)
        if kind == "horizon" and step == 1:
            result |= slices(scores, data, train, held_out, config)
            worst_frames = worst(
                (scores.nll["model"] - scores.nll["b5"]).numpy(),
                "p1.h1.dnll_b5",
                [held_out.ids[index] for index in data.held_out.utterance.tolist()],
                data.held_out.frame.numpy(),
                20,
            )
        saturated = model.saturated_fraction(
            data.held_out.gather(median_rows(len(data.held_out), 2000)).context.to(device)
        )
        if saturated > 0.01:
            notes.append(f"p1.{name}: {100 * saturated:.1f} % of the predicted scales are near their bounds.")
        notes += overfit(result, f"p1.{name}", data, store.spec.dim)
        notes.append(f"p1.{name}: linear order {model.linear.order}, ridge {model.linear.ridge:.3g}.")
    return Result(values=result, worst=worst_frames, notes=notes, settings=config.model_dump(mode="json"))


def overfit(values: dict[str, Value], prefix: str, data: Data, dim: int) -> list[str]:
    """A sentence where the predictor is worse than knowing nothing on held-out speakers: its figures say so of itself."""
    found = values.get(f"{prefix}.dnll_b5")
    if found is None or found.low is None or found.low <= 0:
        return []
    speakers = int(data.train.speaker.max()) + 1
    return [
        f"{prefix}: on held-out speakers the predictor is worse than the marginal. {len(data.fit_rows)} training windows of "
        f"{speakers} speakers are too few for D = {dim}: read its figures as bounds, and give more speech or a readout."
    ]


def marginal_of(data: Data, config: Config) -> Marginal:
    """B5 on the frames that follow a whole context: what the model is fitted on, so that neither knows of others.

    A codec's first frames may lie far from all that follow; a marginal that has seen them is wide, and any model beats it.
    """
    generator = torch.Generator().manual_seed(config.seed + 3)
    after = data.train.z[data.train.index + 1]
    return fit_marginal(after[data.fit_rows], after[data.validation_rows], config.components, generator)


def figures(prefix: str, scores: Scores, data: Data, store: LatentStore, truth: dict[str, float]) -> dict[str, Value]:
    """The figures of one horizon or lag, each with interval, count, floor and (on a synthetic store) truth."""
    speaker, utterance = data.held_out.speaker.numpy(), data.held_out.utterance.numpy()
    dim, rate = store.spec.dim, store.spec.frame_rate

    def value(
        key: str, rows: Tensor | None, array: Tensor, below: Tensor | None = None, **more: float | str | None
    ) -> None:
        at = slice(None) if rows is None else rows.numpy()
        out[f"{prefix}.{key}"] = make_value(
            array.numpy(),
            speaker[at],
            utterance[at],
            denominator=None if below is None else below.numpy(),
            truth=truth.get(f"{prefix}.{key}"),
            **more,
        )

    out: dict[str, Value] = {}
    nll = scores.nll
    floors = {"b0": -(dim / 2) * float(np.log(2)), "b5": 0.0, "b5_gaussian": 0.0, "b3": 0.0, "b4": 0.0}
    for name in (name for name in nll if name not in ("model", "var")):
        value(f"dnll_{name}", None, nll["model"] - nll[name], unit="nats/frame", floor=floors.get(name))
    value("nll", None, nll["model"], unit="nats/frame")
    value("var_dnll_b0", None, nll["var"] - nll["b0"], unit="nats/frame", floor=floors["b0"])
    if "b5" in nll:
        value("var_dnll_b5", None, nll["var"] - nll["b5_gaussian"], unit="nats/frame", floor=0.0)
        information = -(nll["model"] - nll["b5"]) * rate / float(np.log(2))
        value("information_rate", None, information, unit="bit/s", floor=0.0)
    moving = (scores.length > 0.05 * scores.length.median()).nonzero()[:, 0]
    floor = float(scores.cosine["floor"][moving].mean()) if "floor" in scores.cosine else None
    value("cosine", moving, scores.cosine["model"][moving], floor=floor)
    value("var_cosine", moving, scores.cosine["var"][moving], floor=floor)
    if "floor" in scores.cosine:
        value("cosine_floor", moving, scores.cosine["floor"][moving])
    value("cosine_null", moving, torch.full((len(moving),), dim**-0.5, dtype=torch.float64))
    value("magnitude_ratio", None, scores.predicted_length["model"], below=scores.length, unit="true steps")
    value("var_magnitude_ratio", None, scores.predicted_length["var"], below=scores.length, unit="true steps")
    value(
        "magnitude_ratio_median", moving, (scores.predicted_length["model"] / scores.length)[moving], statistic="median"
    )
    rows = scores.median_rows[scores.length[scores.median_rows] > 0]
    keep = scores.length[scores.median_rows] > 0
    log_m = scores.length[rows].log()
    trained = data.train.target[data.fit_rows].norm(dim=-1).double()
    error = (log_m - scores.log_median[:, keep]).prod(0)
    spread = (log_m - trained[trained > 0].log().mean()) ** 2
    value("logmag_r2", rows, spread - error, below=spread, floor=0.0)
    return out


def slices(scores: Scores, data: Data, train: Split, held_out: Split, config: Config) -> dict[str, Value]:
    """ΔNLL_B5 at horizon 1 on the slices of SPEC D9, from the scores already there."""
    out: dict[str, Value] = {}
    every = list(zip(data.held_out.utterance.tolist(), data.held_out.frame.tolist(), strict=True))
    gain = (scores.nll["model"] - scores.nll["b5"]).numpy()
    names: tuple[Slice, ...] = ("high_energy", "medial")
    for name in names:
        if name == "high_energy" and not bool(torch.isfinite(train.energy).any()):
            continue
        threshold = median_energy(train) if name == "high_energy" else None
        part = windows(held_out, config.context, 1, "horizon", slice=name, threshold=threshold)
        wanted = set(zip(part.utterance.tolist(), part.frame.tolist(), strict=True))
        at = np.array([pair in wanted for pair in every])
        if at.any():
            out[f"p1.slice.{name}.h1.dnll_b5"] = make_value(
                gain[at],
                data.held_out.speaker.numpy()[at],
                data.held_out.utterance.numpy()[at],
                unit="nats/frame",
                floor=0.0,
            )
    return out
