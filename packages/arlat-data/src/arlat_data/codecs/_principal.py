"""Principal components from streamed moments."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Count, mean and scatter of rows that are added in chunks, in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Adds rows [n d]."""
        values = rows.double()
        self.count += len(values)
        self.total += values.sum(0)
        self.products += values.T @ values

    def mean(self) -> Tensor:
        """Mean [d]."""
        return self.total / self.count

    def covariance(self) -> Tensor:
        """Covariance [d d], by the count."""
        mean = self.mean()
        return self.products / self.count - torch.outer(mean, mean)


def principal(covariance: Tensor, dim: int) -> tuple[Tensor, Tensor, float]:
    """The `dim` strongest directions [dim d], their variances [dim], and the share of all variance that they hold.

    The largest entry of each direction is positive, so that a fit has one answer.
    """
    values, vectors = torch.linalg.eigh(covariance)
    order = torch.argsort(values, descending=True)[:dim]
    rows = vectors[:, order].T
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    share = float(values[order].sum() / values.sum())
    return rows * largest.sign(), values[order].clamp(min=0), share
