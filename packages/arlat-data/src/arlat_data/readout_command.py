"""`arlat data readout`: a linear readout of a latent store, and the store seen through it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from arlat_core.config import Config as BaseConfig
from arlat_core.config import parse
from arlat_core.run import check_settings
from pydantic import Field

from arlat_data.codecs._readout_fit import Kind

if TYPE_CHECKING:
    from arlat_data.codecs.readout import About


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
    context_frames: int = Field(4, gt=0)
    """Frames of the window that is read out."""
    future_frames: int = Field(4, gt=0)
    """predictive: frames of the future."""
    whiten: bool = False
    """pca: gives every direction variance 1."""
    latents: Path | None = None
    """Where to write the store seen through the readout."""


def shown(about: About) -> str:
    """What a readout is worth, in words: the strongest, the middle and the weakest direction of each split."""
    lines = []
    for split, name in (("train", "training"), ("eval", "held-out")):
        worth = about.quality[split]  # type: ignore[index]
        if not worth:
            lines.append(f"  {name}: too few frames to judge")
            continue
        future, slowness = worth["future"], sorted(worth["slowness"])
        ends = (0, len(future) // 2, -1)
        lines.append(
            f"  {name}: {100 * worth['explained'][0]:.1f} % of the window's variance; correlation with the future "
            f"{', '.join(f'{future[at]:.3f}' for at in ends)}; change per frame {', '.join(f'{slowness[at]:.3f}' for at in ends)} "
            "of the variance (white noise: 2)"
        )
    return "\n".join(lines)


def main(arguments: list[str], prog: str) -> int:
    """Fits or reads the readout, prints what it is worth and writes its store; returns the exit status."""
    config = parse(Config, arguments, prog, "Fits a linear readout on a latent store.")
    from arlat_data.codecs.readout import apply, fit_readout, load_projection
    from arlat_data.store import LatentStore

    store = LatentStore.open(config.data.latents_dir)
    settings = config.model_dump(mode="json", exclude={"data", "out", "latents"}) | {"store": store.hash}
    check_settings(config.out / "config.json", settings)
    if not all((config.out / name).exists() for name in ("readout.json", "readout.safetensors")):
        fit_readout(
            store, config.dim, config.context_frames, config.out, config.whiten, config.kind, config.future_frames
        )
    projection = load_projection(config.out)
    about = projection.about
    print(f"{config.out}: {about.kind}, {about.dim} directions of {about.context_frames} frames of {about.inner.codec}")
    print(f"{shown(about)}\n  (directions: strongest, middle, weakest)")
    if config.latents is not None and not config.latents.exists():
        unfinished = config.latents.with_name(f"{config.latents.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # what a killed run left
        apply(projection, store, unfinished)
        unfinished.rename(config.latents)
    if config.latents is not None:
        print(f"{config.latents}: {LatentStore.open(config.latents).spec.codec}")
    return 0
