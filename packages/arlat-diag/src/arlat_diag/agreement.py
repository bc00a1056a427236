"""When a measured figure agrees with its closed-form answer (SPEC P3)."""

from __future__ import annotations

from arlat_core.types import Value

TOLERANCE = 0.03


def agrees(value: Value) -> bool | None:
    """Whether a figure holds its truth within its own 95 % interval or 3 %; None where there is no truth or no value.

    3 % of the truth; of a true step for lengths in units of true steps, whose truth may be 0 where a fit's cannot be.
    """
    if value.truth is None or value.value is None:
        return None
    inside = value.low is not None and value.high is not None and value.low <= value.truth <= value.high
    scale = max(1.0, abs(value.truth)) if value.unit == "true steps" else abs(value.truth)
    return inside or abs(value.value - value.truth) <= TOLERANCE * scale
