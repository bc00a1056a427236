"""Codecs that are fitted: framed PCA of the waveform, and the linear readout of other latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arlat_core.config import UserError
from arlat_core.testing import check_codec
from arlat_core.testing.codec import example_audio
from arlat_data import pca_command
from arlat_data.codecs import build_codec, pca, readout
from arlat_data.corpus import scan
from arlat_data.encode import load_audio
from torch import Tensor


@pytest.fixture
def pca_folder(tmp_path: Path) -> Path:
    clips = [clip for seed in range(4) for clip in example_audio(2, 16_000, 8_000, seed)]
    pca.fit(clips, dim=16, frame_rate=25.0, sample_rate=8_000, seed=0, out=tmp_path / "pca")
    return tmp_path / "pca"


def test_pca_contract(pca_folder: Path) -> None:
    codec = build_codec(f"pca={pca_folder}")
    check_codec(codec)
    assert (codec.spec.codec, codec.spec.dim, codec.spec.frame_rate, codec.spec.causal) == ("pca:16", 16, 25.0, True)
    check_codec(build_codec(f"stack:2|pca:16={pca_folder}"))


def test_pca_projects_orthogonally(pca_folder: Path) -> None:
    codec = pca.build(pca.Config(folder=pca_folder), "cpu")
    torch.testing.assert_close(codec.components @ codec.components.T, torch.eye(16), atol=1e-5, rtol=0)
    z = 0.05 * torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(codec.encode(codec.decode(z)), z, atol=1e-5, rtol=0)


def test_pca_of_all_directions_is_the_identity(tmp_path: Path) -> None:
    noise = 0.1 * torch.randn(4, 4000, generator=torch.Generator().manual_seed(0))
    codec = pca.fit(noise, dim=40, frame_rate=200.0, sample_rate=8_000, seed=0, out=tmp_path)
    assert codec.about.explained == pytest.approx(1.0)
    torch.testing.assert_close(codec.decode(codec.encode(noise)), noise, atol=1e-5, rtol=0)


def test_pca_fit_is_reproducible_and_seeded(tmp_path: Path) -> None:
    clips = example_audio(6, 8_000, 8_000)
    prints = [
        pca.fit(clips, 4, 25.0, 8_000, seed, tmp_path / str(k)).spec.fingerprint for k, seed in enumerate((0, 0, 1))
    ]
    assert prints[0] == prints[1] != prints[2]
    assert (tmp_path / "0/pca.safetensors").read_bytes() == (tmp_path / "1/pca.safetensors").read_bytes()


def test_pca_command_fits_on_the_training_speakers(
    make_corpus: Callable[[Path, int, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_corpus(tmp_path / "corpus", 5, 1), tmp_path / "pca"
    (folder / "broken.flac").write_bytes(b"fLaC but no audio")
    arguments = ["--audio", str(folder), "--dim", "4", "--frame-rate", "25", "--sample-rate", "8000", "--out", str(out)]
    assert pca_command.main(arguments, "arlat data pca") == 0
    printed = capsys.readouterr()
    assert "4 directions of 320 samples, 25 Hz at 8000 Hz" in printed.out
    assert "1 file was left out:\n  broken.flac: the FLAC header" in printed.err
    corpus = scan(folder)
    files = [utterance.path for utterance in corpus.utterances if utterance.split == "train"]
    assert 0 < len(files) < len(corpus.utterances)
    alike = pca.fit([load_audio(file, 8000) for file in files], 4, 25.0, 8000, 0, tmp_path / "alike")
    assert build_codec(f"pca={out}").spec.fingerprint == alike.spec.fingerprint

    before = (out / "pca.safetensors").stat().st_mtime_ns
    assert pca_command.main(arguments, "arlat data pca") == 0
    assert "finished before" in capsys.readouterr().out
    assert (out / "pca.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="dim: was 4, is 5"):
        pca_command.main([*arguments, "--dim", "5"], "arlat data pca")


def test_pca_mistakes_are_named(pca_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        build_codec(f"pca={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="folder: Field required"):
        build_codec("pca")
    with pytest.raises(UserError, match="16 dimensions, but 8"):
        build_codec(f"pca:8={pca_folder}")
    with pytest.raises(UserError, match="not whole"):
        pca.fit([], 4, 30.0, 16_000, 0, tmp_path / "x")
    with pytest.raises(UserError, match="needs more than 4 frames"):
        pca.fit([torch.zeros(100)], 4, 25.0, 8_000, 0, tmp_path / "x")
    (pca_folder / "pca.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(UserError, match="no safetensors file"):
        build_codec(f"pca={pca_folder}")
    (pca_folder / "pca.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks pca.safetensors; it holds pca.json"):
        build_codec(f"pca={pca_folder}")


@dataclass
class TrainSplit:
    z: Tensor
    start: Tensor
    length: Tensor
    speakers: list[str]


class MelStore:
    """The part of a latent store that fitting reads, over log-mel of generated sound."""

    path = Path("made-in-the-test")
    hash = "0"

    def __init__(self) -> None:
        codec = build_codec("pool:4|mel")
        self.spec = codec.spec
        self.utterances = [codec.encode(example_audio(1, 24_000 + 960 * k, 24_000, k))[0] for k in range(6)]

    def load(self, split: str) -> Any:
        chosen = self.utterances if split == "train" else self.utterances[:2]
        length = torch.tensor([len(z) for z in chosen])
        return TrainSplit(torch.cat(chosen), length.cumsum(0) - length, length, ["a"] * len(chosen))


@pytest.mark.parametrize("kind", ["predictive", "slow"])
def test_readouts_of_the_future_and_of_slowness_keep_the_contract(kind: Any, tmp_path: Path) -> None:
    store: Any = MelStore()
    projection = readout.fit_readout(store, 6, 2, tmp_path, kind=kind, future_frames=2)
    codec = build_codec(f"readout={tmp_path}|pool:4|mel")
    check_codec(codec, tolerance=1e-4)
    assert codec.spec == projection.spec
    assert readout.load_projection(tmp_path).about == projection.about
    assert projection.about.kind == kind


@pytest.mark.parametrize("whiten", [False, True])
def test_readout_contract_and_moments(whiten: bool, tmp_path: Path) -> None:
    store: Any = MelStore()
    projection = readout.fit_readout(store, 12, 3, tmp_path, whiten=whiten)
    codec = build_codec(f"readout={tmp_path}|pool:4|mel")
    check_codec(codec, tolerance=1e-4 if whiten else 1e-5)
    assert codec.spec == projection.spec == build_codec(f"readout:12={tmp_path}").spec
    assert (codec.spec.codec, codec.spec.dim, codec.spec.frame_rate) == (
        "readout:12,context_frames=3|pool:4|mel",
        12,
        25.0,
    )
    y = torch.cat([projection.project(z[None])[0, :-4] for z in store.utterances])  # the last 4 frames are only futures
    covariance = torch.cov(y.T, correction=0)
    assert y.mean(0).abs().max() < 1e-3 * y.abs().max()
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert off_diagonal.abs().max() < 1e-3 * covariance.max()
    if whiten:
        torch.testing.assert_close(covariance.diagonal(), torch.ones(12), atol=1e-2, rtol=0)


def test_readout_of_one_frame_is_pca_and_lifts_to_the_nearest_point(tmp_path: Path) -> None:
    store: Any = MelStore()
    projection = readout.fit_readout(store, 8, 1, tmp_path)
    z = torch.cat([utterance[:-4] for utterance in store.utterances])
    centred = (z - z.mean(0)).double()
    best = torch.linalg.svd(centred).Vh[:8]
    residual = (centred - centred @ best.T @ best).square().mean()
    lifted = projection.lift(projection.project(z[None]))[0]
    assert float((lifted - z).square().mean()) == pytest.approx(float(residual), rel=1e-3)
    assert projection.about.explained == pytest.approx(1 - float(residual / centred.square().mean()), rel=1e-4)


@pytest.mark.parametrize("kind", ["pca", "predictive", "slow"])
def test_full_readout_loses_nothing(kind: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    store: Any = MelStore()
    store.spec = store.spec.model_copy(update={"dim": 5})
    store.utterances = [torch.randn(40, 5, generator=generator) for _ in range(3)]
    projection = readout.fit_readout(store, 15, 3, tmp_path, kind=kind)
    z = store.utterances[0][None]
    torch.testing.assert_close(projection.lift(projection.project(z)), z, atol=1e-4, rtol=0)


def test_windows_repeat_the_first_frame_before_the_start() -> None:
    z = torch.arange(4.0)[None, :, None]
    assert readout.context_windows(z, 3)[0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_readout_mistakes_are_named(tmp_path: Path) -> None:
    store: Any = MelStore()
    readout.fit_readout(store, 4, 2, tmp_path)
    with pytest.raises(UserError, match="made for other latents"):
        build_codec(f"readout={tmp_path}|pool:8|mel")
    with pytest.raises(UserError, match="4 dimensions, not 5"):
        build_codec(f"readout:5={tmp_path}")
    with pytest.raises(UserError, match="2 frames, not 3"):
        build_codec(f"readout:4,context_frames=3={tmp_path}")
    with pytest.raises(UserError, match="1 to 160 directions"):
        readout.fit_readout(store, 161, 2, tmp_path)
    store.spec = store.spec.model_copy(update={"codec": "lyra"})
    readout.fit_readout(store, 4, 2, tmp_path)
    with pytest.raises(UserError, match="cannot be built from its name alone"):
        build_codec(f"readout={tmp_path}")


def test_apply_makes_the_store_that_encoding_would(tmp_path: Path) -> None:
    from arlat_data.store import LatentStore, write_store

    source: Any = MelStore()
    rows = [
        (f"u{k}", f"s{k}", "train" if k < 4 else "eval", z.numpy(), np.full(len(z), float(k), dtype=np.float32))
        for k, z in enumerate(source.utterances)
    ]
    write_store(tmp_path / "mel", source.spec, rows, dtype="float32")
    store = LatentStore.open(tmp_path / "mel")
    projection = readout.fit_readout(store, 6, 2, tmp_path / "fitted")
    readout.apply(projection, store, tmp_path / "low")
    low = LatentStore.open(tmp_path / "low")
    assert low.spec == projection.spec
    assert {split: low.ids(split) for split in ("train", "eval")} == {
        split: store.ids(split) for split in ("train", "eval")
    }
    for name in store.ids("eval"):
        expected = projection.project(torch.from_numpy(store.frames(name))[None])[0]
        torch.testing.assert_close(torch.from_numpy(low.frames(name)), expected, atol=0.05, rtol=1e-3)
        assert low.speaker(name) == store.speaker(name)
        np.testing.assert_array_equal(low.energy(name), store.energy(name))
