"""Lyra V2 (SoundStream) through LiteRT: 64-d latents before the quantiser, 50 frames/s, 16 kHz, causal, CPU only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.registry import missing_extra
from arlat_core.types import LatentSpec, fingerprint
from torch import Tensor

from arlat_data.codecs._folder import require_files
from arlat_data.codecs._frames import frame_count

HOP = 320
DIM = 64
ENCODER, DECODER = "soundstream_encoder.tflite", "lyragan.tflite"


class Config(BaseConfig):
    """`lyra=FOLDER`."""

    folder: Path
    """Holds soundstream_encoder.tflite and lyragan.tflite (github google/lyra, lyra/model_coeffs)."""


class Lyra:
    """A batch is a loop over clips: the graphs keep streaming state inside, which only a new interpreter clears."""

    def __init__(self, encoder: bytes, decoder: bytes) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._spec = LatentSpec(
            codec="lyra",
            space="pre-quantiser",
            dim=DIM,
            frame_rate=16_000 / HOP,
            sample_rate=16_000,
            fingerprint=fingerprint({"lyra": 1}, files={ENCODER: encoder, DECODER: decoder}),
            causal=True,
        )

    @property
    def spec(self) -> LatentSpec:
        return self._spec

    def frames(self, samples: int) -> int:
        return frame_count(samples, HOP)

    def encode(self, audio: Tensor) -> Tensor:
        clips = audio.detach().cpu().float().numpy()
        frames = self.frames(clips.shape[-1])
        padded = np.pad(clips, ((0, 0), (0, frames * HOP - clips.shape[-1])))
        z = [_stream(self._encoder, clip.reshape(frames, 1, HOP), DIM) for clip in padded]
        return torch.from_numpy(np.stack(z)).to(audio.device)

    def decode(self, latents: Tensor) -> Tensor:
        z = latents.detach().cpu().float().numpy()
        clips = [_stream(self._decoder, item.reshape(-1, 1, 1, DIM), HOP).reshape(-1) for item in z]
        return torch.from_numpy(np.stack(clips)).clamp(-1.0, 1.0).to(latents.device)


def _interpreter(graph: bytes) -> Any:
    """A fresh interpreter with its tensors allocated."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise missing_extra("arlat-data", "lyra", error) from error
    interpreter = Interpreter(model_content=graph, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _stream(graph: bytes, inputs: np.ndarray, size: int) -> np.ndarray:
    """Runs a streaming graph over inputs [t …], one at a time from its initial state, and returns [t size]."""
    interpreter = _interpreter(graph)
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    outputs = np.empty((len(inputs), size), dtype=np.float32)
    for frame, value in enumerate(inputs):
        interpreter.set_tensor(source, value)
        interpreter.invoke()
        outputs[frame] = interpreter.get_tensor(target).reshape(size)
    return outputs


def _read_graph(path: Path, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> bytes:
    """Reads a graph and checks what goes in and out; raises UserError for any other file."""
    graph = path.read_bytes()
    if graph[4:8] != b"TFL3":
        raise UserError(
            f"{path} is no TensorFlow Lite file ({len(graph)} bytes). Take it from google/lyra, lyra/model_coeffs."
        )
    try:
        interpreter = _interpreter(graph)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be loaded: {error}. Take it from google/lyra, lyra/model_coeffs.") from error
    shapes = [
        tuple(detail[0]["shape"]) for detail in (interpreter.get_input_details(), interpreter.get_output_details())
    ]
    if shapes != [inputs, outputs]:
        raise UserError(f"{path} maps {shapes[0]} to {shapes[1]}, but Lyra V2's maps {inputs} to {outputs}.")
    return graph


def build(config: Config, device: str) -> Lyra:
    """Reads the two graphs; they run on the CPU whatever `device` says, and results go to the caller's device."""
    folder = require_files(config.folder, [ENCODER, DECODER], "lyra")
    encoder = _read_graph(folder / ENCODER, (1, HOP), (1, 1, DIM))
    return Lyra(encoder, _read_graph(folder / DECODER, (1, 1, DIM), (1, HOP)))
