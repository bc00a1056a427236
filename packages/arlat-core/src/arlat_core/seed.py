"""First weights from a generator, for modules of torch that draw them from the global one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch's global CPU generator is a function of `generator`; afterwards it is what it was before.

    >>> with seeded(torch.Generator().manual_seed(1)):
    ...     a = torch.nn.Linear(2, 2).weight
    >>> with seeded(torch.Generator().manual_seed(1)):
    ...     b = torch.nn.Linear(2, 2).weight
    >>> bool((a == b).all())
    True
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
