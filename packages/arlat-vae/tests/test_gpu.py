"""On a CUDA device: a step has the losses that it has on a CPU, and bf16 and torch.compile train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_core.testing.codec import example_audio
from arlat_vae import train
from arlat_vae.crops import Clips
from arlat_vae.record import read_rows
from arlat_vae.train_config import Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there is no CUDA device (torch.cuda.is_available() is False)"
    ),
]
EVERY: dict[str, Any] = {
    "loss": {"adversarial": 1.0, "feature": 1.0, "balanced": True},
    "judge": {"n_ffts": (256,), "channels": 4},
    "ar": {name: {"weight": 0.1} for name in ("smooth", "pred", "noise", "rollout", "jacobian")},
}


def config(out: Path, **changes: Any) -> Config:
    """Four steps on half a second."""
    steps = {"steps": 4, "batch": 2, "warmup_steps": 0}
    small = {"log_every": 1, "save_every": 4, "held_out_crops": 2, "sample_crops": 1}
    data = {"audio_dir": out, "crop": {"frames": 9}}
    return Config(data=data, out=out, train=steps, **small, **EVERY, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips() -> Clips:
    audio = (example_audio(3, 30_000, 24_000) * 32767).to(torch.int16)
    return Clips(audio.flatten().numpy(), torch.arange(3) * 30_000, torch.full((3,), 30_000))


def losses(out: Path) -> list[dict[str, Any]]:
    names = ("waveform", "stft", "mel", "kl", "feature", "smooth", "pred")
    return [{name: row[name] for name in names} for row in read_rows(out / "metrics.jsonl") if row["part"] == "train"]


def test_a_gpu_has_the_losses_of_a_cpu(clips: Clips, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        train.train(config(tmp_path / device, device=device), clips, clips)
    for here, there in zip(losses(tmp_path / "cpu"), losses(tmp_path / "cuda"), strict=True):
        assert there == pytest.approx(here, rel=2e-2)  # convolutions in TF32


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_bf16_and_one_program_train(clips: Clips, tmp_path: Path, size: str) -> None:
    for name, changes in (("plain", {}), ("fast", {"precision": "bfloat16", "compile": True})):
        trainee = train.train(config(tmp_path / name, device="cuda", size=size, **changes), clips, clips)
        assert trainee.skipped == 0
    for plain, fast in zip(losses(tmp_path / "plain"), losses(tmp_path / "fast"), strict=True):
        assert fast["mel"] == pytest.approx(plain["mel"], rel=0.1)
