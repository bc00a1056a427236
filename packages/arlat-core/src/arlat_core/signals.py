"""Signals that ask a training to save, gathered instead of died of."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGUSR1 instead of dying of them, so that a training can save first."""
    caught: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGUSR1)
    try:
        old = [signal.signal(kind, lambda number, _: caught.append(number)) for kind in kinds]
    except ValueError:  # not the main thread: signals are someone else's
        yield caught
        return
    try:
        yield caught
    finally:
        for kind, handler in zip(kinds, old, strict=True):
            signal.signal(kind, handler)
