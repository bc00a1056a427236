"""What the rollouts sound like: held-out speech whose end is true, predicted step by step, or rolled out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile
import torch
from arlat_core.files import atomic_write, safe_name
from arlat_core.types import Codec
from arlat_dynamics.rollout import injections, rollout
from torch import Tensor

from arlat_diag.injection import Starts, choose_starts

if TYPE_CHECKING:
    from arlat_data.store import LatentStore
    from arlat_dynamics.base import Dynamics

LABELS = ("true latents", "one step ahead from true latents", "mean rollout", "sample rollout")
WAITED_FOR = 32  # frames of context that a clip has at least; a model that remembers more begins with what there is


def audio_examples(
    store: LatentStore,
    codec: Codec,
    model: Dynamics,
    folder: Path,
    *,
    count: int = 2,
    prefix_seconds: float = 1.0,
    rollout_seconds: float = 2.0,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[list[dict[str, str]], list[str]]:
    """Writes clips of `count` held-out utterances as FLAC under `folder`; returns [{"label", "path"}] and notes.

    Each clip is a true beginning and then `rollout_seconds` of: the true latents; the model's prediction from the true
    frames before each one; the mean rollout; a sample rollout. Paths are relative to `folder`'s parent. A clip whose
    latents are not finite is not written, and a note says so. Raises ValueError where the codec does not fit the store.
    """
    store.spec.require(codec.spec, f"The store {store.path}")
    rate = store.spec.frame_rate
    width = max(min(model.context, WAITED_FOR), round(prefix_seconds * rate))
    steps = max(1, round(rollout_seconds * rate))
    generator = torch.Generator().manual_seed(seed)
    split = store.load("eval")
    starts = choose_starts(split, width, steps, 1, generator)
    if not len(starts):
        return [], [f"No audio: no held-out utterance has {width + steps} frames ({(width + steps) / rate:.1f} s)."]
    starts = starts.take(torch.randperm(len(starts), generator=generator)[:count].sort().values)
    entries, notes = [], []
    sampler = torch.Generator(device).manual_seed(seed)
    for label, ends in continuations(model, starts, sampler, device).items():
        for row in range(len(starts)):
            utterance = split.ids[int(starts.utterance[row])]
            name = f"{utterance}, frame {int(starts.frame[row])}: {label}"
            latents = torch.cat([starts.prefix[row], ends[row]])[None]
            with torch.no_grad():
                samples = codec.decode(latents)[0].float().cpu() if torch.isfinite(latents).all() else latents
            if not bool(torch.isfinite(samples).all()):
                notes.append(f"No audio of {name}: the rollout is not finite.")
                continue
            path = folder / safe_name(f"{utterance}-{int(starts.frame[row])}-{label.replace(' ', '_')}.flac")
            atomic_write(path, flac(samples, store.spec.sample_rate))
            entries.append({"label": name, "path": path.relative_to(folder.parent).as_posix()})
    return entries, notes


def continuations(model: Dynamics, starts: Starts, generator: torch.Generator, device: str) -> dict[str, Tensor]:
    """The K frames after each start, [n k d], true and by three ways of predicting."""
    prefix, truth = starts.prefix.to(device), starts.truth.to(device)
    steps = truth.shape[1]
    with torch.no_grad():
        found = (
            rollout(model, prefix, truth, injections("A", steps)),
            rollout(model, prefix, truth, injections("D", steps)),
            rollout(model, prefix, truth, injections("D", steps), sample=True, generator=generator),
        )
    return dict(zip(LABELS, (starts.truth, *((x.state_in + x.step).cpu() for x in found)), strict=True))


def flac(samples: Tensor, rate: int) -> bytes:
    """Mono samples [n] as 16-bit FLAC; what lies outside [−1, 1] is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clamp(-1, 1).numpy(), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
