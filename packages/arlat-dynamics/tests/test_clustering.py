"""k-means finds planted centres."""

from __future__ import annotations

import pytest
import torch
from arlat_dynamics.clustering import k_means


def test_planted_centres_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    planted = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    x = planted.repeat(200, 1) + 0.5 * torch.randn(800, 2, generator=generator)
    centre = k_means(x[torch.randperm(800, generator=generator)], 4, generator, iterations=10)
    assert sorted(torch.cdist(centre, planted).argmin(-1).tolist()) == [0, 1, 2, 3]
    assert float(torch.cdist(centre, planted).amin(-1).max()) < 0.15  # 4 standard errors of a mean of 200


def test_lloyd_steps_lower_the_distance_and_the_generator_decides() -> None:
    x = torch.rand(500, 3, generator=torch.Generator().manual_seed(1))

    def spread(seed: int, iterations: int) -> float:
        centre = k_means(x, 20, torch.Generator().manual_seed(seed), iterations)
        return float(torch.cdist(x, centre).amin(-1).square().sum())

    assert spread(0, 20) < spread(0, 3) < spread(0, 0)
    assert spread(0, 3) == spread(0, 3) != spread(1, 3)


def test_more_centres_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="5 centres of 3 rows"):
        k_means(torch.zeros(3, 2), 5, torch.Generator(), 1)
