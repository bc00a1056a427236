"""Weights of losses that are steered to a target: a constraint instead of a number to tune (GECO, arXiv:1810.00597).

ln λ ← ln λ + rate·c̄ with c̄ the moving average of (loss − target): λ grows while the loss is above its target and falls
below it. State is plain numbers, which JSON keeps to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from arlat_core.config import Config as BaseConfig
from pydantic import Field, model_validator

REACH = 12.0  # |ln λ − ln of its first value| at most


class Term(BaseConfig):
    """The weight of one loss, given or steered."""

    weight: float = Field(default=0.0, ge=0)
    """The weight, or with a target its first value; 0 leaves the loss out."""
    target: float | None = None
    """Value of the loss that the weight is steered to; none by default, and the weight stays."""

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        if self.target is not None and self.weight == 0:
            raise ValueError(f"target {self.target} needs a weight to begin with; give a small one, for instance 0.01")
        return self


class SteeringConfig(BaseConfig):
    """How fast steered weights move."""

    rate: float = Field(default=0.02, gt=0)
    """Growth of ln λ in a step, for each unit that the loss lies above its target."""
    decay: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the moving average of (loss − target)."""


@dataclass(frozen=True)
class Multipliers:
    """ln(λ/first value) and the moving average of (loss − target), by loss."""

    log: Mapping[str, float] = field(default_factory=dict)
    average: Mapping[str, float] = field(default_factory=dict)

    def weight(self, name: str, term: Term) -> float:
        """λ."""
        return term.weight * math.exp(self.log.get(name, 0.0))

    def updated(self, values: Mapping[str, float], terms: Mapping[str, Term], config: SteeringConfig) -> Multipliers:
        """After a step with these losses; what is not finite, or has no target, moves nothing."""
        log, average = dict(self.log), dict(self.average)
        for name, value in values.items():
            target = terms[name].target
            if target is None or not math.isfinite(value):
                continue
            average[name] = config.decay * average.get(name, value - target) + (1 - config.decay) * (value - target)
            log[name] = min(REACH, max(-REACH, log.get(name, 0.0) + config.rate * average[name]))
        return Multipliers(log, average)
