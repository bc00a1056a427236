"""Arithmetic between samples and frames that codecs share."""

from __future__ import annotations

import torch
from arlat_core.config import UserError
from arlat_core.types import Codec, LatentSpec, fingerprint
from torch import Tensor


def whole_hop(sample_rate: int, frame_rate: float, what: str) -> int:
    """Samples per frame; raises UserError when that is not whole."""
    hop = sample_rate / frame_rate
    if abs(hop - round(hop)) > 1e-9 or hop < 1:
        raise UserError(
            f"{what}: {sample_rate} Hz audio at {frame_rate:g} frames/s is {hop:g} samples a frame, which is not whole. "
            f"Choose a frame rate that divides {sample_rate}."
        )
    return round(hop)


def frame_count(samples: int, hop: int) -> int:
    """Frames of `hop` samples that cover `samples` samples: the last one may be partly padding."""
    return -(-samples // hop)


def group(z: Tensor, factor: int) -> Tensor:
    """[b t d] -> [b ceil(t/factor) factor d], the tail filled by repeating the last frame."""
    batch, frames, dim = z.shape
    missing = -frames % factor
    if missing:
        z = torch.cat([z, z[:, -1:].expand(batch, missing, dim)], 1)
    return z.reshape(batch, (frames + missing) // factor, factor, dim)


def wrapped_spec(inner: Codec, name: str, factor: int, dim: int) -> LatentSpec:
    """The spec of `name:factor|inner` with `dim` dimensions at 1/factor of the inner frame rate."""
    spec = inner.spec
    return spec.model_copy(
        update={
            "codec": f"{name}:{factor}|{spec.codec}",
            "dim": dim,
            "frame_rate": spec.frame_rate / factor,
            "fingerprint": fingerprint({name: factor, "inner": spec.fingerprint}),
        }
    )
