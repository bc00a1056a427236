"""Readouts on processes whose slow, predictable directions were planted, and the command that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_core.config import UserError
from arlat_data.codecs import readout
from arlat_data.codecs._readout_fit import RIDGE, SEARCH, Fit, Stretch, fit, gather, lift_of, quality
from arlat_data.readout_command import main
from arlat_data.store import LatentStore
from arlat_data.synth import make
from torch import Tensor

DIM, SLOW, RHO = 8, 2, 0.9


def ar1(diagonal: Tensor, scale: Tensor, frames: int, seed: int) -> Tensor:
    """One long path of independent AR(1) dimensions of the given correlations and standard deviations, [t d]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(frames, len(diagonal), generator=generator, dtype=torch.float64)
    z = noise.clone()
    for t in range(1, frames):
        z[t] = diagonal * z[t - 1] + (1 - diagonal**2).sqrt() * noise[t]
    return scale * z


def angle(found: Tensor, planted: Tensor) -> float:
    """Smallest cosine of the principal angles between the row spaces of found [k d] and planted [k d]."""
    ends = [torch.linalg.qr(rows.double().T)[0] for rows in (found, planted)]
    return float(torch.linalg.svdvals(ends[0].T @ ends[1]).min())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    folder = tmp_path_factory.mktemp("stores") / "slow"
    return LatentStore.open(make("slow_subspace", DIM, 32, 400, 8, 0, folder, slow=SLOW, rho=RHO, fast_scale=3.0))


def test_slow_and_predictive_find_the_planted_subspace_and_pca_does_not(planted: LatentStore, tmp_path: Path) -> None:
    truth: Any = planted.truth
    basis = torch.tensor(truth["planted"]["slow_basis"])
    found = {kind: readout.fit_readout(planted, SLOW, 1, tmp_path / kind, kind=kind).down for kind in SEARCH}
    assert angle(found["slow"], basis) > 0.99
    assert angle(found["predictive"], basis) > 0.99
    assert angle(found["pca"], basis) < 0.5


def test_correlations_and_slowness_have_their_closed_forms(planted: LatentStore, tmp_path: Path) -> None:
    about = readout.fit_readout(planted, 4, 1, tmp_path, kind="predictive", future_frames=1).about
    for split in ("train", "eval"):
        worth = about.quality[split]  # type: ignore[index]
        assert worth.future[:2] == pytest.approx([RHO, RHO], abs=0.03)
        assert max(worth.future[2:]) < 0.1
        assert worth.slowness[:2] == pytest.approx([2 * (1 - RHO)] * 2, abs=0.05)
        assert worth.slowness[2:] == pytest.approx([2.0, 2.0], abs=0.1)
        assert worth.frames == 399 * worth.utterances
        assert worth.speakers == len({planted.speaker(name) for name in planted.ids(split)})
    assert about.explained == pytest.approx(
        (2 + 2 * 9) / (2 + 6 * 9), abs=0.03
    )  # two slow directions and two of the six


def test_what_is_found_does_not_depend_on_the_coordinates() -> None:
    diagonal = torch.tensor([0.9, 0.6, 0.2, 0.0, 0.0], dtype=torch.float64)
    z = ar1(diagonal, torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0], dtype=torch.float64), 4000, 0)
    mix = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2 * torch.eye(5)
    for kind in ("predictive", "slow"):
        seen = []
        for frames in (z, z @ mix):
            stretch = gather(frames, [0], [len(frames)], 2, 2)
            y = (frames.unfold(0, 2, 1).movedim(-1, -2).flatten(1) - stretch.mean[:10]) @ SEARCH[kind](
                stretch, 2, RIDGE
            ).T
            seen.append(torch.linalg.qr(y - y.mean(0))[0])
        assert float(torch.linalg.svdvals(seen[0].T @ seen[1]).min()) > 0.99


def test_white_noise_promises_nothing_on_other_speakers(tmp_path: Path) -> None:
    store = LatentStore.open(make("white", 6, 32, 300, 8, 0, tmp_path / "white"))
    about = readout.fit_readout(store, 3, 2, tmp_path / "fit", kind="predictive").about
    assert max(map(abs, about.quality["eval"].future)) < 0.1
    assert min(about.quality["eval"].slowness) > 0.9  # the mean of two successive frames has 1, no direction less


def test_correlations_of_few_held_out_frames_are_not_fitted_again() -> None:
    """With 128 numbers in the future and 300 frames, pairs chosen on those frames would correlate beyond 0.5."""
    z = ar1(torch.zeros(32, dtype=torch.float64), torch.ones(32, dtype=torch.float64), 6000, 3)
    train, other = gather(z[:5700], [0], [5700], 2, 4), gather(z[5700:], [0], [300], 2, 4)
    assert float(torch.linalg.svdvals(SEARCH["predictive"](other, 8, RIDGE) @ other.across()).max()) > 0.5
    assert max(map(abs, worth(other, fit(train, "predictive", 8)).future)) < 0.2  # 1/√296 is 0.06


def worth(stretch: Stretch, found: Fit) -> Any:
    return quality(stretch, found, speakers=1, utterances=1)


def test_canonical_correlations_of_a_low_rank_var_are_those_of_its_matrices() -> None:
    """z' = A z + e, A of rank 2: squared correlations of successive frames are eigenvalues of S⁻¹ (A S)ᵀ S⁻¹ (A S)."""
    generator = torch.Generator().manual_seed(4)
    a = 0.45 * torch.randn(6, 2, generator=generator, dtype=torch.float64) @ torch.eye(2, 6, dtype=torch.float64)
    s = torch.eye(6, dtype=torch.float64)
    for _ in range(200):
        s = a @ s @ a.T + torch.eye(6, dtype=torch.float64)
    exact = torch.linalg.eigvals(torch.linalg.solve(s, s @ a.T) @ torch.linalg.solve(s, a @ s)).real
    expected = exact.clamp_min(0).sqrt().sort(descending=True).values[:4].tolist()
    assert expected[1] > 0.3
    assert expected[2] < 1e-6
    z = torch.randn(20_000, 6, generator=generator, dtype=torch.float64)
    for t in range(1, len(z)):
        z[t] += a @ z[t - 1]
    train, other = (gather(part, [0], [len(part)], 1, 1) for part in (z[:10_000], z[10_000:]))
    found = fit(train, "predictive", 4)
    assert worth(train, found).future == pytest.approx(expected, abs=0.03)
    assert worth(other, found).future == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("kind", ["predictive", "slow"])
def test_a_weak_white_direction_is_neither_slow_nor_predictive(kind: Any) -> None:
    """A direction far weaker than the noise that the search assumes does not vary in what is searched, but is not slow."""
    diagonal, scale = torch.tensor([0.9, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.003])
    z = ar1(diagonal.double(), scale.double(), 8000, 0)
    stretch = gather(z, [0], [len(z)], 1, 1)
    found = fit(stretch, kind, 1)
    assert angle(found.rows * scale, torch.eye(4)[:1]) > 0.99
    assert worth(stretch, found).slowness == pytest.approx([0.2], abs=0.03)


def test_a_ridge_steadies_a_fit_on_few_frames() -> None:
    """One slow direction among 99 white ones, 150 frames for 200 numbers."""
    diagonal = torch.zeros(100, dtype=torch.float64)
    diagonal[0] = 0.95
    z = ar1(diagonal, torch.where(diagonal > 0, 3.0, 1.0).double(), 4150, 7)
    few, other = gather(z[:150], [0], [150], 1, 1), gather(z[150:], [0], [4000], 1, 1)
    loose, steady = (worth(other, fit(few, "predictive", 1, ridge=ridge)).future[0] for ridge in (1e-6, 1.0))
    assert steady > loose + 0.1
    assert steady > 0.85


@pytest.mark.parametrize("kind", ["predictive", "slow"])
def test_every_direction_has_variance_1(kind: Any) -> None:
    z = ar1(torch.tensor([0.9, 0.5, 0.1]).double(), torch.tensor([0.01, 1.0, 5.0]).double(), 3000, 6)
    stretch = gather(z, [0], [len(z)], 1, 1)
    rows = fit(stretch, kind, 3).rows
    torch.testing.assert_close((rows @ stretch.now() @ rows.T).diagonal(), torch.ones(3, dtype=torch.float64))


def test_one_dimension_is_its_own_readout() -> None:
    z = ar1(torch.tensor([0.8]).double(), torch.tensor([3.0]).double(), 8000, 5)
    stretch = gather(z, [0], [len(z)], 1, 1)
    for kind in SEARCH:
        found = fit(stretch, kind, 1)
        figures = worth(stretch, found)
        assert figures.explained == pytest.approx(1.0)
        assert figures.future == pytest.approx([0.8], abs=0.03)
        assert figures.slowness == pytest.approx([0.4], abs=0.03)


def test_the_lift_is_the_best_linear_guess() -> None:
    z = ar1(
        torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 3000, 2
    )
    stretch = gather(z, [0], [len(z)], 1, 1)
    rows = SEARCH["slow"](stretch, 2, RIDGE)
    up = lift_of(rows, stretch.now())
    residual = z[:-1] - stretch.mean[:3] - (z[:-1] - stretch.mean[:3]) @ rows.T @ up.T
    y = (z[:-1] - stretch.mean[:3]) @ rows.T
    assert float((residual.T @ y).abs().max() / len(y)) < 1e-8  # what is left is uncorrelated with what was read
    found = fit(stretch, "slow", 2)
    torch.testing.assert_close(found.up, up)
    for part in (z, z[:400] + 2.0):  # about the training mean, wherever the frames lie
        centred = part[:-1] - stretch.mean[:3]
        residual = centred - centred @ rows.T @ up.T
        expected = 1 - float(residual.square().sum() / centred.square().sum())
        assert worth(gather(part, [0], [len(part)], 1, 1), found).explained == pytest.approx(expected, abs=1e-6)


def test_the_command_fits_prints_and_projects(
    planted: LatentStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data.latents_dir={planted.path}", "--kind", "slow", "--dim", "2", "--context-frames", "1"]
    arguments += ["--out", str(tmp_path / "fit"), "--latents", str(tmp_path / "store")]
    assert main(arguments, "arlat data readout") == 0
    printed = capsys.readouterr().out
    assert "held-out" in printed
    low = LatentStore.open(tmp_path / "store")
    assert low.spec.dim == 2
    assert low.ids("eval") == planted.ids("eval")
    before = (tmp_path / "fit" / "readout.safetensors").stat().st_mtime_ns
    assert main(arguments, "arlat data readout") == 0
    assert (tmp_path / "fit" / "readout.safetensors").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("finished before") == 2
    other = [*arguments[:2], "pca", *arguments[3:-4], "--out", str(tmp_path / "other"), *arguments[-2:]]
    with pytest.raises(UserError, match="not this readout"):
        main(other, "arlat data readout")
    with pytest.raises(UserError, match="dim: was 2, is 3"):
        main([*arguments, "--dim", "3"], "arlat data readout")


def test_what_cannot_be_fitted_is_said_in_words(planted: LatentStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than 8192"):
        readout.fit_readout(planted, 2, 4000, tmp_path)
    short = LatentStore.open(make("white", 3, 4, 5, 4, 0, tmp_path / "short"))
    with pytest.raises(UserError, match="3 directions need more than 3 frames with 4 after them"):
        readout.fit_readout(short, 3, 2, tmp_path / "fit", kind="slow", future_frames=4)
    flat = gather(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 2), [0], [500], 1, 1)
    for kind in SEARCH:
        assert len(fit(flat, kind, 3, whiten=True).rows) == 3
        with pytest.raises(UserError, match="vary in 3 directions, but 4 were asked for"):
            fit(flat, kind, 4, whiten=True)
    with pytest.raises(UserError, match="has 6 canonical directions, not 8"):
        fit(gather(torch.randn(500, 6, generator=torch.Generator().manual_seed(1)), [0], [500], 2, 1), "predictive", 8)
