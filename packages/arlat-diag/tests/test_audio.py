"""Decoded rollouts: true beginnings, ends that differ, and no clip of what is not finite."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from arlat_core.types import LatentSpec
from arlat_diag.audio import LABELS, audio_examples
from arlat_dynamics.models import gru
from arlat_dynamics.models.linear import Config, LinearModel
from torch import Tensor

HOP, D = 160, 4
SPEC = LatentSpec(codec="frames", space="waveform", dim=D, frame_rate=50, sample_rate=8000, fingerprint="0")


class Held:
    """A codec that holds each frame's first value for one hop."""

    spec = SPEC

    def frames(self, samples: int) -> int:
        return samples // HOP

    def encode(self, audio: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        return latents[..., 0].repeat_interleave(HOP, 1) / 10


def model(gain: float) -> LinearModel:
    found = LinearModel(Config(dim=D, context=8, order=1, frames=1))
    eye = torch.eye(D)
    found.load_state_dict(
        {"center": torch.zeros(D), "weight": (gain - 1) * eye, "bias": torch.zeros(D), "factor": 0.5 * eye}
    )
    return found


def store(frames: int = 200) -> Any:
    z = torch.randn(3 * frames, D, generator=torch.Generator().manual_seed(0))
    split = SimpleNamespace(
        z=z,
        start=torch.arange(3) * frames,
        length=torch.full((3,), frames),
        ids=["../a<b>", "c", "d"],
        speakers=["x", "y", "z"],
    )
    return SimpleNamespace(spec=SPEC, path=Path("store"), load=lambda name: split)


def test_clips_share_their_beginning_and_the_rest_is_what_they_say(tmp_path: Path) -> None:
    entries, notes = audio_examples(store(), Held(), model(0.5), tmp_path / "audio", count=3)
    assert notes == []
    assert len(entries) == 12
    clips = {}
    for entry in entries:
        path = (tmp_path / entry["path"]).resolve()
        assert path.is_relative_to(tmp_path.resolve())
        clips[entry["label"]], rate = soundfile.read(path)
        assert rate == 8000
        assert len(clips[entry["label"]]) == 150 * HOP
    name = next(label for label in clips if label.startswith("c, ")).rsplit(": ", 1)[0]
    true, ahead, mean, sample = (clips[f"{name}: {label}"][::HOP] for label in LABELS)
    assert (true[:50] == mean[:50]).all()
    assert (true[:50] == sample[:50]).all()
    assert ahead[51:] == pytest.approx(0.5 * true[50:-1], abs=1e-4)
    assert abs(mean[60:]).max() < 1e-3
    assert abs(sample[60:]).max() > 0.05


def test_an_exploding_rollout_gives_a_note_and_no_clip(tmp_path: Path) -> None:
    entries, notes = audio_examples(store(), Held(), model(1e9), tmp_path / "audio", count=1)
    assert not any("mean rollout" in entry["label"] for entry in entries)
    assert any("mean rollout: the rollout is not finite" in note for note in notes)


def test_short_utterances_give_a_note_and_foreign_codecs_are_refused(tmp_path: Path) -> None:
    entries, notes = audio_examples(store(149), Held(), model(0.5), tmp_path / "audio")
    assert entries == []
    assert "no held-out utterance has 150 frames (3.0 s)" in notes[0]
    other = store()
    other.spec = SPEC.model_copy(update={"fingerprint": "1"})
    with pytest.raises(ValueError, match="fingerprint"):
        audio_examples(other, Held(), model(0.5), tmp_path / "audio")


def test_a_model_that_remembers_everything_needs_no_longer_beginning(tmp_path: Path) -> None:
    unbounded = gru.build({"dim": D, "width": 8, "depth": 1, "head": {"name": "gaussian"}})
    entries, notes = audio_examples(store(), Held(), unbounded, tmp_path / "audio", count=1)
    assert notes == []
    assert len(entries) == 4
