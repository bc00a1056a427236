"""When a measured figure agrees with its closed-form answer (SPEC P3)."""

from __future__ import annotations

from arlat_core.types import Value

TOLERANCE = 0.03


def agrees(value: Value) -> bool | None:
    """Whether a figure holds its truth within its own 95 % interval or 3 %; None where there is no truth or no value."""
    if value.truth is None or value.value is None:
        return None
    inside = value.low is not None and value.high is not None and value.low <= value.truth <= value.high
    return inside or abs(value.value - value.truth) <= TOLERANCE * abs(value.truth)
