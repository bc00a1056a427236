"""Readouts on processes whose slow, predictable directions were planted, and the command that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_core.config import UserError
from arlat_data.codecs import readout
from arlat_data.codecs._readout_fit import SEARCH, gather, lift_of, quality
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
        assert worth["future"][:2] == pytest.approx([RHO, RHO], abs=0.03)
        assert max(worth["future"][2:]) < 0.1
        assert worth["slowness"][:2] == pytest.approx([2 * (1 - RHO)] * 2, abs=0.05)
        assert worth["slowness"][2:] == pytest.approx([2.0, 2.0], abs=0.1)
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
            y = (frames.unfold(0, 2, 1).movedim(-1, -2).flatten(1) - stretch.mean[:10]) @ SEARCH[kind](stretch, 2).T
            seen.append(torch.linalg.qr(y - y.mean(0))[0])
        assert float(torch.linalg.svdvals(seen[0].T @ seen[1]).min()) > 0.99


def test_white_noise_promises_nothing_on_other_speakers(tmp_path: Path) -> None:
    store = LatentStore.open(make("white", 6, 32, 300, 8, 0, tmp_path / "white"))
    about = readout.fit_readout(store, 3, 2, tmp_path / "fit", kind="predictive").about
    assert max(about.quality["eval"]["future"]) < 0.15
    assert min(about.quality["eval"]["slowness"]) > 0.9  # the mean of two successive frames has 1, no direction less


def test_the_lift_is_the_best_linear_guess() -> None:
    z = ar1(
        torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 3000, 2
    )
    stretch = gather(z, [0], [len(z)], 1, 1)
    rows = SEARCH["slow"](stretch, 2)
    up = lift_of(rows, stretch.now())
    residual = z[:-1] - stretch.mean[:3] - (z[:-1] - stretch.mean[:3]) @ rows.T @ up.T
    y = (z[:-1] - stretch.mean[:3]) @ rows.T
    assert float((residual.T @ y).abs().max() / len(y)) < 1e-8  # what is left is uncorrelated with what was read
    assert quality(stretch, rows, up)["explained"][0] == pytest.approx(
        1 - float(residual.square().sum() / (z[:-1] - stretch.mean[:3]).square().sum()), abs=1e-6
    )


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
    with pytest.raises(UserError, match="dim: was 2, is 3"):
        main([*arguments, "--dim", "3"], "arlat data readout")


def test_what_cannot_be_fitted_is_said_in_words(planted: LatentStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than 8192"):
        readout.fit_readout(planted, 2, 4000, tmp_path)
    short = LatentStore.open(make("white", 3, 4, 5, 4, 0, tmp_path / "short"))
    with pytest.raises(UserError, match="3 directions need more than 3 frames with 4 after them"):
        readout.fit_readout(short, 3, 2, tmp_path / "fit", kind="slow", future_frames=4)
