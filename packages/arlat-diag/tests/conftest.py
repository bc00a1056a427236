"""Results as the battery would write them, made up by formula, so that the report's tests need no battery."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from arlat_core.types import Count, LatentSpec, Value, WorstFrame
from arlat_diag.results import Representation, Results

N = Count(speakers=33, utterances=70, frames=4123)
K = 16


def figure(value: float, half: float, **more: Any) -> Value:
    return Value(value=value, low=value - half, high=value + half, n=N, **more)


def p0_values() -> dict[str, Value]:
    out: dict[str, Value] = {}
    for lag, ratio in ((1, 0.71), (2, 0.985), (4, 1.0)):
        out[f"p0.lag{lag}.variance_ratio"] = figure(ratio, 0.004, floor=1.0)
        out[f"p0.lag{lag}.permuted"] = figure(1.0, 0.003, floor=1.0)
        out[f"p0.lag{lag}.mean_reversion"] = figure((1 + ratio) / 2, 0.004, floor=1.0)
        out[f"p0.lag{lag}.linear_variance_ratio"] = figure(ratio - 0.02, 0.004, floor=1.0)
        out[f"p0.lag{lag}.cross_speaker_loss"] = figure(0.002, 0.004, floor=0.0)
    return out


def p1_values(dim: int, strength: float) -> dict[str, Value]:
    """B0 that improves with the horizon while B5 falls to nothing, as SPEC §2's trap."""
    out: dict[str, Value] = {}
    floor = -(dim / 2) * math.log(2)
    for h in (1, 2, 4, 8):
        known = strength * math.exp(-(h - 1) / 2.5)
        for model, share in (("", 1.0), ("var_", 0.8)):
            out[f"p1.h{h}.{model}dnll_b0"] = figure(floor * (0.6 + 0.06 * h) - share * known, 0.5, floor=floor)
            out[f"p1.h{h}.{model}dnll_b5"] = figure(
                -share * known,
                0.3,
                floor=0.0,
                unit="nats/frame",
                median=-share * known + 0.1,
                trimmed_mean=-share * known,
            )
            out[f"p1.h{h}.{model}cosine"] = figure(0.71 - 0.04 * share / h, 0.01, floor=0.66)
        for name, gain in (("b0f", 1.4), ("b1", 1.2), ("b2", 1.1), ("b3", 0.5), ("b4", 0.1), ("b5_gaussian", 1.05)):
            out[f"p1.h{h}.dnll_{name}"] = figure(-gain * known, 0.3)
        out[f"p1.h{h}.nll"] = figure(12.5 * dim, 0.8, median=12.4 * dim, trimmed_mean=12.45 * dim)
        out[f"p1.h{h}.cosine_floor"] = figure(0.66, 0.01)
        out[f"p1.h{h}.cosine_null"] = figure(dim**-0.5, 0.0)
        out[f"p1.h{h}.logmag_r2"] = figure(0.2 / h, 0.02, floor=0.0)
        out[f"p1.h{h}.magnitude_ratio"] = figure(0.6, 0.01)
        out[f"p1.h{h}.information_rate"] = figure(known * 12.5 / math.log(2), 3.0, unit="bit/s", floor=0.0)
    for lag in (2, 4, 8):
        out |= {f"p1.lag{lag}.dnll_{b}": figure(-2.0 / lag, 0.2) for b in ("b0", "b1", "b2")}
        out[f"p1.lag{lag}.cosine"] = figure(0.5 / lag, 0.02)
    out["p1.slice.high_energy.h1.dnll_b5"] = figure(-strength * 1.2, 0.4, floor=0.0)
    out["p1.slice.medial.h1.dnll_b5"] = figure(-strength * 1.1, 0.4, floor=0.0)
    return out


def p2_values(dim: int, strength: float) -> dict[str, Value]:
    """A κ that keeps its word on average, and a σ that is too small where it is small."""
    floor = -(dim / 2) * math.log(2) * 0.6
    known = {"dir_uniform": floor - strength, "dir_marginal": floor - strength, "dir_expected": floor - strength - 0.4}
    known |= {"mag_marginal": -0.8, "b0f": floor - strength - 0.8, "b5": -0.6 * strength}
    out = {f"dnll_{name}": figure(value, 0.4, floor=0.0) for name, value in known.items()}
    out["dnll_dir_uniform"] = figure(floor - strength, 0.4, floor=floor)
    out["var_dnll_dir_uniform"] = figure(floor - 0.8 * strength, 0.4)
    parts = {"nll_dir": -0.9 * dim, "nll_mag": 3.4, "jacobian": 3.4 * dim, "nll": 2.5 * dim + 3.4}
    out |= {name: figure(value, 0.8, unit="nats/frame") for name, value in parts.items()}
    out |= {"cosine": figure(0.68, 0.01, floor=0.66), "cosine_expected": figure(0.69, 0.01)}
    out |= {
        "var_cosine": figure(0.675, 0.01),
        "cosine_null": figure(dim**-0.5, 0.0),
        "cosine_floor": figure(0.66, 0.01),
    }
    out |= {
        f"kappa_{name}": figure(scale * dim, 0.02 * dim) for name, scale in (("q25", 1), ("median", 1.2), ("q75", 1.4))
    }
    out |= {f"sigma_{name}": figure(0.2 + 0.05 * i, 0.01) for i, name in enumerate(("q25", "median", "q75"))}
    out |= {"logmag_r2": figure(0.4, 0.02, floor=0.0), "saturated_fraction": figure(0.0, 0.0, ceiling=0.0)}
    out["still_fraction"] = figure(0.0, 0.0)
    for i in range(1, 11):
        promised, sigma = 0.5 + 0.025 * i, 0.1 + 0.03 * i
        out[f"calibration.kappa[{i}]"] = figure(promised - 0.01, 0.01, ceiling=promised)
        out[f"calibration.kappa_expected[{i}]"] = figure(promised, 0.002)
        out[f"calibration.sigma[{i}]"] = figure(1.2 - 0.02 * i, 0.05, ceiling=1.0)
        out[f"calibration.sigma_predicted[{i}]"] = figure(sigma, 0.002)
        out[f"calibration.cosine.pit[{i}]"] = figure(0.6 + 0.04 * (i - 5.5) ** 2, 0.05, ceiling=1.0)
        out[f"calibration.length.pit[{i}]"] = figure(1.0, 0.05, ceiling=1.0)
    out |= {f"calibration.{name}": figure(0.012, 0.008, ceiling=0.0) for name in ("kappa_error", "sigma_error")}
    out |= {f"calibration.{name}.ks": figure(0.12, 0.02, ceiling=0.005) for name in ("cosine", "length")}
    return {f"p2.{key}": value for key, value in out.items()}


def p4_values(dim: int, rho: float) -> dict[str, Value]:
    out = {f"p4.rho[{k}]": figure(rho**k, 0.02, floor=0.0) for k in range(1, 17)}
    out |= {f"p4.spectrum[{i}]": figure(2.5 * math.exp(-i / 5) + 0.2, 0.1, floor=1.0) for i in range(17)}
    out["p4.effective_dim"] = figure(dim / 3, dim / 40)
    out["p4.curvature"] = figure(-0.31, 0.01, floor=-0.5)
    out["p4.lipschitz.median"] = figure(1.21, 0.03, floor=1.6)
    out["p4.step_median"] = figure(14.2, 0.3)
    return out


def r1_values(dim: int) -> dict[str, Value]:
    out: dict[str, Value] = {"r1.cosine_null": figure(dim**-0.5, 0.0)}
    for mode, decay in (("A", 0.0), ("B", 0.12), ("C", 0.25), ("D", 0.35), ("S", 0.6), ("var.D", 0.3), ("var.A", 0.0)):
        for s in range(1, K + 1):
            since = (s - 1) % 4 if mode == "B" else s - 1
            left = math.exp(-decay * since)
            floor = None if mode.startswith("var") else 0.6 * math.exp(-0.5 * since)
            out[f"r1.{mode}.cosine[{s}]"] = figure(0.68 * left, 0.02, floor=floor)
            out[f"r1.{mode}.magnitude_ratio[{s}]"] = figure(1.0 if mode == "S" else 0.62 * left, 0.02)
            out[f"r1.{mode}.state_error[{s}]"] = figure(20 * (1 - left), 0.4, floor=21.0)
            out[f"r1.{mode}.dnll_b0[{s}]"] = figure(-20 * left, 0.5)
            out[f"r1.{mode}.dnll_b5[{s}]"] = figure(5 * (1 - left) - 6 * left, 0.5, floor=0.0)
    for name, step in (("info_curve", 3), ("info", 2), ("dir", 9), ("decor", 12)):
        out[f"r1.horizon.{name}"] = Value(value=step, low=step, high=step + 1, n=N, unit="steps")
    for end, step in (("q25", 1), ("q75", 4)):
        out[f"r1.horizon.info.{end}"] = Value(value=step, n=N, unit="steps")
    out["r1.horizon.seed"] = Value(value=None, n=N, status="> 16")
    out["r1.recovery_gain"] = figure(0.84, 0.05, floor=0.0, ceiling=1.0)
    return out


def r2_values(dim: int) -> dict[str, Value]:
    """R1's curves again, of a model that holds out longer."""
    kept = ("r1.A.", "r1.D.", "r1.S.", "r1.var.D.", "r1.horizon.")
    out = {key.replace("r1.", "r2.k16."): value for key, value in r1_values(dim).items() if key.startswith(kept)}
    out["r2.k16.horizon.info"] = Value(value=14, low=13, high=15, n=N, unit="steps")
    out["r2.k16.saturated_fraction"] = figure(0.003, 0.001, floor=0.0)
    return out


def r4_values() -> dict[str, Value]:
    """A rollout that turns at the wrong speed: its excess is errors of single steps."""
    out: dict[str, Value] = {}
    for s in range(1, K + 1):
        unknown, lasting = 40 * (1 - 0.8 ** (2 * s)), 1.5 * s
        parts = {"intrinsic": unknown, "one_step": lasting, "amplification": 0.1 * s, "collapse": 0.2}
        total = sum(parts.values())
        out |= {f"r4.error.{part}[{s}]": figure(value, 0.1, floor=40.0) for part, value in parts.items()}
        out[f"r4.error.total[{s}]"] = figure(total, 0.5, floor=40.0, ceiling=unknown)
        out[f"r4.error.root[{s}]"] = figure(total**0.5, 0.1, floor=40**0.5, ceiling=unknown**0.5)
        out[f"r4.movement[{s}]"] = figure(0.9, 0.02, ceiling=1.0)
        out[f"r4.travel[{s}]"] = figure(1.02, 0.02, ceiling=1.0)
        out[f"r4.spread_skill[{s}]"] = figure(0.8, 0.05, ceiling=1.0)
        out[f"r4.knn_ratio[{s}]"] = figure(1.04, 0.03, ceiling=1.0)
        out[f"r4.frechet[{s}]"] = figure(3.0 + 0.1 * s, 0.4, ceiling=2.5)
        out[f"r4.frechet_ratio[{s}]"] = figure(1.2, 0.2, ceiling=1.0)
    out |= {f"r4.spectrum[{i}]": figure(0.3 - 0.1 * i, 0.2, ceiling=0.0, unit="dB") for i in range(1, 9)}
    out |= {"r4.share.intrinsic": figure(0.7, 0.02), "r4.excess.one_step": figure(0.93, 0.02)}
    out |= {"r4.excess.amplification": figure(0.05, 0.02), "r4.excess.collapse": figure(0.02, 0.01)}
    out |= {"r4.spectral_halves": figure(0.2, 0.1, unit="dB"), "r4.lyapunov": figure(-0.02, 0.01)}
    return out


def l2_values() -> dict[str, Value]:
    """Speech between another speaker's and its own."""
    out: dict[str, Value] = {}
    scale = {
        "pesq_wb": (1.1, 4.64),
        "stoi": (0.4, 1.0),
        "estoi": (0.0, 1.0),
        "mel_distance": (1.9, 0.0),
        "mos": (1.8, 4.4),
    }
    for metric, (floor, ceiling) in scale.items():
        between = (floor + ceiling) / 2
        out[f"l2.{metric}"] = figure(between, 0.05, floor=floor, ceiling=ceiling)
        out[f"l2.original.{metric}"] = figure(ceiling, 0.0)
    out["l2.si_sdr"] = figure(3.0, 1.0, floor=-50.0, unit="dB")
    return out | {f"l2.{metric}.n_valid": figure(70, 0, ceiling=70.0) for metric in (*scale, "si_sdr")}


def representation(name: str, dim: int, truth: dict[str, Any] | None = None) -> Representation:
    rate = 12.5
    return Representation(
        spec=LatentSpec(
            codec=name, space="log-mel", dim=dim, frame_rate=rate, sample_rate=24000, fingerprint="0123456789abcdef"
        ),
        store_hash="fedcba9876543210",
        counts={"train": Count(speakers=210, utterances=296, frames=40321), "eval": N},
        worst=[WorstFrame(key="p1.h1.dnll_b5", utterance="84-121123-0001", frame=7, value=55.2)],
        settings={"p4": {"spectrum_hz": [i * rate / 32 for i in range(17)]}},
        truth=truth,
    )


def real(names: dict[str, int]) -> Results:
    """A results.json of representations name -> dimension, with P0, P1, P2, P4, R1, R2, R4 and L2."""
    results = {
        name: p0_values()
        | p1_values(dim, 4.0 + 2 * i)
        | p2_values(dim, 4.0 + 2 * i)
        | p4_values(dim, 0.75 - 0.15 * i)
        | r1_values(dim)
        | r2_values(dim)
        | r4_values()
        | l2_values()
        for i, (name, dim) in enumerate(names.items())
    }
    manifest = {"seed": 0, "inputs": dict.fromkeys(names, "fedcba9876543210"), "versions": {"torch": "2.11.0"}}
    return Results(
        results=results,
        representations={name: representation(name, dim) for name, dim in names.items()},
        provenance=[manifest],
    )


def synthetic(name: str = "ar1 rho=0.8 D=8", wrong: tuple[str, ...] = ()) -> Results:
    """A calibration run in which the figures `wrong` miss their truth."""
    values = {
        key: value.model_copy(update={"truth": (value.value or 0.0) + (9.0 if key in wrong else 0.1 * 0.02)})
        for key, value in (p1_values(8, 4.0) | r1_values(8)).items()
        if ".dnll_b" in key or ".cosine" in key
    }
    return Results(
        results={name: values}, representations={name: representation(name, 8, {"process": "ar1", "values": {}})}
    )


@pytest.fixture
def real_results() -> Callable[[dict[str, int]], Results]:
    return real


@pytest.fixture
def synthetic_results() -> Callable[..., Results]:
    return synthetic
