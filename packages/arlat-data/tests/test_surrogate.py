"""Surrogates: what they say they keep is kept, what they say they destroy is destroyed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from arlat_core.config import UserError
from arlat_core.types import LatentSpec
from arlat_data.store import LatentStore, write_store
from arlat_data.surrogate import fit_var, main, phase_randomise, simulate_var, spectral_radius, surrogate
from torch import Tensor

SPEC = LatentSpec(codec="mel", space="log-mel", dim=2, frame_rate=12.5, sample_rate=24000, fingerprint="f", causal=True)


def source(tmp_path: Path) -> LatentStore:
    """A store of two correlated, skewed dimensions with order-two dynamics, and of different lengths."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for u in range(24):
        length = 200 + 7 * u
        e = torch.randn(length + 50, 2, generator=generator, dtype=torch.float64)
        e[:, 1] += e[:, 0]
        z = torch.zeros_like(e)
        for t in range(2, len(z)):
            z[t] = 0.5 * z[t - 1] + 0.3 * z[t - 2].flip(0) + (e[t] ** 2 - e[t].abs())
        speaker = f"s{u % 6}"
        split = "eval" if u % 6 == 0 else "train"
        frames = z[50:].float().numpy()
        rows.append((f"{speaker}-{u}", speaker, split, frames, frames[:, 0].copy()))
    write_store(tmp_path / "source", SPEC, rows, dtype="float32")
    return LatentStore.open(tmp_path / "source")


def stacked(store: LatentStore, split: str = "train") -> Tensor:
    return torch.cat([torch.tensor(store.frames(name)).double() for name in store.ids(split)])


def autocovariance(store: LatentStore, lag: int) -> Tensor:
    """[d d] over both splits."""
    mean = stacked(store).mean(0)
    total, count = torch.zeros(2, 2).double(), 0
    for name in (*store.ids("train"), *store.ids("eval")):
        z = torch.tensor(store.frames(name)).double() - mean
        total += z[lag:].T @ z[: len(z) - lag]
        count += len(z) - lag
    return total / count


def skewness(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return (centred**3).mean(0) / (centred**2).mean(0) ** 1.5


def test_every_surrogate_keeps_ids_speakers_splits_and_lengths(tmp_path: Path) -> None:
    store = source(tmp_path)
    for kind in ("time_shuffle", "phase", "ar"):
        other = LatentStore.open(surrogate(store, kind, tmp_path / kind, seed=3))  # type: ignore[arg-type]
        for split in ("train", "eval"):
            assert sorted(other.ids(split)) == sorted(store.ids(split))
            for name in store.ids(split):
                assert other.speaker(name) == store.speaker(name)
                assert other.length(name) == store.length(name)
                assert not np.array_equal(other.frames(name), store.frames(name))
        assert other.spec.codec == f"surrogate-{kind}|mel"
        assert other.spec.fingerprint != store.spec.fingerprint
        again = LatentStore.open(surrogate(store, kind, tmp_path / f"{kind}2", seed=3))  # type: ignore[arg-type]
        assert all(np.array_equal(again.frames(name), other.frames(name)) for name in store.ids("train"))


def test_time_shuffle_keeps_frames_and_destroys_time(tmp_path: Path) -> None:
    store = source(tmp_path)
    other = LatentStore.open(surrogate(store, "time_shuffle", tmp_path / "o"))
    for name in store.ids("eval"):
        assert np.array_equal(np.sort(other.frames(name), 0), np.sort(store.frames(name), 0))
        assert np.array_equal(other.energy(name), other.frames(name)[:, 0])  # energies went with their frames
    scale = autocovariance(store, 0).abs().max()
    assert (autocovariance(store, 1).abs() > 0.3 * scale).all()
    assert (autocovariance(other, 1).abs() < 0.06 * scale).all()


def test_phase_randomisation_keeps_the_cross_spectrum_and_destroys_skewness(tmp_path: Path) -> None:
    store = source(tmp_path)
    other = LatentStore.open(surrogate(store, "phase", tmp_path / "o"))
    for name in (*store.ids("eval"), *store.ids("train")):
        z, x = store.frames(name).astype(np.float64), other.frames(name).astype(np.float64)
        np.testing.assert_allclose(x.mean(0), z.mean(0), atol=1e-5)
        a, b = np.fft.rfft(z, axis=0), np.fft.rfft(x, axis=0)
        cross = a[:, 0] * a[:, 1].conj()
        np.testing.assert_allclose(b[:, 0] * b[:, 1].conj(), cross, atol=1e-4 * np.abs(cross).max())
        np.testing.assert_allclose(np.abs(b), np.abs(a), atol=1e-4 * np.abs(a).max())
        assert np.isnan(other.energy(name)).all()
    assert (skewness(stacked(store)) > 0.8).all()
    assert (skewness(stacked(other)).abs() < 0.35).all()


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9])
def test_phase_randomisation_of_short_utterances(length: int) -> None:
    z = torch.randn(length, 3, generator=torch.Generator().manual_seed(length))
    x = phase_randomise(z, torch.Generator().manual_seed(0))
    assert x.shape == z.shape
    assert torch.isfinite(x).all()
    assert torch.allclose(torch.fft.rfft(x, dim=0).abs(), torch.fft.rfft(z.double(), dim=0).abs(), atol=1e-9)


def test_ar_surrogates_keep_autocovariance_up_to_their_order(tmp_path: Path) -> None:
    store = source(tmp_path)
    one = LatentStore.open(surrogate(store, "ar", tmp_path / "one", order=1))
    two = LatentStore.open(surrogate(store, "ar", tmp_path / "two", order=2))
    scale = autocovariance(store, 0).abs().max()
    for lag in (0, 1, 2, 4):
        assert ((autocovariance(two, lag) - autocovariance(store, lag)).abs() < 0.2 * scale).all()
    assert ((autocovariance(one, 1) - autocovariance(store, 1)).abs() < 0.2 * scale).all()
    # one frame of memory forgets faster than two
    assert autocovariance(one, 4).trace() < autocovariance(two, 4).trace() - 0.05 * scale
    assert (skewness(stacked(two)).abs() < 0.2).all()
    assert torch.allclose(stacked(two).mean(0), stacked(store).mean(0), atol=0.35)


def test_a_fitted_var_is_that_of_the_process(tmp_path: Path) -> None:
    fit = fit_var(source(tmp_path).load("train"), 2)
    expected = torch.tensor([[[0.5, 0.0], [0.0, 0.5]], [[0.0, 0.3], [0.3, 0.0]]]).double()
    assert (fit.coefficient - expected).abs().max() < 0.08
    assert fit.radius == pytest.approx(spectral_radius(expected), abs=0.05)
    z = simulate_var(fit, 400, 40, torch.Generator().manual_seed(0))
    first, last = (z[:, 0] - fit.mean) ** 2, (z[:, -1] - fit.mean) ** 2
    assert ((first - last).mean(0).abs() < 5 * (first - last).std(0) / 20).all()


def test_an_unstable_fit_is_shrunk_and_a_short_store_refused(tmp_path: Path) -> None:
    t = np.arange(40, dtype=np.float32)
    rows = [
        (f"{s}", s, split, np.stack([1.1**t, np.cos(t)], -1).astype(np.float32), None)
        for s, split in (("a", "train"), ("b", "eval"))
    ]
    write_store(tmp_path / "s", SPEC, rows, dtype="float32")
    store = LatentStore.open(tmp_path / "s")
    fit = fit_var(store.load("train"), 1)
    assert spectral_radius(fit.coefficient) == pytest.approx(0.999)
    assert fit.radius == 0.999
    with pytest.raises(UserError, match="Lower --order"):
        fit_var(store.load("train"), 20)


def test_the_command_takes_the_store_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source(tmp_path)
    flags = ["--kind", "time_shuffle", "--out", str(tmp_path / "o")]
    assert main([str(tmp_path / "source"), *flags], "arlat data surrogate") == 0
    assert "time_shuffle surrogate" in capsys.readouterr().out
    assert LatentStore.open(tmp_path / "o").spec.dim == 2
