"""`rate:12.5|CODEC`: the wrapper that brings a codec to a target frame rate, by stacking unless told otherwise."""

from __future__ import annotations

from typing import Literal

from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.types import Codec
from pydantic import Field

from arlat_data.codecs import build_codec
from arlat_data.codecs.pool import Pool
from arlat_data.codecs.stack import Stack
from arlat_data.codecs.stride import Stride

WRAPPERS: dict[str, type[Stack] | type[Pool] | type[Stride]] = {"stack": Stack, "pool": Pool, "stride": Stride}


class Config(BaseConfig):
    """`rate:HZ|CODEC` or `rate:HZ,kind=pool|CODEC`."""

    rate_hz: float = Field(gt=0)
    """Target frames per second."""
    kind: Literal["stack", "pool", "stride"] = "stack"
    """How frames are brought together."""
    inner: str
    """The codec that is wrapped, as text."""


def build(config: Config, device: str) -> Codec:
    """Builds the codec and, where its rate is a whole multiple of the target, the wrapper with that factor.

    The result names itself `stack:8|mel`; a codec already at the target rate comes back bare.
    """
    inner = build_codec(config.inner, device)
    native = inner.spec.frame_rate
    factor = native / config.rate_hz
    if factor < 1 - 1e-9 or abs(factor - round(factor)) > 1e-6:
        possible = ", ".join(f"{native / k:g}" for k in range(1, 17))
        raise UserError(
            f"{inner.spec.codec} has {native:g} frames/s, which cannot be brought to {config.rate_hz:g}: only whole factors "
            f"are possible. Choose one of {possible} … Hz."
        )
    return inner if round(factor) == 1 else WRAPPERS[config.kind](inner, round(factor))
