"""The stores of the demo: a trained VAE, log-mel stacked and pooled, framed PCA, a linear readout, and what the user adds."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arlat_core import registry
from arlat_core.config import UserError
from arlat_core.files import safe_name

if TYPE_CHECKING:
    from rich.console import Console

    from arlat_diag.demo import Config

RATE_HZ = 12.5
SAMPLE_RATE = 24_000
STACKED, POOLED = "stack:8|mel", "pool:8|mel"
SHIPPED = "vae:speech-tiny"  # a trained VAE that arlat-vae brings, where it is installed


@dataclass(frozen=True)
class Source:
    """A store, and the codec text that decodes it."""

    store: Path
    codec: str


def extract_store(config: Config, audio: Path, text: str, store: Path) -> None:
    """`arlat data extract`, which goes on with what is there."""
    from arlat_data import extract

    extract.extract(
        extract.Config(
            audio=audio,
            codec=text,
            out=store,
            seed=config.seed,
            max_speakers=config.max_speakers,
            device=config.device,
        )
    )


def fit_pca(config: Config, audio: Path, folder: Path) -> None:
    """Fits the framed PCA on the training speakers, once."""
    from arlat_data.corpus import scan
    from arlat_data.pca_command import fit_corpus

    if not (folder / "pca.json").exists():
        corpus = scan(audio, seed=config.seed, max_speakers=config.max_speakers)
        fit_corpus(corpus, config.pca_dim, RATE_HZ, SAMPLE_RATE, config.seed, folder)


def fit_readout(config: Config, stacked: Path, folder: Path, store: Path) -> None:
    """Fits the linear readout on the stacked log-mel and writes its store; a half-written store is made anew."""
    from arlat_data.codecs import readout
    from arlat_data.store import LatentStore

    if (store / "store.json").exists():
        return
    base = LatentStore.open(stacked)
    if not ((folder / "readout.json").exists() and (folder / "readout.safetensors").exists()):
        readout.fit_readout(base, config.readout_dim, 1, folder)
    unfinished = store.with_name(f"{store.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    readout.apply(readout.load_projection(folder), base, unfinished)
    if store.exists():
        shutil.rmtree(store)
    os.replace(unfinished, store)


def trained_source(config: Config, audio: Path, store: Path, console: Console) -> tuple[list[Source], list[str]]:
    """The store of the trained VAE where arlat-vae is installed; none and why where it cannot tell this audio from other audio."""
    if "vae" not in registry.names("codecs"):
        return [], []
    console.print(f"  extracting {SHIPPED}")
    try:
        extract_store(config, audio, SHIPPED, store)
    except UserError as error:
        return [], [f"Without {SHIPPED}, which was trained on read English: {error}"]
    return [Source(store, SHIPPED)], []


def make_sources(config: Config, audio: Path, console: Console) -> tuple[list[Source], list[str]]:
    """All stores of the demo, made or found, and what is missing."""
    stores, fitted = config.out / "stores", config.out / "codecs"
    sources, notes = trained_source(config, audio, stores / safe_name(SHIPPED), console)
    texts = [STACKED, POOLED, f"pca={fitted / 'pca'}", *config.codec]
    console.print(f"  fitting a PCA of the waveform, {config.pca_dim} dimensions at {RATE_HZ} Hz")
    fit_pca(config, audio, fitted / "pca")
    for text in texts:
        store = stores / store_name(text, fitted)
        console.print(f"  extracting {text}")
        extract_store(config, audio, text, store)
        sources.append(Source(store, text))
    console.print(f"  fitting a linear readout of {STACKED}, {config.readout_dim} dimensions")
    fit_readout(config, stores / store_name(STACKED, fitted), fitted / "readout", stores / "readout")
    return [*sources, Source(stores / "readout", f"readout={fitted / 'readout'}|{STACKED}")], notes


def store_name(text: str, fitted: Path) -> str:
    """The folder of a codec's store."""
    return "pca" if text.startswith(f"pca={fitted}") else safe_name(text.partition("=")[0])
