"""`arlat data readout`: a linear readout of a latent store, and the store seen through it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.run import run_directory
from pydantic import Field

from arlat_data.codecs._readout_fit import Kind

if TYPE_CHECKING:
    from arlat_data.codecs.readout import About, Projection
    from arlat_data.store import LatentStore


class Data(BaseConfig):
    """What to read out."""

    latents_dir: Path
    """A latent store."""


class Config(BaseConfig):
    """Settings of `arlat data readout`."""

    data: Data
    """What to read out."""
    out: Path
    """Folder of the readout: use it as the codec readout=FOLDER|CODEC."""
    kind: Kind = "pca"
    """pca (variance), predictive (what tells of the future) or slow (what changes slowly)."""
    dim: int = Field(32, gt=0)
    """Directions."""
    context_frames: int = Field(1, gt=0)
    """Frames of the window that is read out. Windows of several frames overlap, which looks like predictability: decisions
    leave them out."""
    future_frames: int = Field(4, gt=0)
    """Frames of the future: predictive looks for what tells of them, every kind is judged by them."""
    ridge: float = Field(1e-3, ge=0)
    """predictive, slow: noise assumed in every coordinate, in mean variances; 0.1 where there are few frames."""
    whiten: bool = False
    """pca: gives every direction variance 1."""
    latents: Path | None = None
    """Where to write the store seen through the readout."""


def shown(about: About) -> str:
    """What a readout is worth, in words: the best, the middle and the worst direction of each split."""
    lines = []
    for split, name in (("train", "training"), ("eval", "held-out")):
        worth = about.quality.get(split)  # type: ignore[call-overload]
        if worth is None:
            lines.append(f"  {name}: no utterance is long enough to judge")
            continue
        future, slowness = worth.future, sorted(worth.slowness)
        lines.append(
            f"  {name} ({worth.speakers} speakers, {worth.utterances} utterances, {worth.frames} frames): "
            f"{100 * worth.explained:.1f} % of the window's variance; correlation with the future {ends(future)} (by chance: "
            f"at least ±{worth.frames**-0.5:.3f} held-out); change per frame {ends(slowness)} of the variance (white noise: 2)"
        )
    return "\n".join(lines)


def ends(values: list[float]) -> str:
    """The first, the middle and the last of some values."""
    return ", ".join(f"{values[at]:.3f}" for at in (0, len(values) // 2, -1))


def main(arguments: list[str], prog: str) -> int:
    """Fits or reads the readout, prints what it is worth and writes its store; returns the exit status.

    Raises UserError when `out` holds a readout of other settings or another process works there, or `latents` another store.
    """
    config = parse(Config, arguments, prog, "Fits a linear readout on a latent store.")
    from arlat_data.codecs.readout import fit_readout, load_projection
    from arlat_data.store import LatentStore

    store = LatentStore.open(config.data.latents_dir)
    # where the store seen through the readout goes is no part of the fit: it may be asked for later
    settings = config.model_dump(mode="json", exclude={"data", "out", "latents"}) | {"store": store.hash}
    with run_directory(config.out, settings):
        finished = (config.out / "readout.json").exists()
        if not finished:
            fit_readout(
                store,
                config.dim,
                config.context_frames,
                config.out,
                config.whiten,
                config.kind,
                config.future_frames,
                config.ridge,
            )
        projection = load_projection(config.out)
        about = projection.about
        print(
            f"{config.out}: {about.kind}, {about.dim} directions of {about.context_frames} frames of {about.inner.codec}"
        )
        print(f"{shown(about)}\n  (directions: best, middle, worst){' It was finished before.' if finished else ''}")
        if config.latents is not None:
            see(store, projection, config.latents)
    return 0


def see(store: LatentStore, projection: Projection, out: Path) -> None:
    """Writes the store seen through the readout, unless `out` holds it; refuses where it holds another one."""
    from arlat_data.codecs.readout import apply
    from arlat_data.store import LatentStore

    finished = (out / "store.json").exists()
    if not finished:
        apply(projection, store, out)
    found = LatentStore.open(out).spec
    if found != projection.spec:
        raise UserError(
            f"{out} holds {found.codec} ({found.fingerprint}), not this readout ({projection.spec.fingerprint}). "
            "Choose another --latents, or remove it."
        )
    print(f"{out}: {found.codec}{', finished before' if finished else ''}")
