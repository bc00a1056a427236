from __future__ import annotations

import pytest
from arlat_core.types import Count, Value
from arlat_diag.agreement import agrees
from arlat_diag.series import label
from arlat_diag.tables import cell, number

N = Count(speakers=33, utterances=70, frames=4123)


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (-6.25, 1, "−6.2"),
        (-0.001, 2, "0.00"),
        (12345.6, 0, "12\u2009346"),
        (5.03e13, 2, "5.03 × 10¹³"),
        (-2e-6, 3, "−2.00 × 10⁻⁶"),
    ],
)
def test_numbers_read_as_they_are_meant(value: float, places: int, text: str) -> None:
    assert number(value, places) == text


def test_a_cell_is_rounded_by_its_interval_and_knows_what_is_behind_it() -> None:
    found = cell(Value(value=-21.637, low=-22.1, high=-21.2, n=N, floor=-22.18, median=-20.0), floor=True)
    assert (found.text, found.small, found.floor) == ("−21.6", "[−22.1, −21.2]", "floor −22.2")
    assert "33 speakers, 70 utterances, 4\u2009123 frames; 95 % interval: bootstrap over speakers" in found.title
    assert "median −20.0" in found.title


def test_steps_are_whole_numbers_and_open_ends_are_shown() -> None:
    assert cell(Value(value=3, low=2, high=None, n=N, unit="steps")).small == "[2, …]"
    assert cell(Value(value=3, low=2, high=4, n=N, unit="steps")).text == "3"


def test_a_figure_that_could_not_be_had_says_why() -> None:
    beyond = cell(Value(value=None, n=N, status="> 16"))
    assert (beyond.text, beyond.tone) == ("> 16", "muted")
    assert cell(Value(value=None, n=N, status="undefined: A and D do not differ")).title.startswith(
        "undefined: A and D"
    )
    assert cell(None).text == "not run"


@pytest.mark.parametrize(
    ("low", "high", "truth", "verdict"),
    [
        (0.9, 1.1, 1.09, True),
        (0.99, 1.01, 1.029, True),
        (0.99, 1.01, 1.05, False),
        (None, None, 1.02, True),
        (-0.1, 0.1, None, None),
    ],
)
def test_agreement_is_the_interval_or_three_percent(
    low: float | None, high: float | None, truth: float | None, verdict: bool | None
) -> None:
    assert agrees(Value(value=1.0, low=low, high=high, truth=truth, n=N)) is verdict


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x07c", "a b c"),
        ("_x", "\u200a_x"),
        ("z" * 10, "z" * 10),
        ("vae:32,ar_loss=pred", "vae…s=pred"),
        ("", "(no name)"),
    ],
)
def test_a_figure_can_carry_any_name(text: str, shown: str) -> None:
    assert label(text, 10) == shown
