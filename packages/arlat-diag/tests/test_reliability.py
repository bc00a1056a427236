"""A forecast that keeps its word shows as calibrated, one that does not is found out."""

from __future__ import annotations

import pytest
import torch
from arlat_diag.reliability import Origin, bin_means, binned_error, bins, centred_squares, root, transform


def origin(count: int, utterances: int = 60) -> Origin:
    utterance = torch.arange(count) * utterances // count
    return Origin(utterance // 2, utterance, (utterance % 2).bool())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bins_hold_rising_promises_and_are_never_small() -> None:
    promised = noise(1000)
    found = bins(promised, 10)
    assert torch.bincount(found).tolist() == [100] * 10
    assert float(promised[found == 3].max()) <= float(promised[found == 4].min())
    assert int(bins(promised[:50], 10).max()) == 1
    assert int(bins(promised[:5], 10).max()) == 0


def test_the_spread_of_each_bin_is_about_its_own_mean() -> None:
    sigma = noise(8000, seed=1).exp()
    by = bins(sigma, 4)
    values = 3.0 * by + (1.0 + by) * noise(8000)
    found = bin_means("s", by, centred_squares(by, values), origin(8000), torch.ones(8000))
    for i in range(4):
        value = root(found[f"s[{i + 1}]"])
        assert value.value == pytest.approx(1.0 + i, rel=0.05)
        assert value.low is not None
        assert value.high is not None
        assert value.low < value.value < value.high
        assert value.ceiling == 1.0


@pytest.mark.parametrize("off", [0.0, 0.05])
def test_errors_that_differ_in_sign_by_bin_do_not_cancel(off: float) -> None:
    by = bins(noise(6000, seed=2), 10)
    gap = off * (2.0 * (by % 2) - 1) + 0.3 * noise(6000)
    value = binned_error(by, gap, origin(6000))
    assert value.value == pytest.approx(off, abs=0.01)
    assert value.low is not None
    assert (value.low > 0) == (off > 0)


def test_without_a_second_half_there_is_no_error() -> None:
    value = binned_error(torch.zeros(50, dtype=torch.int64), noise(50), origin(50, utterances=1))
    assert value.value is None
    assert value.status == "fewer than 2 utterances"


def test_the_transform_of_a_right_law_is_flat_and_of_a_wrong_one_is_not() -> None:
    pit = torch.special.ndtr(noise(10_000))
    right = transform("x", pit, origin(10_000))
    assert all(right[f"x.pit[{j}]"].value == pytest.approx(1, abs=0.12) for j in range(1, 11))
    distance = right["x.ks"]
    assert distance.ceiling == pytest.approx(0.00869, abs=1e-5)
    assert distance.value is not None
    assert distance.value < 0.0163
    from scipy import stats

    assert distance.value == pytest.approx(stats.kstest(pit.numpy(), "uniform").statistic, abs=1e-12)
    sure = transform("x", torch.special.ndtr(2 * noise(10_000)), origin(10_000))
    assert sure["x.pit[1]"].value == pytest.approx(2.61, abs=0.15)  # 10·Φ(Φ⁻¹(0.1)/2)
    wrong = sure["x.ks"].value
    assert wrong is not None
    assert wrong == pytest.approx(0.1613, abs=0.015)  # sup |Φ(x/2) − Φ(x)|
    assert sure["x.ks"].low is not None
    assert sure["x.ks"].low > 0.1
