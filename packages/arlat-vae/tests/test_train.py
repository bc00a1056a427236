"""Training: it learns, goes on to the bit after a kill, survives bad batches, and ends in a codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arlat_core.testing.codec import example_audio
from arlat_core.training_state import load_state
from arlat_vae import train
from arlat_vae.crops import Clips
from arlat_vae.loop import DivergedError
from arlat_vae.optimiser import learning_rate
from arlat_vae.record import finite, read_rows
from arlat_vae.train import update
from arlat_vae.train_config import Config, OptimiserConfig
from pydantic import ValidationError
from torch import Tensor


def config(out: Path, **changes: Any) -> Config:
    """Four steps on a quarter of a second."""
    steps = {"steps": 4, "batch": 1, "warmup_steps": 0} | changes.pop("train", {})
    small = {"log_every": 2, "save_every": 2, "held_out_crops": 2} | changes
    crop = {"frames": 3}
    return Config(data={"audio_dir": out, "crop": crop}, out=out, train=steps, **small)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips() -> Clips:
    audio = (example_audio(3, 30_000, 24_000) * 32767).to(torch.int16)
    return Clips(audio.flatten().numpy(), torch.arange(3) * 30_000, torch.full((3,), 30_000))


JUDGED = {"loss": {"adversarial": 1.0, "feature": 1.0, "balanced": True}, "judge": {"n_ffts": (256,), "channels": 4}}


@pytest.mark.parametrize("changes", [{}, JUDGED], ids=["plain", "judged"])
def test_a_killed_run_goes_on_to_the_bit(clips: Clips, tmp_path: Path, changes: dict[str, Any]) -> None:
    def kill(done: int, planned: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = train.train(config(tmp_path / "a", **changes), clips, clips)
    with pytest.raises(KeyboardInterrupt):
        train.train(config(tmp_path / "b", **changes), clips, clips, kill)
    assert load_state(tmp_path / "b" / "state").step == 2  # type: ignore[union-attr]
    resumed = train.train(config(tmp_path / "b", **changes), clips, clips)
    for name, module in whole.models().items():
        other = resumed.models()[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in module.state_dict().items()), name
    assert whole.norms == resumed.norms
    last = "state/000000004.safetensors"
    assert (tmp_path / "a" / last).read_bytes() == (tmp_path / "b" / last).read_bytes()
    rows = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert rows == (tmp_path / "b" / "metrics.jsonl").read_text()
    steps = [(row["step"], row["part"]) for row in map(json.loads, rows.splitlines())]
    assert steps == [(2, "train"), (2, "held_out"), (4, "train"), (4, "held_out")]


def test_a_broken_state_is_passed_over_with_a_note(clips: Clips, tmp_path: Path) -> None:
    whole = train.train(config(tmp_path), clips, clips)
    weights = tmp_path / "state" / "000000004.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    with pytest.warns(UserWarning, match="is not what was written; the state before it is taken"):
        again = train.train(config(tmp_path), clips, clips)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_it_overfits_two_clips(tmp_path: Path) -> None:
    audio = example_audio(2, 5760, 24_000)
    settings = config(tmp_path, train={"steps": 60, "lr": 3e-3}, loss={"kl": 1e-4}, bottleneck={"dim": 16})
    trainee = train.start(settings)
    losses = train.reconstruction_losses(24_000)
    before = train.listen(trainee.model, audio, losses)
    while trainee.step < 50:
        update(trainee, audio, losses, settings)
        trainee.step += 1
    after = train.listen(trainee.model, audio, losses)
    assert after["mel"] < 0.7 * before["mel"]
    assert after["stft"] < 0.7 * before["stft"]
    assert after["mel"] < 0.95 * after["mel_floor"]
    averaged = train.listen(trainee.average, audio, losses)
    assert after["mel"] * 0.8 < averaged["mel"] < before["mel"]


def test_a_collapsed_model_is_at_its_floor(tmp_path: Path) -> None:
    settings = config(tmp_path)
    trainee = train.start(settings)
    torch.nn.init.zeros_(trainee.model.decoder.enter.weight)
    losses = train.reconstruction_losses(24_000)
    heard = train.listen(trainee.model, example_audio(2, 5760, 24_000), losses)
    assert set(losses) == {"waveform", "stft", "mel"}
    assert all(heard[name] == pytest.approx(heard[f"{name}_floor"]) for name in losses)


def test_beta_pulls_the_kl_down(tmp_path: Path) -> None:
    audio, after = example_audio(1, 5760, 24_000), []
    for beta in (0.0, 100.0):
        settings = config(tmp_path, train={"steps": 9}, loss={"kl": beta})
        trainee = train.start(settings)
        losses = train.reconstruction_losses(24_000)
        for trainee.step in range(8):
            update(trainee, audio, losses, settings)
        after.append(train.listen(trainee.model, audio, losses)["kl"])
    assert after[1] < 0.7 * after[0]


@pytest.mark.parametrize("kind", ["gaussian", "plain"])
def test_training_decodes_a_draw(tmp_path: Path, kind: str) -> None:
    """The draw depends on the seed; where there is no noise, nothing does."""
    audio, settings = example_audio(1, 5760, 24_000), config(tmp_path, bottleneck={"kind": kind})
    losses = train.reconstruction_losses(24_000)
    seen = [
        update(train.start(settings), audio, losses, settings.model_copy(update={"seed": seed}))["mel"]
        for seed in (0, 0, 1)
    ]
    assert seen[0] == seen[1]
    assert (seen[0] == seen[2]) == (kind == "plain")


def test_a_balanced_gradient_has_the_size_that_it_is_told(tmp_path: Path) -> None:
    """Whatever the batch: twice the size is twice the gradient, and two equal items have the gradient of one."""
    audio = example_audio(1, 5760, 24_000)
    losses = train.reconstruction_losses(24_000)

    def norm(size: float, count: int) -> float:
        loss = {"kl": 0.0, "balanced": True, "balanced_norm": size}
        settings = config(tmp_path, loss=loss, bottleneck={"kind": "plain"})
        return update(train.start(settings), audio.expand(count, -1), losses, settings)["gradient_norm"]

    assert norm(20.0, 1) == pytest.approx(2 * norm(10.0, 1), rel=1e-4)
    assert norm(10.0, 2) == pytest.approx(norm(10.0, 1), rel=1e-3)


def test_a_batch_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path)
    trainee = train.start(settings)
    losses = train.reconstruction_losses(24_000)
    update(trainee, example_audio(2, 7680, 24_000), losses, settings)
    before = {name: value.clone() for name, value in trainee.model.state_dict().items()}
    metrics = update(trainee, torch.full((2, 7680), float("nan")), losses, settings)
    assert (trainee.skipped, trainee.in_a_row) == (1, 1)
    assert all(torch.equal(value, before[name]) for name, value in trainee.model.state_dict().items())
    assert finite(metrics)["mel"] is None
    update(trainee, example_audio(2, 7680, 24_000), losses, settings)
    assert (trainee.skipped, trainee.in_a_row) == (1, 0)


def test_silence_alone_trains_without_harm(tmp_path: Path) -> None:
    settings = config(tmp_path, **JUDGED)
    trainee = train.start(settings)
    metrics = update(trainee, torch.zeros(2, 7680), train.reconstruction_losses(24_000), settings)
    assert trainee.skipped == 0
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(torch.isfinite(value).all() for value in trainee.model.parameters())


def test_a_run_that_meets_nothing_finite_goes_back_and_then_gives_up(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "waveform_loss", lambda audio, decoded: torch.nan * decoded.sum())
    settings = config(tmp_path, train={"steps": 50}, loss={"stft": 0.0, "mel": 0.0})
    with (
        pytest.warns(UserWarning, match="back to step 0"),
        pytest.raises(DivergedError, match="5 returns to step 0 did not help"),
    ):
        train.train(settings, clips, clips)
    state = load_state(tmp_path / "state")
    assert state is not None
    assert (state.step, state.about["returns"], state.about["stuck"]) == (0, 5, 5)


def test_after_a_return_other_crops_are_drawn_and_training_ends(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some crop makes a loss non-finite for good: from the fifth step on, until training has gone back and draws others."""
    seen: list[Tensor] = []

    def waveform(audio: Tensor, decoded: Tensor) -> Tensor:
        if decoded.requires_grad:
            seen.append(audio[0])
        return (torch.nan if 5 <= len(seen) <= 9 else 1.0) * (decoded - audio).abs().mean()

    monkeypatch.setattr(train, "waveform_loss", waveform)
    settings = config(tmp_path, train={"steps": 12}, loss={"stft": 0.0, "mel": 0.0}, save_every=4, log_every=1)
    with pytest.warns(UserWarning, match="No finite loss or gradient in 5 steps up to step 9: back to step 4"):
        trainee = train.train(settings, clips, clips)
    assert (trainee.step, trainee.returns, trainee.skipped, trainee.stuck) == (12, 1, 5, 0)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["part"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["returns"] for row in rows] == [0] * 4 + [1] * 8
    assert all(row["gradient_norm"] is not None for row in rows)
    assert len(seen) == 9 + 8
    assert not any(torch.equal(first, later) for first in seen[:9] for later in seen[9:])


def test_losses_can_be_off_but_not_all(tmp_path: Path) -> None:
    off = {"waveform": 0.0, "stft": 0.0, "mel": 0.0}
    settings = config(tmp_path, loss={**off, "adversarial": 1.0}, judge=JUDGED["judge"])
    trainee = train.start(settings)
    before = trainee.model.decoder.enter.weight.clone()
    metrics = update(trainee, example_audio(2, 5760, 24_000), train.reconstruction_losses(24_000), settings)
    assert not torch.equal(trainee.model.decoder.enter.weight, before)
    assert {"mel", "adversarial", "feature", "judge"} <= set(metrics)
    assert metrics["judge"] == pytest.approx(2.0, abs=0.3)
    with pytest.raises(ValidationError, match="every loss on the audio has weight 0"):
        config(tmp_path, loss=off)


@pytest.mark.parametrize("kind", ["sigma", "plain"])
def test_other_bottlenecks_train(tmp_path: Path, kind: str) -> None:
    settings = config(tmp_path, bottleneck={"kind": kind, "learn_sigma": kind == "sigma"}, precision="bfloat16")
    trainee = train.start(settings)
    audio, losses = example_audio(2, 7680, 24_000), train.reconstruction_losses(24_000)
    first = update(trainee, audio, losses, settings)
    assert trainee.skipped == 0
    assert (first["kl"] == 0) == (kind == "plain")


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, OptimiserConfig(steps=100, lr=1.0, warmup_steps=9)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert rates[4] == pytest.approx(0.5, rel=0.01)
