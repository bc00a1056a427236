"""The shipped Triton configurations compile for sm_80 and sm_90 without a GPU and use what the baseline says."""

from __future__ import annotations

import json
import pathlib
import struct
from dataclasses import replace
from typing import Any

import pytest
from arlat_kernels import aot
from arlat_kernels.residual_block import ACTIVATIONS

if why := aot.obstacle():
    pytest.skip(f"{why}; run by nox -s aot", allow_module_level=True)

BASELINE = pathlib.Path(__file__).resolve().parents[1] / "aot_baseline.json"


@pytest.fixture(scope="module")
def baseline() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BASELINE.read_text())
    return found


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return aot.measure()


def test_every_build_is_measured(measured: dict[str, Any]) -> None:
    assert len(measured["builds"]) == len(aot.shipped()) * len(aot.ARCHITECTURES) > 0
    assert all(8 <= usage["registers"] <= 255 for usage in measured["builds"].values())


def test_no_build_spills_or_asks_for_too_much(measured: dict[str, Any]) -> None:
    assert aot.faults(measured) == []


def test_usage_is_the_baseline(baseline: dict[str, Any], measured: dict[str, Any]) -> None:
    if baseline["triton"] != measured["triton"]:
        pytest.skip(f"the baseline is of triton {baseline['triton']}, this is {measured['triton']}")
    changes = "\n".join(aot.difference(baseline, measured))
    assert not changes, f"see `python -m arlat_kernels.aot`; accept with --update:\n{changes}"


def test_a_spill_is_seen_in_machine_code() -> None:
    triton = pytest.importorskip("triton")
    del triton
    from arlat_kernels.build import Build
    from arlat_kernels.mixture_triton import forward_kernel

    build = aot.shipped()[0]
    assert build.kernel is forward_kernel
    greedy = Build(
        name="greedy",
        kernel=build.kernel,
        constants={**build.constants, "ROWS": 128, "BLOCK": 512},
        types=build.types,
        aligned=False,
        warps=4,
    )
    usage = aot.compile_build(greedy, 80)
    assert usage["spills"] > 0
    assert aot.faults({"builds": {"greedy/sm_80": usage}})


def test_spills_in_loops_of_products_are_told_from_others() -> None:
    code = """
        /*0000*/ STL [R1], R2 ;
        /*0010*/ LDL R2, [R1] ;
        /*0020*/ HMMA.16816.F32 R4, R8, R2, R4 ;
        /*0030*/ @P0 BRA 0x10 ;
        /*0040*/ LDL R3, [R1] ;
        /*0050*/ FADD R3, R3, R2 ;
        /*0060*/ @P1 BRA 0x40 ;
        /*0070*/ @P2 BRA 0x0 ;
        /*0080*/ @P3 BRA 0xf0 ;
        /*0090*/ STL.64 [R1], R2 ;"""
    assert (
        aot.product_spills(code) == 1
    )  # not the outer loop's, not that of a loop without products, not a forward jump's
    assert aot.product_spills(code.replace("HMMA.16816.F32", "FFMA")) == 0


def test_the_rollout_has_no_loop_of_products_that_spills_and_does_where_its_tile_is_too_large() -> None:
    (build,) = [each for each in aot.shipped() if each.name == "residual_rollout/blocks/d64_s64_bf16"]
    assert aot.compile_build(build, 80)["product_spills"] == 0
    usage = aot.compile_build(replace(build, constants={**build.constants, "ROWS": 128}), 80)
    assert usage["product_spills"] > 0
    assert any("product_spills" in line or "spills" in line for line in aot.faults({"builds": {"x/sm_80": usage}}))


@pytest.mark.parametrize("architecture", aot.ARCHITECTURES)
def test_a_sweep_that_reads_its_tiles_again_spills_nowhere_in_its_chunks(architecture: int) -> None:
    """There the loop over chunks of units has a product of its own around the two that read, which are the innermost loops."""
    (build,) = [each for each in aot.shipped() if each.name == "residual_rollout/sweep/d128_s128_fp32"]
    loops = aot.product_loops(aot.machine_code(aot.compile_kernel(build, architecture).asm["cubin"])[1])
    innermost = [loop for loop in loops if not any(loop.holds(other) for other in loops)]
    around = [loop for loop in loops if sum(loop.holds(other) for other in innermost) == 2]
    chunks = min(around, key=lambda loop: loop.end - loop.start)
    assert chunks.products > sum(loop.products for loop in innermost if chunks.holds(loop)) > 0
    assert chunks.spills == 0
    assert build.constants["REREAD"]
    kept = aot.compile_build(replace(build, constants={**build.constants, "REREAD": False}), architecture)
    assert kept["product_spills"] > 0  # what it is for


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "silu"])
def test_no_other_activation_spills_in_a_loop_of_products(activation: str) -> None:
    """The baseline is of silu; here are the widest builds that have another, whose registers are the fullest."""
    shipped = [each for each in aot.shipped() if "/d128_s128_" in each.name]
    widest = [each for each in shipped if each.constants.get("ACTIVATION") == "silu"]
    assert len(widest) == 12
    for build in widest:
        constants = {**build.constants, "ACTIVATION": activation}
        used = {
            f"{build.name}/sm_{each}": aot.compile_build(replace(build, constants=constants), each) for each in (80, 90)
        }
        assert aot.faults({"builds": used}) == []


def test_the_rollout_compiles_where_sizes_of_one_become_constants() -> None:
    sizes = {"B", "J", "K", "W", "L", "N", "tiles"}
    for build in [each for each in aot.shipped() if each.name.endswith("/d32_s32_fp32")]:
        ones = {name: 1 for name in build.kernel.arg_names if name in sizes}
        assert len(ones) >= 3
        assert aot.compile_build(replace(build, constants={**build.constants, **ones}), 80)["spills"] == 0


@pytest.mark.parametrize("dim", [8, 512])
def test_the_log_normaliser_keeps_its_main_terms_in_float64(dim: int) -> None:
    """Fusing a·b + c into one instruction breaks double-float code, not float64; so float64 must be what is there."""
    pytest.importorskip("triton")
    (build,) = [each for each in aot.shipped() if each.name == f"vmf_log_norm/log_norm/d{dim}_fp32"]
    ptx = aot.compile_kernel(build, 80).asm["ptx"]
    assert "fma.rn.f64" in ptx
    assert "sqrt.rn.f64" in ptx
    assert "div.rn.f64" in ptx
    assert "cvt.rn.f32.f64" in ptx  # the result, rounded once
    for narrow in ("sqrt.approx", "sqrt.rn.f32", "lg2.approx"):  # no square root or logarithm is float32
        assert narrow not in ptx
    for name in ("UNIFORM", "NEAR_CONSTANT"):  # whole float64 constants, not float32 ones widened
        assert f"0d{struct.pack('>d', build.constants[name]).hex().upper()}" in ptx.upper().replace("0D", "0d")


def test_float64_kernels_hold_no_float32_number() -> None:
    pytest.importorskip("triton")
    wide = [each for each in aot.shipped() if each.name.endswith("fp64")]
    assert wide
    for build in wide:
        assert ".f32" not in aot.compile_kernel(build, 90).asm["ptx"], build.name


def test_differences_name_build_and_figure() -> None:
    old = {"triton": "1", "builds": {"a/sm_80": {"registers": 10}, "b/sm_80": {"registers": 7}}}
    new = {"triton": "1", "builds": {"a/sm_80": {"registers": 12}, "c/sm_80": {"registers": 9}}}
    assert aot.difference(old, old) == []
    assert aot.difference(old, new) == [
        "a/sm_80 registers: 10 → 12",
        "b/sm_80 registers: 7 → None",
        "c/sm_80 registers: None → 9",
    ]


def test_the_command_reports_and_updates(
    measured: dict[str, Any],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aot, "measure", lambda: measured)
    path = tmp_path / "baseline.json"
    assert aot.main(["--baseline", str(path)]) == 1
    assert "registers: None →" in capsys.readouterr().out
    assert not path.exists()
    assert aot.main(["--baseline", str(path), "--update"]) == 0
    assert json.loads(path.read_text()) == measured
    assert aot.main(["--baseline", str(path)]) == 0
    assert "builds are as in baseline.json" in capsys.readouterr().out.splitlines()[-1]
