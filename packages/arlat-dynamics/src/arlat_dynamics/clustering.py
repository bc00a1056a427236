"""k-means: centres spread by k-means++, then moved by Lloyd's steps."""

from __future__ import annotations

import torch
from torch import Tensor


def k_means(x: Tensor, count: int, generator: torch.Generator, iterations: int) -> Tensor:
    """Centres [count d] for rows x [n d]: k-means++ (Arthur and Vassilvitskii 2007), then `iterations` of Lloyd's steps.

    The first centre is the first row: shuffle the rows. A centre without rows stays where it is.
    Raises ValueError where there are fewer rows than centres.
    """
    if not 1 <= count <= len(x):
        raise ValueError(
            f"{count} centres of {len(x)} rows were asked for: ask for 1 at least, and one per row at most."
        )
    centre = x[:1]
    for _ in range(count - 1):
        distance = torch.cdist(x, centre).amin(-1).square()
        centre = torch.cat([centre, x[torch.multinomial(distance + 1e-12, 1, generator=generator)]])
    for _ in range(iterations):
        member = torch.nn.functional.one_hot(torch.cdist(x, centre).argmin(-1), count).to(x.dtype)
        size = member.sum(0)[:, None]
        centre = torch.where(size > 0, (member.mT @ x) / size.clamp_min(1), centre)
    return centre
