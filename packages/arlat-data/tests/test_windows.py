"""Windows: which frames they hold, in both forms and all slices."""

from __future__ import annotations

import pytest
import torch
from arlat_core.config import UserError
from arlat_data.store import Split
from arlat_data.windows import Windows, median_energy, windows

LENGTHS = [12, 3, 20, 5, 9, 1]
SPEAKERS = ["b", "a", "b", "c", "a", "c"]


def make(gap: int = 2) -> Split:
    """Utterances with a gap of NaN rows between them; every number says its utterance, frame and dimension."""
    parts, start, at = [], [], 0
    for u, length in enumerate(LENGTHS):
        frame = torch.arange(length, dtype=torch.float32)
        parts += [torch.stack([100.0 * u + frame, -(100.0 * u + frame**2)], -1), torch.full((gap, 2), float("nan"))]
        start.append(at)
        at += length + gap
    z = torch.cat(parts)
    energy = torch.where(z.isfinite().all(-1), torch.linspace(-60, 0, len(z)), torch.nan)
    return Split(z, torch.tensor(start), torch.tensor(LENGTHS), [f"u{u}" for u in range(6)], SPEAKERS, energy)


def expected(context: int, step: int) -> list[tuple[int, int]]:
    """(utterance, last context frame) of every window."""
    return [(u, t) for u, length in enumerate(LENGTHS) for t in range(context - 1, length - step)]


@pytest.mark.parametrize("kind", ["horizon", "lag"])
@pytest.mark.parametrize(("context", "step"), [(1, 1), (3, 1), (2, 4), (8, 2), (8, 8)])
def test_windows_hold_their_frames_and_cross_no_utterance(kind: str, context: int, step: int) -> None:
    split = make()
    cut = windows(split, context, step, kind)  # type: ignore[arg-type]
    assert list(zip(cut.utterance.tolist(), cut.frame.tolist(), strict=True)) == expected(context, step)
    batch = cut.gather(torch.arange(len(cut)))
    assert batch.context.shape == (len(cut), context, 2)
    assert batch.target.shape == (len(cut), 2)
    for row, (u, t) in enumerate(expected(context, step)):
        z = split.z[split.start[u] : split.start[u] + split.length[u]]
        base = t if kind == "horizon" else t + step - 1
        assert torch.equal(batch.context[row], z[t - context + 1 : t + 1])
        assert torch.equal(batch.target[row], z[t + step] - z[base])
        assert torch.equal(batch.now[row], z[t])
        assert torch.equal(batch.future[row], z[t + step])
    names = sorted(set(SPEAKERS))
    assert [names[s] for s in cut.speaker.tolist()] == [SPEAKERS[u] for u, _ in expected(context, step)]
    assert cut.speaker.dtype == cut.utterance.dtype == cut.frame.dtype == torch.int64


def test_lag_one_is_horizon_one() -> None:
    one, other = windows(make(), 2, 1, "horizon"), windows(make(), 2, 1, "lag")
    assert torch.equal(one.target, other.target)
    assert torch.equal(one.context, other.context)


def test_gathering_some_rows_is_gathering_all_and_choosing() -> None:
    cut = windows(make(), 3, 2)
    rows = torch.tensor([4, 0, 4])
    some = cut.gather(rows)
    whole = [cut.context, cut.target, cut.now, cut.future]
    for part, every in zip([some.context, some.target, some.now, some.future], whole, strict=True):
        assert torch.equal(part, every[rows])
    mask = torch.zeros(len(cut), dtype=torch.bool)
    mask[2] = True
    assert torch.equal(cut.gather(mask).target, cut.target[2:3])


def test_medial_windows_stay_off_the_ends() -> None:
    cut = windows(make(), 2, 1, slice="medial")
    off = {u: max(-(-length // 10), 2) for u, length in enumerate(LENGTHS)}
    inside = [(u, t) for u, t in expected(2, 1) if t >= off[u] and t + 1 < LENGTHS[u] - off[u]]
    assert list(zip(cut.utterance.tolist(), cut.frame.tolist(), strict=True)) == inside
    assert inside


def test_high_energy_windows_are_the_louder_half() -> None:
    split = make()
    bar = median_energy(split)
    loud = windows(split, 1, 1, slice="high_energy")
    assert (split.energy[loud.index] > bar).all()
    every = windows(split, 1, 1)
    assert len(loud) == int((split.energy[every.index] > bar).sum()) > 0
    assert len(windows(split, 1, 1, slice="high_energy", threshold=1.0)) == 0


def test_high_energy_windows_need_energies() -> None:
    split = make()
    silent = Split(
        split.z, split.start, split.length, split.ids, split.speakers, torch.full_like(split.energy, torch.nan)
    )
    with pytest.raises(UserError, match="no frame energies"):
        windows(silent, 2, 1, slice="high_energy")


def test_utterances_shorter_than_a_window_give_none() -> None:
    cut: Windows = windows(make(), 30, 1)
    assert len(cut) == 0
    assert cut.context.shape == (0, 30, 2)
    with pytest.raises(UserError, match="context >= 1"):
        windows(make(), 0, 1)
