"""The benchmark of forward-only ops where there is no GPU: its rivals have one law, what has another is refused, no row is written."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_sampling", BENCHMARKS / "sampling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # as where the script is run
        spec.loader.exec_module(module)
    sys.modules.pop("rollout")
    return module


def test_all_ways_have_one_law_and_a_wrong_one_is_refused(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    shape = bench.Shape(dim=8, hidden=16, steps=3, rows=5, layers=1, window=2)
    assert bench.wrong(shape, "cpu") is None
    draw, by_steps, one_step = bench.draw, bench.langevin_by_steps, bench.Stepped.one_step

    def longer(*inputs: object) -> object:
        out = draw(*inputs)
        return out._replace(step=1.2 * out.step) if inputs[-1] == "fused" else out

    def narrower(self: object, window: object, true_step: object, noise: torch.Tensor, seed: object) -> object:
        return one_step(self, window, true_step, 0.7 * noise, seed)

    monkeypatch.setattr(bench, "draw", longer)
    assert "fused: states are" in bench.wrong(shape, "cpu")
    monkeypatch.setattr(bench, "draw", lambda *a: draw(*a)._replace(log_prob=1.1 * draw(*a).log_prob))
    assert "eager: log p is" in bench.wrong(shape, "cpu")
    monkeypatch.setattr(bench, "draw", draw)
    monkeypatch.setattr(bench.Stepped, "one_step", narrower)
    assert "compile: the variance of standardised log-lengths" in bench.wrong(shape, "cpu")
    monkeypatch.setattr(bench.Stepped, "one_step", one_step)
    monkeypatch.setattr(bench, "langevin_by_steps", lambda *inputs: 1.1 * by_steps(*inputs))
    assert "compile is 1.0e-01 from float64" in bench.wrong(shape, "cpu")


def test_a_row_has_its_ratio_to_the_loop(bench: ModuleType) -> None:
    shape = bench.Shape(dim=8, hidden=16, steps=3, rows=5)
    times = {"eager": [3.0, 4.0, 5.0], "fused": [1.0, 2.0, 3.0]}
    eager, fused = bench.rows_of("langevin", shape, times, {"device": "that one"})
    assert (eager["ratio"], fused["ratio"], fused["p50_ms"]) == (1.0, 2.0, 2.0)
    assert (fused["op"], fused["implementation"], fused["case"]["steps"]) == ("langevin", "fused", 3)
    assert fused["device"] == "that one"


def test_without_a_device_a_figure_is_the_cpus_and_no_row_is_written(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "sampling.jsonl")
    measured = bench.on_cpu
    monkeypatch.setattr(bench, "on_cpu", lambda: measured(replace(bench.ON_CPU, rows=64, steps=2)))
    monkeypatch.setattr(bench, "ROUNDS", 2)
    assert bench.main([]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "no kernel is measured" in first
    assert second.startswith("CPU, float32")
    assert "ratio" in second
    assert not (tmp_path / "sampling.jsonl").exists()
