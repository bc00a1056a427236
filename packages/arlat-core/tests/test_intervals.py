"""The intervals cover the truth as often as they say, resample what they say, and refuse what they cannot judge."""

from __future__ import annotations

import numpy as np
import pytest
from arlat_core.intervals import bootstrap_weights, difference_value, interval, make_curve, make_value, tail, worst


def clustered(rng: np.random.Generator, speakers: int, size: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Values with mean 1 whose speakers differ, and their speakers [n]; a speaker has 15 to 30 frames."""
    speaker = np.repeat(np.arange(speakers), rng.integers(size // 2, size + 1, speakers))
    return 1 + rng.normal(size=speakers)[speaker] + 0.5 * rng.normal(size=len(speaker)), speaker


@pytest.mark.parametrize("speakers", [8, 24, 60])
def test_covers_the_truth_in_95_percent_of_repeats(speakers: int) -> None:
    rng = np.random.default_rng(speakers)
    hits = 0
    for _ in range(600):
        values, speaker = clustered(rng, speakers)
        found = interval(values, speaker, speaker, draws=300, seed=int(rng.integers(1 << 30)))
        hits += bool(found.low <= 1 <= found.high)
    assert 0.92 <= hits / 600 <= 0.98


def test_frames_of_one_speaker_are_one_witness() -> None:
    values, speaker = clustered(np.random.default_rng(0), 40)
    by_speaker = interval(values, speaker, speaker)
    by_frame = interval(values, np.arange(len(values)), np.arange(len(values)))
    assert by_speaker.high - by_speaker.low > 2.5 * (by_frame.high - by_frame.low)


def test_ratio_of_sums_covers() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        below, speaker = clustered(rng, 30)
        below = np.abs(below) + 0.2
        above = 3 * below + rng.normal(size=30)[speaker]
        found = interval(above, speaker, speaker, denominator=below, draws=300)
        hits += bool(found.low <= 3 <= found.high)
    assert 0.91 <= hits / 400 <= 0.985


def test_median_equals_the_plain_one_on_resampled_rows() -> None:
    rng = np.random.default_rng(2)
    values, speaker = rng.normal(size=25), np.arange(25)
    found = interval(values, speaker, speaker, statistic="median", draws=200, seed=3)
    drawn = [np.median(np.repeat(values, row.astype(int))) for row in bootstrap_weights(25, 200, 3)]
    assert found.value == np.median(values)
    assert np.allclose([found.low, found.high], np.quantile(drawn, [tail(25), 1 - tail(25)]))


def test_a_mask_is_a_denominator_and_curves_equal_their_columns() -> None:
    rng = np.random.default_rng(3)
    values, speaker, mask = rng.normal(size=(200, 5)), np.arange(200) % 25, rng.random((200, 5)) < 0.7
    curve = interval(values * mask, speaker, speaker, denominator=mask)
    for step in range(5):
        kept = mask[:, step]
        assert curve.value[step] == pytest.approx(values[kept, step].mean())
        alone = interval(values[kept, step], speaker[kept], speaker[kept])
        assert curve.low[step] == pytest.approx(alone.low)


def test_constant_data_has_no_width() -> None:
    for statistic in ("mean", "median", 0.9):
        found = make_value(np.full(99, 0.1), np.arange(99) % 33, np.arange(99), statistic=statistic)
        assert found.low == found.high == found.value == pytest.approx(0.1, abs=1e-15)


def test_says_what_it_resampled() -> None:
    values = np.arange(40.0)
    assert make_value(values, np.arange(40) % 20, np.arange(40)).resampled == "speakers"
    few = make_value(values, np.arange(40) % 19, np.arange(40) % 38)
    assert few.resampled == "utterances"
    assert few.n.utterances == 38
    assert few.n.speakers == 19
    assert few.n.frames == 40
    alone = make_value(values, np.zeros(40), np.zeros(40))
    assert alone.resampled == "none"
    assert alone.low is None
    assert alone.high is None
    assert alone.status.startswith("no interval")


def test_refuses_what_is_not_finite_and_names_it() -> None:
    values = np.ones(30)
    values[7] = np.nan
    with pytest.raises(ValueError, match=r"1 non-finite entries of 30, the first at \[7\]"):
        make_value(values, np.arange(30), np.arange(30))
    curve = make_curve(np.stack([values, np.ones(30)], 1), np.arange(30), np.arange(30))
    assert curve[0].value is None
    assert curve[0].status == "1 of 30 are not finite"
    assert curve[1].value == 1


def test_nothing_and_zero_denominators_have_a_status() -> None:
    assert make_value(np.array([]), np.array([]), np.array([])).status == "no frames"
    assert (
        make_value(np.ones(30), np.arange(30), np.arange(30), denominator=np.zeros(30)).status == "the denominator is 0"
    )


def test_heavy_tails_stand_beside_the_mean() -> None:
    values = np.r_[np.zeros(199), 1e6]
    found = make_value(values, np.arange(200) % 40, np.arange(200))
    assert found.value == 5000
    assert found.median == 0
    assert found.trimmed_mean == 0


def test_paired_differences_cancel_what_is_shared() -> None:
    rng = np.random.default_rng(4)
    shared, speaker = clustered(rng, 40)
    found = difference_value(shared + 0.5, shared, speaker, speaker)
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)


def test_worst_frames_come_worst_first() -> None:
    found = worst([1.0, 9.0, 3.0], "k", ["a", "b", "c"], [4, 5, 6], 2)
    assert [(item.utterance, item.frame, item.value) for item in found] == [("b", 5, 9.0), ("c", 6, 3.0)]


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(5)
    values, speaker = clustered(rng, 30)
    one, two = (interval(values, speaker, speaker, seed=seed).low for seed in (0, 1))
    assert one == interval(values, speaker, speaker, seed=0).low != two
