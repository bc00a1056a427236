from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from arlat_core.types import Count, Value
from arlat_diag.verdicts import OPPOSITE, Estimate, State, Verdict, against, clearly_above, estimate, every, ratio, some

N = Count(speakers=33, utterances=70, frames=4123)
STATES: tuple[State, ...] = ("holds", "fails", "undecided", "not run")


def made(value: float, low: float, high: float) -> Estimate:
    return estimate("x", Value(value=value, low=low, high=high, n=N), "")


def steps(value: float | None, low: float | None, high: float | None, status: str = "ok") -> Estimate:
    return estimate("h", Value(value=value, low=low, high=high, n=N, unit="steps", status=status), "")


def test_two_valued_logic_is_kept_and_one_decisive_part_decides() -> None:
    for state in STATES:
        assert every(["fails", state]) == "fails"
        assert some(["holds", state]) == "holds"
        assert every(["holds", state]) == state
        assert some(["fails", state]) == state
    assert every(["undecided", "not run"]) == some(["not run", "undecided"]) == "not run"


def test_de_morgan_holds_for_every_pair() -> None:
    for a, b in product(STATES, repeat=2):
        assert OPPOSITE[every([a, b])] == some([OPPOSITE[a], OPPOSITE[b]])


@pytest.mark.parametrize(
    ("low", "high", "relation", "state"),
    [
        (0.61, 0.7, ">", "holds"),
        (0.6, 0.7, ">", "undecided"),
        (0.5, 0.6, ">", "fails"),
        (0.5, 0.7, ">", "undecided"),
        (0.6, 0.7, "≥", "holds"),
        (0.5, 0.6, "≥", "undecided"),
        (0.5, 0.59, "≥", "fails"),
        (0.5, 0.6, "≤", "holds"),
        (0.6, 0.7, "≤", "undecided"),
        (0.61, 0.7, "≤", "fails"),
        (0.5, 0.6, "<", "undecided"),
        (0.5, 0.59, "<", "holds"),
        (0.6, 0.7, "<", "fails"),
    ],
)
def test_the_whole_interval_on_one_side_decides(low: float, high: float, relation: str, state: State) -> None:
    assert against(made((low + high) / 2, low, high), relation, 0.6).state == state


def test_a_figure_without_interval_decides_nothing_and_one_without_value_was_not_run() -> None:
    alone = estimate("x", Value(value=0.9, n=N, resampled="none", status="no interval: 1 utterance"), "c")
    assert against(alone, ">", 0.6).state == "undecided"
    broken = against(estimate("x", Value(value=None, n=N, status="3 of 9 are not finite"), "c"), ">", 0.6)
    assert (broken.state, broken.evidence, broken.command) == ("not run", "3 of 9 are not finite", "c")
    assert against(estimate("x", None, "c"), ">", 0.6).commands() == ["c"]


def test_horizons_beyond_the_measured_steps() -> None:
    never = steps(None, None, None, "> 16")
    assert against(never, ">", 10).state == "holds"
    assert against(never, ">", 16).state == "holds"  # 17 or more
    assert against(never, ">", 17).state == "undecided"
    assert against(steps(None, 9, None, "> 16"), ">", 10).state == "undecided"
    assert against(steps(12, 11, None), ">", 10).state == "holds"
    assert against(steps(4, 3, None), ">", 10).state == "undecided"


def test_clearly_above_means_intervals_apart() -> None:
    short, long, never = steps(4, 3, 5), steps(9, 8, 11), steps(None, None, None, "> 16")
    assert clearly_above(long, short).state == "holds"
    assert clearly_above(short, long).state == "fails"
    assert clearly_above(steps(5, 4, 6), short).state == "fails"  # they overlap
    assert clearly_above(never, long).state == "holds"
    assert clearly_above(long, never).state == "fails"
    assert clearly_above(never, never).state == "undecided"


def test_a_horizon_in_seconds_is_known_to_one_step() -> None:
    def seconds(first: float, last: float, rate: float) -> Estimate:
        return steps(first, first, last).in_seconds(rate)

    assert (seconds(2, 3, 10).low[0], seconds(2, 3, 10).high[1]) == (0.1, 0.3)
    assert clearly_above(seconds(9, 11, 75), seconds(3, 5, 12.5)).state == "fails"
    assert clearly_above(seconds(2, 2, 12.5), seconds(6, 6, 75)).state == "fails"  # 0.08–0.16 s against 0.067–0.08 s
    assert clearly_above(seconds(3, 3, 12.5), seconds(6, 6, 75)).state == "holds"
    assert clearly_above(seconds(6, 6, 12.5), seconds(5, 5, 12.5)).state == "fails"
    assert clearly_above(seconds(7, 7, 12.5), seconds(5, 5, 12.5)).state == "holds"
    never, long = steps(None, None, None, "> 16").in_seconds(75), seconds(16, 16, 75)
    assert clearly_above(never, long).state == "undecided"  # 16 steps and more against up to 16


def test_what_decides_is_named() -> None:
    yes, no = (Verdict(text=text, state=state) for text, state in (("a", "holds"), ("b", "fails")))
    inner = Verdict(text="or", state="holds", parts=(yes, no))
    outer = Verdict(text="and", state="fails", parts=(yes, Verdict(text="not", state="fails", parts=(inner,))))
    assert outer.decisive() == [yes]
    assert outer.leaves() == [yes, yes, no]


def test_the_interval_of_a_ratio_in_logarithms() -> None:
    found = ratio(made(20, 18, 22), made(8, 8, 8))
    assert found.value == 2.5
    assert found.low[0] == pytest.approx(18 / 8)  # a figure known exactly only scales
    assert found.high[1] == pytest.approx(22 / 8)
    both = ratio(made(20, 20 / math.exp(0.3), 20 * math.exp(0.3)), made(10, 10 / math.exp(0.4), 10 * math.exp(0.4)))
    assert both.low[0] == pytest.approx(2 * math.exp(-0.5))  # √(0.3² + 0.4²)
    assert both.high[1] == pytest.approx(2 * math.exp(0.5))
    swapped = ratio(made(10, 10 / math.exp(0.4), 10 * math.exp(0.4)), made(20, 20 / math.exp(0.3), 20 * math.exp(0.3)))
    assert swapped.low[0] == pytest.approx(1 / both.high[1])


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(3).normal([20.0, 10.0], [2.0, 0.8], (2000, 2))
    spans = [ratio(made(a, a - 3.92, a + 3.92), made(b, b - 1.568, b + 1.568)) for a, b in draws]
    assert 0.93 < np.mean([span.low[0] <= 2 <= span.high[1] for span in spans]) < 0.97


def test_a_ratio_is_careful_where_a_figure_reaches_nothing() -> None:
    some_, maybe, nothing = made(20, 18, 22), made(1, -1, 3), made(-2, -3, -1)
    low, high = ratio(some_, maybe).low[0], ratio(some_, maybe).high[1]
    assert 18 / 3 <= low < 20
    assert math.isinf(high)
    assert against(ratio(some_, maybe), ">", 2).state == "holds"
    assert (ratio(maybe, some_).low[0], against(ratio(maybe, some_), ">", 2).state) == (0.0, "fails")
    assert against(ratio(nothing, some_), ">", 2).state == "fails"
    assert against(ratio(some_, nothing), ">", 2).state == "holds"
    assert against(ratio(nothing, maybe), ">", 2).state == "undecided"
    assert against(ratio(some_, estimate("y", None, "c")), ">", 2).state == "not run"
