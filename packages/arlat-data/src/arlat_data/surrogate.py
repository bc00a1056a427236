"""Surrogates of a store: what is left of a figure when one property of the latents is kept and the rest destroyed.

| kind | keeps | destroys |
| --- | --- | --- |
| time_shuffle | every frame, so the marginal of each utterance, and its energy | all order in time |
| phase | mean, power spectrum and cross-spectrum of each utterance | all that is not Gaussian and linear |
| ar | mean and autocovariance up to the order, over the training split | all else, and utterances' own means |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.types import fingerprint
from pydantic import Field
from torch import Tensor

from arlat_data.synth import stream
from arlat_data.windows import windows

if TYPE_CHECKING:
    from arlat_data.store import LatentStore, Split

Kind = Literal["time_shuffle", "phase", "ar"]
Array = np.ndarray[Any, np.dtype[np.float32]]
Row = tuple[str, str, str, Array, Array | None]
T = TypeVar("T")
BATCH = 64  # utterances that are simulated at once
MAX_RADIUS = 0.999


class Config(BaseConfig):
    """Settings of `arlat data surrogate STORE --kind KIND --out OUT`."""

    store: Path
    """The store to make a surrogate of; may stand first, without its flag."""
    out: Path
    """Folder of the surrogate."""
    kind: Kind
    """What to keep: the frames (time_shuffle), the spectrum (phase), or a linear model (ar)."""
    order: int = Field(1, gt=0)
    """Order of the VAR of `ar`, in frames."""
    seed: int = Field(0, ge=0)
    """Seed of the permutations, phases and innovations."""


@dataclass(frozen=True)
class LinearFit:
    """z_t = mean + Σ_k coefficient_k (z_{t−k} − mean) + e: coefficients [p d d], residual covariance [d d], spectral radius."""

    mean: Tensor
    coefficient: Tensor
    residual: Tensor
    radius: float


def time_shuffle(z: Tensor, generator: torch.Generator) -> Tensor:
    """The order [t] in which an utterance's frames come; index z [t d] and its energies with it."""
    return torch.randperm(len(z), generator=generator)


def phase_randomise(z: Tensor, generator: torch.Generator) -> Tensor:
    """Turns every frequency of z [t d] by a random phase, the same in all dimensions; the mean stays."""
    spectrum = torch.fft.rfft(z.double(), dim=0)
    angle = 2 * math.pi * torch.rand(len(spectrum), generator=generator, dtype=torch.float64)
    angle[0] = 0
    if len(z) % 2 == 0:  # the Nyquist frequency is real: a sign
        angle[-1] = math.pi * torch.randint(2, (), generator=generator)
    turned = spectrum * torch.polar(torch.ones_like(angle), angle)[:, None]
    back: Tensor = torch.fft.irfft(turned, n=len(z), dim=0)
    return back


def fit_var(split: Split, order: int) -> LinearFit:
    """Least squares over all windows of a split, shrunk to a spectral radius of 0.999 where it is above.

    Raises:
        UserError: Where no utterance is longer than the order, or there are fewer windows than coefficients.
    """
    cut = windows(split, order, 1)
    dim = split.z.shape[1]
    if len(cut) <= order * dim:
        raise UserError(
            f"A VAR of order {order} in {dim} dimensions needs more than {order * dim} training windows, but there are "
            f"{len(cut)}. Lower --order, or give more audio."
        )
    mean = cut.future.double().mean(0)
    gram = torch.zeros(order * dim, order * dim, dtype=torch.float64)
    cross = torch.zeros(order * dim, dim, dtype=torch.float64)
    square = torch.zeros(dim, dim, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(cut)), 4096):
        batch = cut.gather(rows)
        x = (batch.context.double() - mean).flip(1).flatten(1)  # newest first, [n, p*d]
        y = batch.future.double() - mean
        gram += x.T @ x
        cross += x.T @ y
        square += y.T @ y
    gram += 1e-9 * gram.diagonal().mean() * torch.eye(order * dim, dtype=torch.float64)  # constant dimensions
    weight = torch.linalg.solve(gram, cross)
    residual = (square - cross.T @ weight - weight.T @ cross + weight.T @ gram @ weight) / len(cut)
    coefficient = weight.view(order, dim, dim).transpose(1, 2)
    radius = spectral_radius(coefficient)
    if radius > MAX_RADIUS:
        power = torch.arange(1, order + 1, dtype=torch.float64)
        coefficient = coefficient * ((MAX_RADIUS / radius) ** power)[:, None, None]
    return LinearFit(mean, coefficient, (residual + residual.T) / 2, min(radius, MAX_RADIUS))


def spectral_radius(coefficient: Tensor) -> float:
    """Largest modulus among the eigenvalues of the companion matrix of coefficients [p d d]."""
    order, dim, _ = coefficient.shape
    companion = torch.zeros(order * dim, order * dim, dtype=torch.float64)
    companion[:dim] = coefficient.transpose(0, 1).flatten(1)
    companion[dim:, :-dim] = torch.eye((order - 1) * dim, dtype=torch.float64)
    return float(torch.linalg.eigvals(companion).abs().max())


def simulate_var(fit: LinearFit, paths: int, frames: int, generator: torch.Generator) -> Tensor:
    """Draws Gaussian paths [paths frames d] of a fitted VAR, after as many frames as its memory lasts (1e-3 is left)."""
    order, dim, _ = fit.coefficient.shape
    burn = order + min(10_000, math.ceil(math.log(1e-3) / math.log(max(fit.radius, 1e-3))))
    value, vector = torch.linalg.eigh(fit.residual)
    factor = vector * value.clamp(min=0).sqrt()
    past = torch.zeros(order, paths, dim, dtype=torch.float64)  # newest first
    found = torch.empty(paths, frames, dim, dtype=torch.float64)
    for t in range(burn + frames):
        noise = torch.randn(paths, dim, generator=generator, dtype=torch.float64) @ factor.T
        now = torch.einsum("pbd,ped->be", past, fit.coefficient) + noise
        past = torch.cat([now[None], past[:-1]])
        if t >= burn:
            found[:, t - burn] = now
    return found + fit.mean


def order_of(store: LatentStore) -> list[tuple[str, str]]:
    """(id, split) of every utterance, training first."""
    return [(name, split) for split in ("train", "eval") for name in store.ids(split)]


def rearranged(store: LatentStore, kind: Kind, seed: int) -> Iterator[Row]:
    """The utterances with their frames shuffled or their phases turned."""
    for name, split in tracked(order_of(store)):
        z = torch.from_numpy(np.asarray(store.frames(name), dtype=np.float32))
        generator = stream(seed, kind, name)
        if kind == "phase":
            yield name, store.speaker(name), split, phase_randomise(z, generator).float().numpy(), None
        else:
            at = time_shuffle(z, generator).numpy()
            yield name, store.speaker(name), split, z.numpy()[at], np.asarray(store.energy(name))[at]


def simulated(store: LatentStore, order: int, seed: int) -> Iterator[Row]:
    """Paths of the VAR fitted on the training split, of the utterances' own lengths."""
    fit = fit_var(store.load("train"), order)
    rows = order_of(store)
    starts = range(0, len(rows), BATCH)
    for start in tracked(starts):
        part = rows[start : start + BATCH]
        longest = max(store.length(name) for name, _ in part)
        z = simulate_var(fit, len(part), longest, stream(seed, "ar", start)).float().numpy()
        for path, (name, split) in zip(z, part, strict=True):
            yield name, store.speaker(name), split, path[: store.length(name)], None


def tracked(items: Iterable[T]) -> Iterable[T]:
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(items, "surrogate", console=Console(stderr=True), transient=True)


def surrogate(store: LatentStore, kind: Kind, out: Path, order: int = 1, seed: int = 0) -> Path:
    """Writes a float32 surrogate of `store`, with the same ids, speakers, splits and lengths."""
    from arlat_data.store import write_store

    options: dict[str, Any] = {"surrogate": kind, "of": store.hash, "seed": seed}
    if kind == "ar":
        options["order"] = order
    spec = store.spec.model_copy(
        update={"codec": f"surrogate-{kind}|{store.spec.codec}", "fingerprint": fingerprint(options)}
    )
    rows = simulated(store, order, seed) if kind == "ar" else rearranged(store, kind, seed)
    write_store(out, spec, rows, dtype="float32", attributes={"surrogate": options})
    return out


def main(arguments: list[str], prog: str) -> int:
    """`arlat data surrogate STORE --kind {time_shuffle,phase,ar} --out OUT`."""
    from arlat_data.store import LatentStore

    if arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        arguments = ["--store", *arguments]
    config = parse(Config, arguments, prog, "Makes a surrogate of a store: one property kept, the rest destroyed.")
    store = LatentStore.open(config.store)
    surrogate(store, config.kind, config.out, config.order, config.seed)
    print(f"{config.out}: {config.kind} surrogate of {config.store}.")
    return 0
