"""The squared error of a mean rollout, split exactly into what nobody could know and three faults of the model.

With ẑ_s = F^s(c) the rollout from the context c, z_s the truth and g_s(c) a direct forecast of it, the *ideal* forecast is
m_s = g_s + β_s (ẑ_s − g_s), β_s the least-squares weight over all starts: no combination of the two has a smaller error.
So Σ⟨ẑ_s − m_s, m_s − z_s⟩ = 0 and

    Σ‖ẑ_s − z_s‖² = Σ‖m_s − z_s‖² + Σ‖ε_s‖²,   ε_s = ẑ_s − m_s        (intrinsic + excess).

The excess telescopes along the ideal path: with b_j = F(c, m_1 … m_{j−1}) − m_j, the error of one step made from there,
and w_{s,j} = F^{s−j}(c, m_{<j}, m_j + b_j) − F^{s−j}(c, m_{<j}, m_j), what the model's own map makes of it until step s,

    ε_s = Σ_{j≤s} w_{s,j},   kept_s = Σ_{j≤s} w_{s,j} min(1, ‖b_j‖ / ‖w_{s,j}‖).

*Amplification* is ‖ε_s‖² − ‖kept_s‖²: what propagation adds by making one-step errors longer than they were made. Turning
them costs nothing, and errors that the map has shrunk count as they are (it is below 0 only where longer errors cancel). With d = m_s − z_0 and d̂ = ẑ_s − z_0 the ideal and the model's movement, and α in [0, 1]
the larger of the slope Σ⟨d̂, d⟩/Σ‖d‖² and of the ratio of the lengths of the two paths, *collapse* is (1 − α)²‖d‖², never
more than Σ‖kept_s‖². The *one-step error* is the rest of ‖kept_s‖².
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from arlat_dynamics.base import Dynamics
from arlat_dynamics.rollout import rollout
from torch import Tensor

from arlat_diag.injection import Starts

PARTS = ("intrinsic", "one_step", "amplification", "collapse")


@dataclass(frozen=True)
class ErrorSplit:
    """Squared error per start and step and its parts, each [n k] float64; the parts add up to `total` in every entry.

    Attributes:
        total: ‖ẑ_s − z_s‖², s frames after the last true one.
        intrinsic: ‖m_s − z_s‖² of the ideal forecast: an upper bound on what nobody can know.
        one_step: Errors of single steps, as far as they last, at no more than their first length. The cross term
            2⟨ẑ_s − m_s, m_s − z_s⟩ of a start, whose sum over starts is 0, is booked here, so that its interval knows of it.
        amplification: What the model's map adds by making them longer.
        collapse: Movement that is missing.
        along: ⟨d̂, d⟩, and `ideal` ‖d‖²: the slope is the ratio of their sums.
        travelled: Length of the rollout's path, and `due` that of the ideal path.
    """

    total: Tensor
    intrinsic: Tensor
    one_step: Tensor
    amplification: Tensor
    collapse: Tensor
    along: Tensor
    ideal: Tensor
    travelled: Tensor
    due: Tensor

    @property
    def excess(self) -> Tensor:
        """All that a better forecaster is known to save, [n k]."""
        return self.total - self.intrinsic


def sharpen(model: Dynamics) -> Dynamics:
    """A frozen float64 copy: differences of nearly equal rollouts keep their digits."""
    return copy.deepcopy(model).double().requires_grad_(False).eval()


def mean_rollout(model: Dynamics, prefix: Tensor, steps: int) -> Tensor:
    """States [n steps d] after the deterministic steps 1 … `steps` from prefix [n w d]."""
    unseen = prefix.new_zeros(len(prefix), steps, prefix.shape[-1])
    rolled = rollout(model, prefix, unseen, (False,) * steps, scored=False)
    return rolled.state_in + rolled.step


def ideal_forecast(rolled: Tensor, direct: Tensor, truth: Tensor) -> Tensor:
    """The best combination [n k d], step by step, of the rollout's and the direct forecast."""
    apart = rolled - direct
    weight = ((truth - direct) * apart).sum((0, 2)) / apart.square().sum((0, 2)).clamp_min(1e-300)
    return direct + weight[:, None] * apart


def carried(model: Dynamics, prefix: Tensor, ideal: Tensor) -> Tensor:
    """kept_s [n k d]: the one-step errors made on the ideal path [n k d], turned and shrunk by the model's map, never longer."""
    steps = ideal.shape[1]
    kept = torch.zeros_like(ideal)
    before = mean_rollout(model, prefix, steps)
    for j in range(steps):
        known = torch.cat([prefix, ideal[:, : j + 1]], 1)
        after = mean_rollout(model, known, steps - j - 1) if j + 1 < steps else ideal[:, :0]
        term = before - torch.cat([ideal[:, j : j + 1], after], 1)
        length = term.norm(dim=-1, keepdim=True)
        kept[:, j:] += term * (length[:, :1] / length.clamp_min(1e-300)).clamp(max=1)
        before = after
    return kept


def split_error(model: Dynamics, starts: Starts, direct: Tensor, device: str, block: int = 128) -> ErrorSplit:
    """Splits the error of the mean rollout from `starts`, given direct forecasts [n k d] of the same frames."""
    sharp = sharpen(model)
    steps = starts.truth.shape[1]
    prefix, truth = starts.prefix.double(), starts.truth.double()
    with torch.no_grad():
        parts = [mean_rollout(sharp, part.to(device), steps).cpu() for part in torch.split(prefix, block)]
        rolled = torch.cat(parts)
        ideal = ideal_forecast(rolled, direct, truth)
        pairs = zip(torch.split(prefix, block), torch.split(ideal, block), strict=True)
        kept = torch.cat([carried(sharp, before.to(device), path.to(device)).cpu() for before, path in pairs])
    total, intrinsic = (rolled - truth).square().sum(-1), (ideal - truth).square().sum(-1)
    excess, held = (rolled - ideal).square().sum(-1), kept.square().sum(-1)
    now = prefix[:, -1:]
    moved, due = rolled - now, ideal - now
    paths = [torch.cat([now, path], 1).diff(dim=1).norm(dim=-1).cumsum(1) for path in (rolled, ideal)]
    along, square = (moved * due).sum(-1), due.square().sum(-1)
    reached = torch.maximum(ratio(along, square), ratio(paths[0], paths[1])).clamp(0, 1)
    missing = (1 - reached).square() * square
    collapse = missing * ratio(held, missing).clamp(0, 1)
    cross = total - intrinsic - excess
    return ErrorSplit(
        total, intrinsic, held - collapse + cross, excess - held, collapse, along, square, paths[0], paths[1]
    )


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """Ratio of sums over starts, [k]; 1 where the denominator is 0."""
    down = below.sum(0)
    return torch.where(down > 0, above.sum(0) / down.clamp_min(1e-300), 1.0)
