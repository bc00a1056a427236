"""A small corpus, a store extracted from it, and the hash of a folder, for the tests of extraction and repair."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from arlat_data.extract import Config, extract

Tree = Callable[[Path], dict[str, str]]


def make(folder: Path, speakers: int, files: int) -> Path:
    """Harmonics and noise with a moving level: enough like speech for a log-mel codec to give it back."""
    generator = np.random.default_rng(0)
    for speaker in range(speakers):
        for number in range(files):
            samples = int(16000 * (3 + 0.137 * number))
            time = np.arange(samples) / 16000
            tone = sum(np.sin(2 * np.pi * (110 + 15 * speaker) * k * time) / k for k in range(1, 12))
            level = 0.05 + 0.1 * np.abs(np.sin(2 * np.pi * (1.5 + 0.2 * number) * time))
            path = folder / f"{100 + speaker}" / "1" / f"{100 + speaker}-1-{number:04d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, level * (0.3 * tone + 0.1 * generator.normal(size=samples)), 16000)
    return folder


@pytest.fixture(scope="session")
def make_corpus() -> Callable[[Path, int, int], Path]:
    return make


@pytest.fixture(scope="session")
def tree() -> Tree:
    """Relative path -> sha256 of every file below a folder."""

    def hashes(path: Path) -> dict[str, str]:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    return hashes


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("corpus"), 6, 5)


@pytest.fixture(scope="session")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "store"
    extract(Config(audio=corpus, codec="mel", out=out))
    return out
