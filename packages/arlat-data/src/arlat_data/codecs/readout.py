"""Linear readout: z_dyn = W·[z_{t−L+1}; …; z_t], a low-dimensional view of another codec's latents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, validate
from arlat_core.types import Codec, LatentSpec, fingerprint
from pydantic import Field
from torch import Tensor

from arlat_data.codecs import build_codec
from arlat_data.codecs._folder import read_json, read_tensors, require_files, write_fitted
from arlat_data.codecs._readout_fit import RIDGE, Fit, Kind, Quality, Stretch, fit, gather, quality

if TYPE_CHECKING:
    import numpy as np

    from arlat_data.store import LatentStore, Split

LARGEST = 8192  # numbers in a window and its future: their covariance has half a gigabyte


class Config(BaseConfig):
    """`readout=FOLDER` or `readout=FOLDER|CODEC`, a folder that `fit_readout` made."""

    dim: int | None = None
    """Dimension that the folder is expected to have; any by default."""
    context_frames: int | None = None
    """Frames that the folder's windows are expected to have; any by default."""
    folder: Path
    """Holds readout.json and readout.safetensors."""
    inner: str | None = None
    """The codec that is wrapped, as text; by default the one that readout.json names, where that needs no folder."""


class About(BaseConfig):
    """What readout.json says."""

    kind: Kind
    dim: int = Field(gt=0)
    context_frames: int = Field(gt=0)
    whiten: bool
    inner: LatentSpec
    future_frames: int = Field(gt=0)
    ridge: float = Field(ge=0)
    explained: float
    quality: dict[Literal["train", "eval"], Quality]
    """What the readout is worth on each split; the eval split is absent where none of it is long enough."""
    frames: int
    store: str


class Projection:
    """W and its pseudo-inverse on latents alone, without the codec: `project` [b t d] -> [b t dim], `lift` back."""

    def __init__(self, about: About, down: Tensor, up: Tensor, mean: Tensor, device: str = "cpu") -> None:
        """`down` [dim L·d], `up` [L·d dim], `mean` [L·d]."""
        self.about = about
        self.down, self.up, self.mean = down.to(device), up.to(device), mean.to(device)
        inner = about.inner
        windows = f",context_frames={about.context_frames}" if about.context_frames > 1 else ""
        self.spec = LatentSpec(
            codec=f"readout:{about.dim}{windows}|{inner.codec}",
            space=f"readout of {inner.space}",
            dim=about.dim,
            frame_rate=inner.frame_rate,
            sample_rate=inner.sample_rate,
            fingerprint=fingerprint(
                {"readout": 1, "inner": inner.fingerprint, "context_frames": about.context_frames},
                {"down": down, "up": up, "mean": mean},
            ),
            causal=inner.causal,
        )

    def project(self, z: Tensor) -> Tensor:
        """[b t d] -> [b t dim]; before the start stands the first frame."""
        return (context_windows(z.to(self.mean), self.about.context_frames) - self.mean) @ self.down.T

    def lift(self, y: Tensor) -> Tensor:
        """[b t dim] -> [b t d]: the sequence whose windows are nearest, in squared error, to those that `up` gives.

        That is each frame's mean over the up to L windows that hold it.
        """
        y = y.to(self.mean)
        batch, frames, _ = y.shape
        length, dim = self.about.context_frames, self.about.inner.dim
        guess = (y @ self.up.T + self.mean).reshape(batch, frames * length, dim)
        index = _window_index(frames, length, y.device).flatten()
        total = torch.zeros(batch, frames, dim, device=guess.device).index_add_(1, index, guess)
        return total / torch.bincount(index, minlength=frames)[:, None]


class Readout:
    """A codec seen through a Projection."""

    def __init__(self, inner: Codec, projection: Projection) -> None:
        try:
            projection.about.inner.require(inner.spec, "The readout")
        except ValueError as error:
            raise UserError(str(error)) from error
        self.inner, self.projection = inner, projection

    @property
    def spec(self) -> LatentSpec:
        return self.projection.spec

    def frames(self, samples: int) -> int:
        return self.inner.frames(samples)

    def encode(self, audio: Tensor) -> Tensor:
        return self.projection.project(self.inner.encode(audio))

    def decode(self, latents: Tensor) -> Tensor:
        return self.inner.decode(self.projection.lift(latents))


def context_windows(z: Tensor, length: int) -> Tensor:
    """[b t d] -> [b t length·d], oldest frame first; before the start stands the first frame."""
    frames = z.shape[1]
    return z[:, _window_index(frames, length, z.device)].flatten(2)


def _window_index(frames: int, length: int, device: torch.device) -> Tensor:
    """[t length]: which frames the window of frame t holds."""
    newest = torch.arange(frames, device=device)[:, None]
    return (newest + torch.arange(1 - length, 1, device=device)).clamp(min=0)


def fit_readout(
    store: LatentStore,
    dim: int,
    context_frames: int,
    out: Path,
    whiten: bool = False,
    kind: Kind = "pca",
    future_frames: int = 4,
    ridge: float = RIDGE,
) -> Projection:
    """Fits W on the train split of `store` and writes the folder `out`, with what it is worth on both splits.

    `kind` says what W looks for (`arlat_data.codecs._readout_fit`); `whiten` gives every direction variance 1, which those
    of "predictive" and "slow" have anyway; `ridge` is the noise that these two assume, in mean variances. The last
    `future_frames` frames of an utterance are not used.

    Raises UserError when `dim` exceeds what a window holds or the frames there are, or the window is too large to solve.
    """
    split = store.load("train")
    size = context_frames * store.spec.dim
    if not 0 < dim <= size:
        raise UserError(
            f"A window of {context_frames} frames of {store.spec.dim} dimensions has 1 to {size} directions, not {dim}."
        )
    if (whole := size + future_frames * store.spec.dim) > LARGEST:
        raise UserError(
            f"A readout of {context_frames} + {future_frames} frames of {store.spec.dim} dimensions would solve for {whole} "
            f"numbers at once, more than {LARGEST}. Take fewer context or future frames, or a PCA readout of one frame first."
        )
    found = stretches(split, context_frames, future_frames)
    if found.count <= dim:
        raise UserError(
            f"{dim} directions need more than {dim} frames with {future_frames} after them, but {store.path} has {found.count} for training."
        )
    fitted = fit(found, kind, dim, whiten, ridge)
    worth: dict[Literal["train", "eval"], Quality] = {"train": judge(split, found, fitted)}
    other = store.load("eval")
    held_out = stretches(other, context_frames, future_frames)
    if held_out.count > 1:
        worth["eval"] = judge(other, held_out, fitted)
    about = About(
        kind=kind,
        dim=dim,
        context_frames=context_frames,
        future_frames=future_frames,
        ridge=ridge,
        whiten=whiten,
        inner=store.spec,
        explained=worth["train"].explained,
        quality=worth,
        frames=found.count,
        store=store.hash,
    )
    tensors = {"down": fitted.rows.float(), "up": fitted.up.float(), "mean": fitted.mean.float()}
    write_fitted(out, "readout", tensors, about.model_dump())
    return Projection(about, tensors["down"], tensors["up"], tensors["mean"])


def judge(split: Split, stretch: Stretch, fitted: Fit) -> Quality:
    """What a fit is worth on a split whose moments are `stretch`, over the utterances that are long enough."""
    used = [
        speaker
        for speaker, length in zip(split.speakers, split.length.tolist(), strict=True)
        if length > stretch.future
    ]
    return quality(stretch, fitted, len(set(used)), len(used))


def stretches(split: Split, context_frames: int, future_frames: int) -> Stretch:
    """The moments of a split's windows and their futures."""
    return gather(split.z, split.start.tolist(), split.length.tolist(), context_frames, future_frames)


def load_projection(folder: Path, device: str = "cpu") -> Projection:
    """Reads the folder that `fit_readout` made."""
    folder = require_files(folder, ["readout.json", "readout.safetensors"], "readout")
    about = validate(About, read_json(folder / "readout.json", "readout"), str(folder / "readout.json"))
    size = about.context_frames * about.inner.dim
    shapes: dict[str, tuple[int, ...]] = {"down": (about.dim, size), "up": (size, about.dim), "mean": (size,)}
    tensors = read_tensors(folder / "readout.safetensors", shapes, "readout")
    return Projection(about, tensors["down"], tensors["up"], tensors["mean"], device)


def apply(projection: Projection, store: LatentStore, out: Path) -> None:
    """Writes the store `out`: every utterance of `store` seen through `projection`, without touching audio."""
    from arlat_data.store import write_store

    try:
        projection.about.inner.require(store.spec, "The readout")
    except ValueError as error:
        raise UserError(str(error)) from error

    def utterances() -> Iterator[tuple[str, str, str, np.ndarray, np.ndarray | None]]:
        for split in ("train", "eval"):
            for name in store.ids(split):
                z = projection.project(torch.from_numpy(store.frames(name))[None])[0].cpu().numpy()
                yield name, store.speaker(name), split, z, store.energy(name)

    write_store(out, projection.spec, utterances())


def build(config: Config, device: str) -> Readout:
    """Reads the folder and builds the codec inside."""
    projection = load_projection(config.folder, device)
    if config.dim not in (None, projection.about.dim):
        raise UserError(f"{config.folder} holds a readout of {projection.about.dim} dimensions, not {config.dim}.")
    if config.context_frames not in (None, projection.about.context_frames):
        raise UserError(
            f"{config.folder} holds a readout of {projection.about.context_frames} frames, not {config.context_frames}."
        )
    text = config.inner or projection.about.inner.codec
    try:
        inner = build_codec(text, device)
    except UserError as error:
        if config.inner:
            raise
        raise UserError(
            f"The readout {config.folder} was fitted on {text!r}, which cannot be built from its name alone. "
            f"Name it with its folder, readout={config.folder}|CODEC=FOLDER. ({error})"
        ) from error
    return Readout(inner, projection)
