"""Forecasts of the frame s ahead by one ridge regression for every s: what the context tells linearly, without a rollout.

Each step has its own weights, chosen among orders, ridges and two things to shrink to (the mean of z; each dimension by
itself) by the squared error on training speakers that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from arlat_data.windows import Windows
from arlat_dynamics.models.linear import RIDGES, newest_first
from arlat_dynamics.train import split_speakers
from torch import Tensor

ORDERS = (1, 2, 4, 8)
INPUTS = 1100  # frames × D of the widest regression; the cost grows with their square times K·D
ROWS = 60_000  # training windows at most
BLOCK = 2048


@dataclass(frozen=True)
class DirectForecast:
    """E[z_{t+s}] ≈ mean_s + x·weight_s, with x the newest `frames` of the context, centred and scaled: weight [q k*d], mean [k*d]."""

    center: Tensor
    scale: Tensor
    frames: int
    weight: Tensor
    mean: Tensor

    def predict(self, context: Tensor) -> Tensor:
        """Forecasts [n k d] of the frames that follow context [n w d], float64."""
        x = newest_first((context.double().cpu() - self.center) / self.scale, self.frames)
        return (self.mean + x @ self.weight).view(len(x), -1, len(self.center))


@dataclass(frozen=True)
class Sums:
    """Sums over rows of inputs x [n q] and targets y [n k*d], float64; `yy` is the diagonal alone."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def about(self, mean_x: Tensor, mean_y: Tensor) -> Sums:
        """The same of x − mean_x and y − mean_y."""
        n, x, y = self.count, self.x, self.y
        return Sums(
            n,
            x - n * mean_x,
            y - n * mean_y,
            self.xx - torch.outer(x, mean_x) - torch.outer(mean_x, x) + n * torch.outer(mean_x, mean_x),
            self.xy - torch.outer(x, mean_y) - torch.outer(mean_x, y) + n * torch.outer(mean_x, mean_y),
            self.yy - 2 * y * mean_y + n * mean_y.square(),
        )

    def plus(self, other: Sums) -> Sums:
        """The sums over the rows of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Sums(*(a + b for a, b in pairs))


def fit_direct(past: Windows, steps: int, mean: Tensor, std: Tensor, seed: int = 0) -> DirectForecast:
    """Fits the forecasts of 1 … `steps` on windows whose step is `steps`; mean and std [d] scale the inputs.

    Raises:
        ValueError: With fewer than 4 windows.
    """
    if len(past) < 4:
        raise ValueError(f"A direct forecast needs 4 training windows with {steps} frames after them, not {len(past)}.")
    dim = past.z.shape[1]
    orders = [order for order in ORDERS if order <= past.width and (order == 1 or order * dim <= INPUTS)]
    center, scale = mean.double().cpu(), std.double().cpu().clamp_min(1e-12)
    fit_rows, validation_rows = (thin(rows) for rows in split_speakers(past, seed=seed))
    fit = sums(past, fit_rows, steps, max(orders), center, scale)
    unseen = sums(past, validation_rows, steps, max(orders), center, scale)
    mean_x, mean_y = fit.x / fit.count, fit.y / fit.count
    train, held_out = fit.about(mean_x, mean_y), unseen.about(mean_x, mean_y)
    best = torch.full((steps,), torch.inf, dtype=torch.float64)
    chosen = torch.zeros(steps, dtype=torch.int64)
    for index, weight in enumerate(candidates(train, orders, dim, steps)):
        error = squared_error(weight, held_out, dim)
        chosen = torch.where(error < best, index, chosen)
        best = torch.minimum(best, error)
    both = fit.plus(unseen)
    mean_x, mean_y = both.x / both.count, both.y / both.count
    final = torch.zeros(len(both.x), steps, dim, dtype=torch.float64)
    for index, weight in enumerate(candidates(both.about(mean_x, mean_y), orders, dim, steps)):
        mine = (chosen == index).nonzero()[:, 0]
        final[: len(weight), mine] = weight.view(len(weight), steps, dim)[:, mine]
    flat = final.flatten(1)
    return DirectForecast(center, scale, max(orders), flat, mean_y - mean_x @ flat)


def thin(rows: Tensor) -> Tensor:
    """At most `ROWS` of rows [n], evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), ROWS), dtype=torch.float64).long()]


def sums(past: Windows, rows: Tensor, steps: int, frames: int, center: Tensor, scale: Tensor) -> Sums:
    """Sums over windows `rows` of the newest `frames` frames, and of the `steps` frames after them."""
    q, out = frames * len(center), steps * len(center)
    ahead = torch.arange(1, steps + 1)
    total = [torch.zeros(*shape, dtype=torch.float64) for shape in ((q,), (out,), (q, q), (q, out), (out,))]
    for part in torch.split(rows, BLOCK):
        x = newest_first((past.gather(part).context.double() - center) / scale, frames)
        y = past.z[past.index[part][:, None] + ahead].double().flatten(1)
        for kept, added in zip(total, (x.sum(0), y.sum(0), x.mT @ x, x.mT @ y, y.square().sum(0)), strict=True):
            kept += added
    return Sums(len(rows), *total)


def candidates(train: Sums, orders: list[int], dim: int, steps: int) -> Iterator[Tensor]:
    """Weights [q' k*d] from simple to rich: the mean of z, each dimension by itself, ridges towards either."""
    yield torch.zeros(dim, steps * dim, dtype=torch.float64)
    for order in orders:
        q = order * dim
        xx, xy = train.xx[:q, :q], train.xy[:q]
        lone = own_past(xx, xy, order, dim, steps, train.count)
        yield lone
        values, basis = torch.linalg.eigh(xx)
        values = values.clamp_min(0)
        for base in (torch.zeros_like(lone), lone):
            rest = basis.mT @ (xy - xx @ base)
            for ridge in RIDGES:
                yield base + basis @ (rest / (values + ridge * train.count)[:, None])


def own_past(xx: Tensor, xy: Tensor, order: int, dim: int, steps: int, count: int) -> Tensor:
    """Weights [order*d, k*d] of the regression of every dimension on its own newest `order` frames."""
    inner = xx.view(order, dim, order, dim).diagonal(dim1=1, dim2=3).permute(2, 0, 1)  # [d order order]
    cross = xy.view(order, dim, steps, dim).diagonal(dim1=1, dim2=3).permute(2, 0, 1)  # [d order k]
    small = 1e-8 * count * torch.eye(order, dtype=torch.float64)
    each = torch.linalg.solve(inner + small, cross)
    return torch.diag_embed(each.permute(1, 2, 0)).permute(0, 2, 1, 3).reshape(order * dim, steps * dim)


def squared_error(weight: Tensor, held_out: Sums, dim: int) -> Tensor:
    """Mean squared error [k] of y ≈ x·weight, all dimensions together."""
    q = len(weight)
    each = held_out.yy - 2 * (weight * held_out.xy[:q]).sum(0) + (weight * (held_out.xx[:q, :q] @ weight)).sum(0)
    return each.view(-1, dim).sum(-1) / held_out.count
