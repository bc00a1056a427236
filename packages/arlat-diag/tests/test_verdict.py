"""The verdict is a pure function of figures: one word for each cause, "undecided" where an interval straddles its bar."""

from __future__ import annotations

import pytest
from arlat_core.types import Count, Value
from arlat_diag.verdict import WORDS, Thresholds, above, decide

N = Count(speakers=30, utterances=60, frames=120)
UNCERTAIN = {"share.intrinsic": (0.97, 0.01), "knn_ratio[2]": (1.0, 0.05), "error.total[2]": (1.0, 0.1)}
FAULTY = UNCERTAIN | {
    "share.intrinsic": (0.6, 0.05),
    "excess.collapse": (0.1, 0.05),
    "excess.amplification": (0.1, 0.05),
}


def figures(**changes: tuple[float, float]) -> dict[str, Value]:
    base = FAULTY | {name.replace("__", ".").replace("_at_2", "[2]"): pair for name, pair in changes.items()}
    out = {
        f"x.{name}": Value(value=value, low=value - half, high=value + half, n=N, floor=1.0)
        for name, (value, half) in base.items()
    }
    return out | {"x.error.total[1]": Value(value=0.5, low=0.4, high=0.6, n=N, floor=1.0)}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"share__intrinsic": (0.97, 0.01)}, "merely uncertain"),
        ({"share__intrinsic": (0.9, 0.03)}, "undecided"),
        ({"share__intrinsic": (0.97, 0.01), "knn_ratio_at_2": (2.0, 0.1)}, "drifts off-manifold"),
        ({}, "drifts on-manifold"),
        ({"knn_ratio_at_2": (1.25, 0.1)}, "undecided"),
        ({"knn_ratio_at_2": (1.5, 0.1)}, "drifts off-manifold"),
        ({"excess__collapse": (0.8, 0.1)}, "collapses"),
        ({"excess__collapse": (0.5, 0.1)}, "undecided"),
        ({"excess__amplification": (0.8, 0.1)}, "explodes"),
        ({"excess__amplification": (0.45, 0.1)}, "undecided"),
        ({"excess__collapse": (0.5, 0.1), "excess__amplification": (0.8, 0.1)}, "explodes"),
        ({"error__total_at_2": (20.0, 1.0)}, "explodes"),
        ({"error__total_at_2": (2.5, 0.1)}, "undecided"),
        ({"error__total_at_2": (2.0, 0.1)}, "drifts on-manifold"),
    ],
)
def test_each_cause_has_its_word(changes: dict[str, tuple[float, float]], word: str) -> None:
    values = figures(**changes)
    verdict = decide(values, "x")
    assert verdict is not None
    assert verdict.word == word
    assert verdict.word in WORDS
    assert set(verdict.keys) <= set(values)
    assert verdict.why.endswith(".")


def test_thresholds_are_data() -> None:
    values = figures(excess__collapse=(0.3, 0.05))
    strict = decide(values, "x", Thresholds(main=0.2))
    assert strict is not None
    assert strict.word == "collapses"
    loose = decide(values, "x", Thresholds(excess=0.5))
    assert loose is not None
    assert loose.word == "merely uncertain"


def test_what_is_missing_decides_nothing_and_infinity_explodes() -> None:
    assert decide({}, "x") is None
    assert decide(figures(), "y") is None
    lost = Value(value=None, n=N, status="3 of 120 are not finite")
    for key in ("x.error.total[2]", "x.knn_ratio[2]"):
        verdict = decide(figures() | {key: lost}, "x")
        assert verdict is not None
        assert verdict.word == "explodes"
        assert "not finite" in verdict.why
    none = decide({"x.error.total[1]": Value(value=None, n=N, status="not run: no utterance has 24 frames")}, "x")
    assert none is not None
    assert none.word == "undecided"
    bare = Value(value=0.5, n=N)
    assert above(bare, 0.1) is None
