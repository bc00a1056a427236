"""P3: on processes with known answers the battery returns them; on a real network it never does worse than nothing."""

from pathlib import Path

import pytest
from arlat_core.types import Count, Value
from arlat_diag.agreement import agrees
from arlat_diag.calibration import ENOUGH, Config, calibrate
from arlat_diag.diagnostics.p1 import Config as P1Config
from arlat_diag.results import read_results
from arlat_dynamics.train import TrainConfig

HEADLINES = ("p1.h1.dnll_b0", "p1.h1.dnll_b5", "p1.h8.dnll_b0", "p1.h1.cosine", "p1.h1.var_dnll_b5", "p1.lag2.dnll_b0")


def value(at: float, low: float, high: float, truth: float | None) -> Value:
    return Value(value=at, low=low, high=high, truth=truth, n=Count(speakers=2, utterances=2, frames=2))


def test_what_agreement_means() -> None:
    assert agrees(value(1.0, 0.9, 1.1, 1.05)) is True
    assert agrees(value(1.0, 0.99, 1.01, 1.02)) is True  # within 3 %
    assert agrees(value(1.0, 0.99, 1.01, 1.1)) is False
    assert agrees(value(0.1, 0.05, 0.15, 0.0)) is False
    assert agrees(value(1.0, 0.9, 1.1, None)) is None
    length = value(0.02, 0.01, 0.025, 0.0)
    assert agrees(length) is False
    assert agrees(length.model_copy(update={"unit": "true steps"})) is True


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("calibration")
    settings = P1Config(horizons=(1, 8), lags=(2,), train=TrainConfig(max_steps=120))
    return calibrate(small(out, settings))


def small(out: Path, p1: P1Config) -> Config:
    """What CI can afford."""
    processes = ("white", "ar1")
    return Config(out=out, dims=(8,), processes=processes, utterances=192, frames=200, p1=p1, only="p1,p4,r1,r4")


def test_the_battery_returns_the_known_answers_at_one_dimension(runs: list[Path]) -> None:
    assert len(runs) == 3
    for run in runs:
        ((name, values),) = read_results(run / "results.json").results.items()
        verdicts = {key: agrees(found) for key, found in values.items()}
        known = [verdict for verdict in verdicts.values() if verdict is not None]
        wrong = sorted(key for key, verdict in verdicts.items() if verdict is False)
        assert len(known) > 300, name
        assert sum(known) >= ENOUGH * len(known), f"{name}: {wrong}"
        for key in HEADLINES:
            found = values[key]
            assert found.truth is not None
            assert found.value is not None
            # no headline may miss by more than twice what its interval allows, or 3 %
            assert found.low is not None
            assert found.high is not None
            slack = max(0.03 * abs(found.truth), found.high - found.low, 0.02)
            assert abs(found.value - found.truth) <= slack, f"{name}: {key} = {found.value}, truth {found.truth}"


def test_a_second_call_measures_nothing_again(runs: list[Path]) -> None:
    parts = [path.stat().st_mtime_ns for run in runs for path in sorted((run / "parts").iterdir())]
    settings = P1Config(horizons=(1, 8), lags=(2,), train=TrainConfig(max_steps=120))
    out = runs[0].parents[1]
    again = calibrate(small(out, settings))
    assert again == runs
    assert [path.stat().st_mtime_ns for run in runs for path in sorted((run / "parts").iterdir())] == parts


def test_a_half_made_store_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arlat_diag.calibration.run_battery", lambda config, progress: config.out / "results.json")
    config = Config(out=tmp_path, dims=(2,), processes=("white",), utterances=22, frames=40, speakers=22)
    (run,) = calibrate(config)
    store = tmp_path / "stores" / run.name
    whole = {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    (store / "store.json").unlink()  # what a kill leaves: everything but what is written last
    next(path for path in store.rglob("*") if path.is_file()).write_bytes(b"broken")
    assert calibrate(config) == [run]
    assert {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()} == whole
