"""P2: direction and magnitude of the next step apart, and whether κ and σ mean what they say.

A residual MLP with a von Mises–Fisher × LogNormal head on P1's windows at horizon 1, scored on held-out speakers. With
m = ‖Δ‖ and u = Δ/m its NLL is NLL_dir(u) + NLL_mag(m) + (D − 1)·log m. Frames with Δ = 0 have no direction: they are
counted and left out, of training too.

| key | definition |
| --- | --- |
| p2.nll, p2.nll_dir, p2.nll_mag, p2.jacobian | NLL in the coordinates of Δ, and its three parts |
| p2.dnll_dir_uniform, p2.dnll_dir_marginal | NLL_dir against uniform directions and against the vMF law of training directions |
| p2.dnll_dir_expected | −KL(vMF(κ) ‖ uniform): what p2.dnll_dir_uniform is where κ is calibrated |
| p2.var_dnll_dir_uniform | the same of vMF laws around the linear VAR's forecast, with one κ; the floor is around mean reversion's |
| p2.dnll_mag_marginal | NLL_mag against the LogNormal of training lengths |
| p2.dnll_b0f, p2.dnll_b5 | the whole against both marginals of its parts, and against "no dynamics" |
| p2.cosine, p2.cosine_expected | cos(Δ, direction) and mean A(κ), over frames with ‖Δ‖ above 5 % of its median |
| p2.kappa_*, p2.sigma_* | quartiles of κ and of σ |
| p2.logmag_r2 | R² of log m with the predictive median exp(μ), against the training mean of log m |
| p2.calibration.* | see `arlat_diag.reliability` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import VonMisesLogNormal
from arlat_core.distributions.uniform_lognormal import log_sphere_area
from arlat_core.intervals import worst
from arlat_core.types import Count, Result, Value
from arlat_dynamics import checkpoint
from arlat_dynamics.models.mlp import ResidualMLP, start
from arlat_dynamics.train import TrainConfig, fit
from arlat_kernels import vmf_kl_uniform, vmf_mean_resultant, vmf_nll
from pydantic import Field
from torch import Tensor

from arlat_diag.baselines import Marginal
from arlat_diag.diagnostics import p1
from arlat_diag.directions import DirectionLaw, around, concentration, cosine_cdf, fit_directions
from arlat_diag.reliability import Origin, bin_means, binned_error, bins, centred_squares, root, transform
from arlat_diag.utterance_halves import halves, rank

if TYPE_CHECKING:
    from arlat_data.store import LatentStore
    from arlat_data.windows import Windows
    from arlat_dynamics.models.linear import LinearModel

STILL = 1e-15  # a step shorter than this has no direction
SAME = 1e-3  # κ whose quartiles are nearer do not depend on the context
BLOCK = 2048  # frames scored at a time
JUDGED = 20_000  # training steps that place the one κ of the VAR and of mean reversion
QUARTILES = (("q25", 0.25), ("median", 0.5), ("q75", 0.75))


class Config(BaseConfig):
    """Settings of P2."""

    hidden: int = Field(256, gt=0)
    """Units inside a block of the residual MLP."""
    depth: int = Field(3, ge=0)
    """Its residual blocks."""
    bins: int = Field(10, gt=0)
    """Bins of predicted κ and σ; fewer where there are fewer than 20 frames in each."""
    train: TrainConfig = TrainConfig()
    """Training of the model."""
    predictor: p1.Config = p1.Config()
    """P1's settings, whose windows, split and B5 these are; the battery puts P1's own here."""
    seed: int = 0
    """Seed of the initial weights, the minibatches and the halves of utterances."""


@dataclass(frozen=True)
class Rivals:
    """What the model is held against, all fitted on training steps that move: the marginal laws of direction and log
    length, B5, and the VAR's and mean reversion's forecasts with one κ each."""

    direction: DirectionLaw
    mu: float
    sigma: float
    marginal: Marginal
    var: LinearModel
    reversion: LinearModel
    var_kappa: float
    reversion_kappa: float


@dataclass(frozen=True)
class Frames:
    """Held-out frames that move, each [n] float64: the predicted law, the true log length and cosine, and NLLs by name."""

    dim: int
    kappa: Tensor
    mu: Tensor
    sigma: Tensor
    log_m: Tensor
    cosine: Tensor
    nll: dict[str, Tensor]
    other_cosine: dict[str, Tensor]
    saturated: Tensor

    @property
    def residual(self) -> Tensor:
        """(log m − μ)/σ."""
        return (self.log_m - self.mu) / self.sigma


def run(
    store: LatentStore,
    config: Config,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Runs P2 on a store; the fitted model stays under `run_dir`/models/p2, so that a killed run goes on."""
    train, held_out = store.load("train"), store.load("eval")
    data = p1.prepare(store, train, held_out, "horizon", 1, config.predictor)
    moving = lengths(data.train) > STILL
    data = replace(data, fit_rows=kept(data.fit_rows, moving), validation_rows=kept(data.validation_rows, moving))
    going = lengths(data.held_out) > STILL
    rows = going.nonzero()[:, 0]
    settings = config.model_dump(mode="json")
    if not min(len(data.fit_rows), len(data.validation_rows), len(rows)):
        none = Value(value=None, n=Count(speakers=0, utterances=0, frames=0), status="not run: no frame moves")
        return Result(values={"p2.nll": none}, settings=settings)
    progress("P2 model")
    var, reversion = p1.linear_models(data, config.predictor, store, run_dir)
    model = fit_model(data, config, store, run_dir / "models" / "p2", var, device)
    progress("P2 scores")
    rivals = fit_rivals(data, p1.marginal_of(data, config.predictor), var, reversion)
    frames = score(model, data.held_out, rows, rivals, device)
    half = halves(rank(data.held_out, config.seed), data.held_out.speaker)
    whole = Origin(data.held_out.speaker, data.held_out.utterance, half)
    origin = Origin(whole.speaker[rows], whole.utterance[rows], half[rows])
    values = figures(frames, rivals, origin) | calibration(frames, origin, config.bins)
    values["p2.still_fraction"] = whole.value((~going).double())
    truth = {key: entry["value"] for key, entry in (store.truth or {"values": {}})["values"].items()}
    values = {key: value.model_copy(update={"truth": truth.get(key)}) for key, value in values.items()}
    gain = frames.nll["model"] - frames.nll["b5"]
    ids = [held_out.ids[index] for index in origin.utterance.tolist()]
    listed = worst(gain.numpy(), "p2.dnll_b5", ids, data.held_out.frame[rows].numpy(), 20)
    return Result(values=values, worst=listed, notes=remarks(values, data, going, store.spec.dim), settings=settings)


def remarks(values: dict[str, Value], data: p1.Data, going: Tensor, dim: int) -> list[str]:
    """What a reader must know of how the figures were made."""
    notes = p1.overfit(values, "p2", data, dim)
    saturated = values["p2.saturated_fraction"].value or 0.0
    if saturated > 0.01:
        notes.append(f"p2: {100 * saturated:.1f} % of the predicted κ, μ and σ are near their bounds.")
    least, most = (values[f"p2.kappa_{name}"].value or 1.0 for name in ("q25", "q75"))
    if most < (1 + SAME) * least:
        notes.append(
            "p2: κ is the same for every frame. The network found nothing beyond the linear VAR's direction, or has too few windows "
            "for its size: bins of κ then say no more than the mean."
        )
    still = int((~going).sum())
    if still:
        notes.append(f"p2: {still} of {len(going)} held-out frames do not move at all and are left out.")
    return notes


def lengths(cut: Windows) -> Tensor:
    """‖Δ‖ [N] float64 of all windows of horizon 1, without their contexts."""
    parts = torch.split(cut.index, 16_384)
    return torch.cat([(cut.z[at + 1] - cut.z[at]).double().norm(dim=-1) for at in parts])


def kept(rows: Tensor, mask: Tensor) -> Tensor:
    """Those of rows [n] that the mask [N] has."""
    return rows[mask[rows]]


def fit_model(
    data: p1.Data, config: Config, store: LatentStore, folder: Path, var: LinearModel, device: str
) -> ResidualMLP:
    """Loads the model of `folder`, or trains it from where the VAR points and saves it."""
    if checkpoint.exists(folder):
        return checkpoint.load(folder, store.spec, ResidualMLP).to(device)
    generator = torch.Generator().manual_seed(config.seed)
    shape: dict[str, object] = {
        "dim": store.spec.dim,
        "context": data.train.width,
        "hidden": config.hidden,
        "depth": config.depth,
        "head": {"name": "vmf"},
    }
    model = start(shape, data.train, data.fit_rows, data.validation_rows, generator, var).to(device)
    fit(model, data.train, data.fit_rows, data.validation_rows, config.train, generator)
    checkpoint.save(model, folder, store.spec)
    return model


def fit_rivals(data: p1.Data, marginal: Marginal, var: LinearModel, reversion: LinearModel) -> Rivals:
    """Fits what the model is held against on the rows that it was fitted on."""
    steps = data.train.z[data.train.index[data.fit_rows] + 1] - data.train.z[data.train.index[data.fit_rows]]
    log_m = steps.double().norm(dim=-1).log()
    some = data.fit_rows[:: max(1, len(data.fit_rows) // JUDGED)]

    def one_kappa(model: LinearModel) -> float:
        total = 0.0
        for rows in torch.split(some, BLOCK):
            batch = data.train.gather(rows)
            total += float(torch.cosine_similarity(model.predict(batch.context), batch.target, dim=-1).double().sum())
        return concentration(total / len(some), data.train.z.shape[-1])

    return Rivals(
        fit_directions(steps),
        float(log_m.mean()),
        max(float(log_m.std(correction=0)), 1e-6),
        marginal,
        var,
        reversion,
        one_kappa(var),
        one_kappa(reversion),
    )


def log_normal_nll(log_m: Tensor, mu: Tensor | float, sigma: Tensor) -> Tensor:
    """NLL of m under LogNormal(mu, sigma), [n]."""
    return 0.5 * ((log_m - mu) / sigma).square() + sigma.log() + 0.5 * math.log(2 * math.pi) + log_m


def parts_of(law: VonMisesLogNormal, dx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """NLL_dir, NLL_mag and (D − 1)·log m [n] of dx [n d], float64: together −log p(dx)."""
    log_m = dx.double().norm(dim=-1).log()
    direction = vmf_nll(law.direction.double(), law.kappa.double(), dx.double())
    return direction, log_normal_nll(log_m, law.mu.double(), law.log_sigma.double().exp()), (law.dim - 1) * log_m


def score(model: ResidualMLP, held_out: Windows, rows: Tensor, rivals: Rivals, device: str) -> Frames:
    """The model's law and every likelihood on the held-out windows at `rows`, in blocks."""
    blocks = []
    with torch.no_grad():
        for part in torch.split(rows, BLOCK):
            batch = held_out.gather(part)
            features = model.window_features(batch.context.to(device))
            law: VonMisesLogNormal = model.head(features)
            flags = torch.stack([flag.flatten() for flag in model.head.saturation(features)])
            own = VonMisesLogNormal(law.direction.cpu(), law.kappa.cpu(), law.mu.cpu(), law.log_sigma.cpu())
            blocks.append(scored(own, batch.context, batch.target, batch.future, rivals, flags.cpu()))
    return joined(blocks)


def joined(blocks: list[Frames]) -> Frames:
    """The frames of all blocks, in order."""
    return Frames(
        dim=blocks[0].dim,
        kappa=torch.cat([block.kappa for block in blocks]),
        mu=torch.cat([block.mu for block in blocks]),
        sigma=torch.cat([block.sigma for block in blocks]),
        log_m=torch.cat([block.log_m for block in blocks]),
        cosine=torch.cat([block.cosine for block in blocks]),
        nll={name: torch.cat([block.nll[name] for block in blocks]) for name in blocks[0].nll},
        other_cosine={name: torch.cat([b.other_cosine[name] for b in blocks]) for name in blocks[0].other_cosine},
        saturated=torch.cat([block.saturated for block in blocks]),
    )


def scored(
    law: VonMisesLogNormal, context: Tensor, dx: Tensor, future: Tensor, rivals: Rivals, flags: Tensor
) -> Frames:
    """`score` of one block."""
    direction, length, jacobian = parts_of(law, dx)
    log_m = dx.double().norm(dim=-1).log()
    marginal_length = log_normal_nll(log_m, rivals.mu, torch.tensor(rivals.sigma, dtype=torch.float64))
    uniform = log_sphere_area(law.dim)
    forecasts = {"var": rivals.var.predict(context).double(), "floor": rivals.reversion.predict(context).double()}
    kappas = {"var": rivals.var_kappa, "floor": rivals.reversion_kappa}
    nll = {
        "model": direction + length + jacobian,
        "dir": direction,
        "mag": length,
        "jacobian": jacobian,
        "dir_marginal": rivals.direction.nll(dx),
        "mag_marginal": marginal_length,
        "b0f": uniform + marginal_length + jacobian,
        "b5": -rivals.marginal.mixture.log_prob(future).double(),
    }
    nll |= {f"dir_{name}": around(forecast, kappas[name], dx) for name, forecast in forecasts.items()}
    return Frames(
        law.dim,
        law.kappa.double(),
        law.mu.double(),
        law.log_sigma.double().exp(),
        log_m,
        torch.cosine_similarity(law.direction.double(), dx.double(), dim=-1),
        nll,
        {name: torch.cosine_similarity(forecast, dx.double(), dim=-1) for name, forecast in forecasts.items()},
        flags.double().mean(0),
    )


def figures(frames: Frames, rivals: Rivals, origin: Origin) -> dict[str, Value]:
    """Every figure but those of calibration."""
    nll, uniform = frames.nll, log_sphere_area(frames.dim)
    length = frames.log_m.exp()
    clear = (length > 0.05 * length.median()).nonzero()[:, 0]
    floor = float(frames.other_cosine["floor"][clear].mean())

    nats = partial(origin.value, unit="nats/frame")
    out = {
        "nll": nats(nll["model"]),
        "nll_dir": nats(nll["dir"]),
        "nll_mag": nats(nll["mag"]),
        "jacobian": nats(nll["jacobian"]),
        "dnll_dir_uniform": nats(nll["dir"] - uniform, floor=float((nll["dir_floor"] - uniform).mean())),
        "dnll_dir_marginal": nats(nll["dir"] - nll["dir_marginal"]),
        "dnll_dir_expected": nats(-vmf_kl_uniform(frames.kappa, frames.dim)),
        "var_dnll_dir_uniform": nats(nll["dir_var"] - uniform),
        "dnll_mag_marginal": nats(nll["mag"] - nll["mag_marginal"], floor=0.0),
        "dnll_b0f": nats(nll["model"] - nll["b0f"]),
        "dnll_b5": nats(nll["model"] - nll["b5"], floor=0.0),
        "cosine": origin.value(frames.cosine, clear, floor=floor),
        "cosine_expected": origin.value(vmf_mean_resultant(frames.kappa, frames.dim), clear),
        "cosine_floor": origin.value(frames.other_cosine["floor"], clear),
        "cosine_null": origin.value(torch.full_like(frames.cosine, frames.dim**-0.5), clear),
        "var_cosine": origin.value(frames.other_cosine["var"], clear),
        "saturated_fraction": origin.value(frames.saturated, ceiling=0.0),
    }
    spread = (frames.log_m - rivals.mu).square()
    error = (frames.log_m - frames.mu).square()
    out["logmag_r2"] = origin.value(spread - error, denominator=spread, floor=0.0)
    for name, level in QUARTILES:
        out[f"kappa_{name}"] = origin.value(frames.kappa, statistic=level)
        out[f"sigma_{name}"] = origin.value(frames.sigma, statistic=level)
    return {f"p2.{key}": value for key, value in out.items()}


def calibration(frames: Frames, origin: Origin, at_most: int) -> dict[str, Value]:
    """Whether κ and σ mean what they say: by bins, and by probability integral transforms."""
    prefix = "p2.calibration"
    expected = vmf_mean_resultant(frames.kappa, frames.dim)
    by_kappa, by_sigma = bins(frames.kappa, at_most), bins(frames.sigma, at_most)
    squares = centred_squares(by_sigma, frames.residual)
    spread = bin_means(f"{prefix}.sigma", by_sigma, squares, origin, torch.ones_like(squares))
    out = bin_means(f"{prefix}.kappa", by_kappa, frames.cosine, origin, expected)
    out |= bin_means(f"{prefix}.kappa_expected", by_kappa, expected, origin)
    out[f"{prefix}.kappa_error"] = binned_error(by_kappa, frames.cosine - expected, origin)
    out |= {key: root(value) for key, value in spread.items()}
    out |= bin_means(f"{prefix}.sigma_predicted", by_sigma, frames.sigma, origin)
    out[f"{prefix}.sigma_error"] = binned_error(by_sigma, squares - 1, origin)
    out |= transform(f"{prefix}.cosine", cosine_cdf(frames.cosine, frames.kappa, frames.dim), origin)
    out |= transform(f"{prefix}.length", torch.special.ndtr(frames.residual), origin)
    return out
