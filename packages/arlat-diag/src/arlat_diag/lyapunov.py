"""How a model's own map stretches small errors: derivatives along directions, never a whole Jacobian.

The K-step map Φ takes the newest frame of a true context to the state after K deterministic steps, the older frames (or
the state that they left behind) being fixed. Norms are of the newest frame, in raw units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from arlat_dynamics.base import Dynamics
from torch import Tensor

from arlat_diag.error_split import mean_rollout, sharpen
from arlat_diag.injection import Starts

Map = Callable[[Tensor], Tensor]


def singular_values(function: Map, at: Tensor, count: int, sweeps: int, generator: torch.Generator) -> Tensor:
    """The `count` largest singular values [n count] of each row's Jacobian of `function`, [n d] -> [n d], at `at`.

    Subspace iteration on JᵀJ with `count` + 2 vectors; one jvp and one vjp for all of them per sweep. Rows must not
    influence each other. A value comes out too small, never too large, where `sweeps` are too few.
    """
    n, d = at.shape
    block = min(d, count + 2)
    wide = at.repeat_interleave(block, 0)  # [n*block d]
    basis = torch.linalg.qr(torch.randn(n, d, block, generator=generator, dtype=at.dtype).to(at.device)).Q

    def forward(vectors: Tensor) -> Tensor:
        flat = vectors.mT.reshape(n * block, d)
        image: Tensor = torch.func.jvp(function, (wide,), (flat,))[1]
        return image.view(n, block, d).mT

    pull = torch.func.vjp(function, wide)[1]
    for _ in range(sweeps):
        image = forward(basis)
        back = pull(image.mT.reshape(n * block, d))[0].view(n, block, d).mT
        if not bool(torch.isfinite(back).all()):
            return torch.full((n, min(count, d)), torch.nan, dtype=at.dtype)
        basis = torch.linalg.qr(back).Q
    values: Tensor = torch.linalg.svdvals(forward(basis))[:, :count].cpu()
    return values


def step_map_values(
    model: Dynamics, starts: Starts, steps: int, count: int, sweeps: int, generator: torch.Generator, device: str
) -> Tensor:
    """The `count` largest singular values [n count] of the map over `steps` steps from every start."""
    sharp = sharpen(model)
    prefix = starts.prefix.double().to(device)
    older = prefix[:, :-1]

    def after(newest: Tensor) -> Tensor:
        past = older.repeat_interleave(len(newest) // len(older), 0)
        return mean_rollout(sharp, torch.cat([past, newest[:, None]], 1), steps)[:, -1]

    return singular_values(after, prefix[:, -1], count, sweeps, generator)


def error_growth(model: Dynamics, starts: Starts, device: str) -> Tensor:
    """log(‖e'‖/‖e_s‖), [n k−1]: what one step of the tangent map makes of the mean rollout's own error after s steps.

    The error is that of every frame since the start, so that a model that reads differences of frames is asked fairly;
    e_s and e' are its newest frame before and after the step; −∞ where the map forgets it.
    """
    sharp = sharpen(model)
    prefix, truth = starts.prefix.double().to(device), starts.truth.double().to(device)
    with torch.no_grad():
        rolled = mean_rollout(sharp, prefix, truth.shape[1])[:, :-1]
    error = rolled - truth[:, :-1]

    def following(frames: Tensor) -> Tensor:
        return frames + sharp.unroll(frames)[1].point()

    tangent = torch.cat([torch.zeros_like(prefix), error], 1)
    grown: Tensor = torch.func.jvp(following, (torch.cat([prefix, rolled], 1),), (tangent,))[1]
    after = grown[:, prefix.shape[1] :].norm(dim=-1)
    growth: Tensor = (after / error.norm(dim=-1)).log().cpu()
    return growth
