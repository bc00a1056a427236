"""The rollout benchmark where there is no GPU: its model is that of docs/kernels.md, its rivals are one rollout, and no row is written."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_rollout", ROOT / "benchmarks" / "rollout.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_operations_are_those_of_the_products(bench: ModuleType) -> None:
    shape = bench.Shape(dim=32, hidden=64, steps=1, rows=1, layers=2, window=4)
    block, window, head = 2 * 32 * 64, 2 * 4 * 32 * 32, 2 * 32 * 32
    assert bench.operations(shape, recomputed=False) == 2 * 6 * block + 3 * window + 3 * head
    assert bench.operations(shape, recomputed=True) == 2 * 9 * block + 3 * window + 4 * head
    many = bench.Shape(dim=32, hidden=64, steps=16, rows=7, layers=2, window=4)
    assert bench.operations(many, recomputed=True) == 16 * 7 * bench.operations(shape, recomputed=True)


def test_a_wave_is_two_programs_of_64_rows_to_a_multiprocessor(bench: ModuleType) -> None:
    assert [bench.wave(108, 64), bench.wave(132, 64), bench.wave(132, 128)] == [13_824, 16_896, 8_448]


def test_the_modelled_numbers_are_those_of_the_documentation(bench: ModuleType) -> None:
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^\| (\d+) / (\d+) \| ([\d.]+) \| ([\d.]+) / ([\d.]+) ms \| ([\d.]+) / ([\d.]+) ms \|$", text, re.M
    )
    rows = bench.modelled()
    assert len(found) == len(rows) / 2 == 5
    for written, a100, h100 in zip(found, rows[::2], rows[1::2], strict=True):
        assert written[:2] == (str(a100["dim"]), str(a100["hidden"]))
        times = [a100["tflop"], a100["products_ms"], h100["products_ms"], a100["memory_ms"], h100["memory_ms"]]
        assert [f"{time:.2f}" for time in times] == list(written[2:])


def test_all_ways_are_one_rollout_and_a_wrong_one_is_refused(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = bench.Shape(dim=8, hidden=16, steps=3, rows=5, layers=1, window=2)
    model, frames = bench.make(shape, "cpu")
    eager, fused = (bench.gradients(kind(model, 2), model, frames) for kind in (bench.Eager, bench.Fused))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    compiled = bench.gradients(bench.Compiled(model, 2), model, frames)
    for one, two, three in zip(eager, fused, compiled, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(three, one, rtol=1e-3, atol=1e-5)
    assert bench.wrong(shape, "cpu", narrow=False) is None
    forward = bench.Fused.forward
    monkeypatch.setattr(bench.Fused, "forward", lambda self, frames: 1.01 * forward(self, frames))
    assert "from float64" in bench.wrong(shape, "cpu", narrow=False)


def test_a_row_says_what_was_done_and_what_did_not_fit(bench: ModuleType) -> None:
    shape = bench.Shape(dim=64, hidden=256, steps=16, rows=4096)
    row = bench.row(shape, "fused", [1.0, 2.0, 3.0], 5.0, 100e12, [4.0, 8.0, 12.0])
    assert (row["p50_ms"], row["ratio"]) == (2.0, 4.0)
    assert row["tflops"] == pytest.approx(bench.operations(shape, recomputed=False) / 2e-3 / 1e12)
    assert row["ceiling_share"] == pytest.approx(bench.operations(shape, recomputed=True) / 2e-3 / 100e12)
    assert bench.row(shape, "eager", None, None, 100e12, None)["status"] == "out of memory"


def test_the_goals_stand_beside_what_was_reached(bench: ModuleType) -> None:
    assert [bench.goals(*sizes) for sizes in ((64, 1024), (512, 256))] == [{}, {}]
    times = {"eager": [24.0, 36.0, 30.0], "compile+graph": [3.0], "graph": [9.0], "fused": [2.0, 2.0, 8.0]}
    found = bench.beside_goals(bench.Shape(64, 512, 16, 4096), times)
    assert found["goals"] == {"eager": 12.0, "compile+graph": 2.0}
    assert found["ratios"] == {"eager": 15.0, "compile+graph": 1.5}
    assert found["goals_met"] == {"eager": True, "compile+graph": False}
    without = bench.beside_goals(bench.Shape(128, 256, 16, 4096), {"fused": [1.0], "compile+graph": [1.5]})
    assert without["ratios"] == {"compile+graph": 1.5}  # the eager way did not fit into memory
    assert without["goals_met"] == {"compile+graph": True}


def test_without_a_device_numbers_are_marked_as_modelled_and_no_row_is_written(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "rollout.jsonl")
    assert bench.main([]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "nothing is measured" in first
    assert [line.split(" ")[0] for line in lines] == ["modelled:"] * 12 + ["goal:"] * 6  # not H = 1024, not D = 512
    assert lines[12] == "goal: H100 D=32 H=256: at least 12 × eager, 2 × compile+graph; not measured here"
    assert lines[-1] == "goal: H100 D=128 H=512: at least 5 × eager, 1.3 × compile+graph; not measured here"
    assert not (tmp_path / "rollout.jsonl").exists()
