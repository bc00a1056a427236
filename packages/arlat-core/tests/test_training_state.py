"""A training state is whole or not there, the newest two are kept, and an optimiser comes back to the bit."""

from __future__ import annotations

from pathlib import Path

import torch
from arlat_core.training_state import load_state, pack, save_state, taken, truncate_log, unpack


def test_the_newest_two_are_kept_and_the_newest_whole_one_is_read(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"w": torch.full((2,), float(step))}, {"rest": [step]})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{step:09d}.{kind}" for step in (2, 3) for kind in ("json", "safetensors")
    ]
    state = load_state(tmp_path)
    assert state is not None
    assert (state.step, state.about["rest"], state.notes) == (3, [3], [])
    weights = tmp_path / "000000003.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    before = load_state(tmp_path)
    assert before is not None
    assert before.step == 2
    assert float(before.tensors["w"][0]) == 2.0
    assert "is not what was written" in before.notes[0]
    (tmp_path / "000000002.json").write_text("{")
    none = load_state(tmp_path)
    assert none is not None
    assert (none.step, none.tensors, len(none.notes)) == (0, {}, 2)


def test_an_optimiser_comes_back_to_the_bit() -> None:
    def descend(
        steps: int, kept: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        weight = torch.nn.Parameter(torch.arange(3.0) if kept is None else kept["model.weight"].clone())
        optimiser = torch.optim.AdamW([weight], lr=0.1)
        if kept is not None:
            unpack("optimiser", kept, optimiser)
        for _ in range(steps):
            optimiser.zero_grad()
            (weight - 5).square().sum().backward()
            optimiser.step()
        return weight.detach(), {"model.weight": weight.detach().clone(), **pack("optimiser", optimiser)}

    whole, _ = descend(5)
    _, half = descend(2)
    assert torch.equal(descend(3, half)[0], whole)
    assert set(taken("model", half)) == {"weight"}


def test_a_log_is_cut_where_the_state_was_saved(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    truncate_log(log, 3)
    assert not log.exists()
    log.write_text('{"step": 1}\n{"step": 3}\n{"step": 4}\n{"ste')
    truncate_log(log, 3)
    assert log.read_text() == '{"step": 1}\n{"step": 3}\n'
