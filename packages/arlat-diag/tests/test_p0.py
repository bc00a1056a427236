"""P0 returns the closed forms of white noise, AR(1) and planted regimes, and its control is 1."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arlat_core.types import Value
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_diag.battery import chosen
from arlat_diag.diagnostics import p0


def planted(train: list[tuple[int, torch.Tensor]], held_out: list[tuple[int, torch.Tensor]]) -> Any:
    """A store of (speaker, frames [t d]); a NaN row follows each utterance, as gaps in a store."""
    parts = {}
    for name, items in (("train", train), ("eval", held_out)):
        gap = torch.full((1, items[0][1].shape[1]), torch.nan)
        length = torch.tensor([len(z) for _, z in items])
        parts[name] = SimpleNamespace(
            z=torch.cat([part for _, z in items for part in (z, gap)]),
            start=(length + 1).cumsum(0) - length - 1,
            length=length,
            ids=[str(i) for i in range(len(items))],
            speakers=[f"{speaker:03d}" for speaker, _ in items],
        )
    x = torch.cat([z for _, z in train]).double()
    covariance = torch.cov(x.T, correction=0)
    return SimpleNamespace(
        path=Path("planted"), load=parts.__getitem__, mean=x.mean(0), covariance=covariance, truth=None
    )


def inside(value: Value, truth: float) -> bool:
    assert value.low is not None
    assert value.high is not None
    return value.low <= truth <= value.high


def known(value: Value) -> float:
    assert value.value is not None
    return value.value


def walk(frames: int, drift: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    return (drift + sigma * torch.randn(frames, len(drift), generator=generator)).cumsum(0)


def test_white_noise_has_nothing_beyond_mean_reversion(tmp_path: Path) -> None:
    store = LatentStore.open(make("white", 6, 160, 150, 80, 3, tmp_path / "white"))
    result = p0.run(store, p0.Config(lags=(1, 2), clusters=16), tmp_path)
    values = result.values
    for lag in (1, 2):
        assert known(values[f"p0.lag{lag}.permuted"]) == pytest.approx(1, abs=0.01)
        assert inside(values[f"p0.lag{lag}.cross_speaker_loss"], 0.0)
    second = values["p0.lag2.variance_ratio"]
    assert inside(second, 1.0)
    assert known(second) == pytest.approx(1, abs=0.003)
    assert (second.truth, second.ceiling, second.floor) == (1.0, 1.0, 1.0)
    assert values["p0.lag2.mean_reversion"].truth == 1.0
    linear = values["p0.lag1.linear_variance_ratio"]
    assert linear.truth == 0.5
    assert known(linear) == pytest.approx(0.5, abs=0.01)
    first = values["p0.lag1.variance_ratio"]
    assert first.truth is None
    assert first.ceiling == 0.5
    assert 0.5 < known(values["p0.lag1.mean_reversion"]) < known(first) - 0.1 < 0.9
    assert "p0.lag2: the variance ratio" in " ".join(result.notes)
    assert "does not pass the bar of 0.6" in " ".join(result.notes)
    assert not any("permuted" in note for note in result.notes)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_linear_ratio_of_ar1(tmp_path: Path, rho: float) -> None:
    store = LatentStore.open(make("ar1", 4, 160, 120, 80, 1, tmp_path / "ar1", eval_fraction=0.5, rho=rho))
    values = p0.run(store, p0.Config(clusters=8, rows=4000), tmp_path).values
    for lag in (1, 2, 4):
        value = values[f"p0.lag{lag}.linear_variance_ratio"]
        assert value.truth == pytest.approx(1 - (1 - rho) * rho ** (2 * lag - 2) / 2)
        assert known(value) == pytest.approx(value.truth, abs=0.01)
    assert values["p0.lag1.linear_variance_ratio"].truth == pytest.approx((1 + rho) / 2)


def test_planted_regimes_reach_their_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)

    def side(first: int) -> list[tuple[int, torch.Tensor]]:
        """Four utterances per speaker; the regime, drawn for each, is dimension 0 and the sign of the drift of the others."""
        items = []
        for speaker in range(first, first + 40):
            for sign in (2.0 * torch.randint(2, (4,), generator=generator) - 1).tolist():
                moved = walk(50, torch.full((2,), sign), 0.5, generator)
                items.append((speaker, torch.cat([torch.full((50, 1), 2 * sign), moved], 1)))
        return items

    result = p0.run(planted(side(0), side(40)), p0.Config(clusters=8), Path())
    for lag in (1, 2, 4):
        ratio = result.values[f"p0.lag{lag}.variance_ratio"]
        assert known(ratio) == pytest.approx(0.5**2 / (1 + 0.5**2), abs=0.015)  # σ²/(v² + σ²)
        assert ratio.resampled == "speakers"
        assert known(result.values[f"p0.lag{lag}.cross_speaker_loss"]) == pytest.approx(0, abs=0.025)
        assert known(result.values[f"p0.lag{lag}.permuted"]) == pytest.approx(1, abs=0.01)
        assert any(f"p0.lag{lag}: the variance ratio" in n and "passes the bar of 0.6" in n for n in result.notes)


def test_steps_that_only_known_speakers_make_are_lost_on_new_ones() -> None:
    generator = torch.Generator().manual_seed(1)

    def side(speakers: int, first: int) -> list[tuple[int, torch.Tensor]]:
        """Four utterances per speaker; a code that never moves tells the speaker, and every speaker drifts its own way."""
        items = []
        for speaker in range(first, first + speakers):
            code, drift = 100 * torch.randn(4, generator=generator), torch.randn(4, generator=generator)
            for _ in range(4):
                items.append((speaker, torch.cat([code.expand(60, 4), walk(60, drift, 0.3, generator)], 1)))
        return items

    values = p0.run(planted(side(12, 0), side(30, 12)), p0.Config(lags=(1,), clusters=12), Path()).values
    loss = values["p0.lag1.cross_speaker_loss"]
    assert loss.low is not None
    assert loss.low > 0.4


def test_small_clusters_do_not_count_and_are_told() -> None:
    generator = torch.Generator().manual_seed(2)

    def side(counts: tuple[int, int, int], first: int) -> list[tuple[int, torch.Tensor]]:
        codes = 10 * torch.eye(3).repeat_interleave(torch.tensor(counts), 0)
        noise = 0.1 * torch.randn(len(codes), 40, 3, generator=generator)
        return [(first + i, code + rest) for i, (code, rest) in enumerate(zip(codes, noise, strict=True))]

    store = planted(side((30, 30, 2), 0), side((10, 10, 5), 100))
    result = p0.run(store, p0.Config(lags=(2,), clusters=3), Path())
    assert any("1 of 3 clusters" in note and "20.0 % of the held-out frames" in note for note in result.notes)
    assert result.values["p0.lag2.variance_ratio"].n.frames == 20 * (40 - 7 - 2)
    nothing = p0.run(store, p0.Config(lags=(2,), clusters=3, fewest_frames=10_000), Path())
    assert nothing.values["p0.lag2.variance_ratio"].value is None
    assert nothing.values["p0.lag2.variance_ratio"].status == "no frames"
    assert nothing.values["p0.lag2.cross_speaker_loss"].status == "no held-out frame lies in a cluster that counts"
    assert any("no cluster counts" in note for note in nothing.notes)


def test_too_few_windows_are_said_and_the_plugin_is_found() -> None:
    items = [(speaker, torch.randn(9, 2, generator=torch.Generator().manual_seed(speaker))) for speaker in range(4)]
    result = p0.run(planted(items, items), p0.Config(lags=(1,)), Path())
    (value,) = result.values.values()
    assert value.value is None
    assert value.status.startswith("not run: 4 training and 4 held-out windows of 8 frames and lag 1")
    assert "Give longer or more audio" in result.notes[0]
    assert chosen("p0") == ["p0"]


def test_the_same_seed_gives_the_same_figures() -> None:
    generator = torch.Generator().manual_seed(4)
    items = [(i // 2, torch.randn(60, 3, generator=generator)) for i in range(40)]
    config = p0.Config(lags=(1,), clusters=8)
    one, two = (p0.run(planted(items[:20], items[20:]), config, Path()).values for _ in range(2))
    assert one == two
    other = p0.run(planted(items[:20], items[20:]), config.model_copy(update={"seed": 5}), Path()).values
    assert other["p0.lag1.variance_ratio"].value != one["p0.lag1.variance_ratio"].value
