"""`arlat data pca`: a framed PCA of the waveform, the linear codec that any other has to beat."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arlat_core.config import parse
from arlat_core.run import run_directory
from pydantic import Field

from arlat_data.corpus import Corpus, Speech, left_out

if TYPE_CHECKING:
    from torch import Tensor

    from arlat_data.codecs.pca import PCA


class Config(Speech):
    """Settings of `arlat data pca`."""

    out: Path
    """Folder of the PCA: use it as the codec pca=FOLDER."""
    dim: int = Field(32, gt=0)
    """Directions of a frame."""
    frame_rate: float = Field(12.5, gt=0)
    """Frames per second, Hz; a frame must be a whole number of samples."""
    sample_rate: int = Field(24_000, gt=0)
    """Audio is read at this rate, Hz."""


def clips(files: Iterable[Path], rate: int) -> Iterator[Tensor]:
    """The audio [n] of each file at `rate`, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    from arlat_data.encode import load_audio

    for path in track(list(files), "fitting pca", console=Console(stderr=True), transient=True):
        yield load_audio(path, rate)


def fit_corpus(corpus: Corpus, dim: int, frame_rate: float, sample_rate: int, seed: int, out: Path) -> PCA:
    """Fits the framed PCA on the corpus' training speakers and writes it to `out`."""
    from arlat_data.codecs import pca

    files = [utterance.path for utterance in corpus.utterances if utterance.split == "train"]
    return pca.fit(clips(files, sample_rate), dim, frame_rate, sample_rate, seed, out)


def main(arguments: list[str], prog: str) -> int:
    """Fits or reads the PCA and prints what it holds; returns the exit status.

    Raises UserError when `out` holds a PCA of other settings or another process works there, or when no speech can be used.
    """
    config = parse(Config, arguments, prog, "Fits a framed PCA of the waveform on a folder of speech.")
    from arlat_data.codecs import pca

    corpus = config.scan()
    settings = config.model_dump(include={"dim", "frame_rate", "sample_rate", "seed"}) | {"corpus": corpus.hash}
    with run_directory(config.out, settings):
        finished = (config.out / "pca.json").exists()
        if not finished:
            fit_corpus(corpus, config.dim, config.frame_rate, config.sample_rate, config.seed, config.out)
        about = pca.build(pca.Config(folder=config.out), "cpu").about
    hop = round(about.sample_rate / about.frame_rate)
    print(
        f"{config.out}: {about.dim} directions of {hop} samples, {about.frame_rate:g} Hz at {about.sample_rate} Hz, with "
        f"{100 * about.explained:.1f} % of the waveform's variance ({100 * about.dim / hop:.1f} % if it were white noise), fitted on "
        f"{about.frames} frames of {about.clips} clips of {len(corpus.speakers('train'))} training speakers"
        f"{', finished before' if finished else ''}.\n"
        f"Extract with it: arlat data extract --audio {config.audio} --codec pca={config.out} --out STORE"
    )
    print(left_out((skip.path, skip.reason) for skip in corpus.skipped), end="", file=sys.stderr)
    return 0
