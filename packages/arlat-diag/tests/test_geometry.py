"""Points, distances and neighbours against brute force."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arlat_diag.geometry import frames_of, nearest, scale_of, step_lengths, strangers


def ragged() -> Any:
    """Three utterances of 4, 1 and 3 frames with a NaN gap before the last."""
    z = torch.arange(20.0).reshape(10, 2)
    z[5:7] = torch.nan
    return SimpleNamespace(
        z=z,
        start=torch.tensor([0, 4, 7]),
        length=torch.tensor([4, 1, 3]),
        speakers=["b", "a", "b"],
        ids=["x", "y", "w"],
    )


def test_frames_skip_gaps_and_never_cross_utterances() -> None:
    frames = frames_of(ragged())
    assert frames.row.tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    assert frames.left.tolist() == [3, 2, 1, 0, 0, 2, 1, 0]
    assert frames.utterance.tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    assert frames.speaker.tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    assert frames.followed(2).row.tolist() == [0, 1, 7]


def test_steps_and_strangers_are_finite_and_of_other_utterances() -> None:
    split = ragged()
    length, at = step_lengths(split.z, frames_of(split))
    assert length.tolist() == pytest.approx([8**0.5] * 5)
    assert at.row.tolist() == [0, 1, 2, 7, 8]
    distance, _ = strangers(split.z, frames_of(split), 500, torch.Generator().manual_seed(0))
    assert torch.isfinite(distance).all()
    assert distance.min() > 0


def test_nearest_equals_brute_force_even_for_near_pairs_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = 100 + torch.randn(300, 6, generator=generator)
    query = reference[:50] + 1e-3 * torch.randn(50, 6, generator=generator)
    distance, index = nearest(query, reference, 3)
    brute = torch.cdist(query.double(), reference.double()).sort()
    assert torch.allclose(distance.double(), brute.values[:, :3], rtol=1e-3)
    assert (index[:, 0] == torch.arange(50)).all()


def test_too_few_neighbours_and_dead_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours were asked for among 2 frames"):
        nearest(torch.zeros(1, 2), torch.zeros(2, 2), 5)
    with pytest.raises(ValueError, match="no dimension that varies"):
        scale_of(torch.zeros(3), torch.zeros(3, 3))
    assert scale_of(torch.zeros(3), torch.diag(torch.tensor([1.0, 0.0, 4.0]))).kept.tolist() == [0, 2]
