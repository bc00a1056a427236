"""Rollouts from true starts with true frames injected at chosen steps, and their scores per start and step (SPEC §12.5).

Step s = 1 … K starts in the state z_{t+s−1} (or what the rollout made of it) and asks for Δ_s = z_{t+s} − z_{t+s−1}.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from arlat_data.windows import Batch
from arlat_dynamics.rollout import injections, rollout
from torch import Tensor

if TYPE_CHECKING:
    from arlat_data.store import Split
    from arlat_dynamics.base import Dynamics

MODES = ("A", "B", "C", "D")  # of the deterministic step; S is D, sampled


@dataclass(frozen=True)
class Starts:
    """True stretches of w + K frames, [n w+K d]: w of context and K to be rolled out, with where they come from, each [n].

    `frame` is the frame number of z_t, the last of the context; `too_short` counts utterances that hold no stretch.
    """

    sequence: Tensor
    width: int
    speaker: Tensor
    utterance: Tensor
    frame: Tensor
    too_short: int

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def prefix(self) -> Tensor:
        """The context [n w d], up to z_t."""
        return self.sequence[:, : self.width]

    @property
    def truth(self) -> Tensor:
        """z_{t+1} … z_{t+K}, [n k d]."""
        return self.sequence[:, self.width :]

    @property
    def entering(self) -> Tensor:
        """The true states that enter steps 1 … K: z_t … z_{t+K−1}, [n k d]."""
        return self.sequence[:, self.width - 1 : -1]

    @property
    def displacement(self) -> Tensor:
        """Δ_1 … Δ_K, [n k d]."""
        return self.truth - self.entering

    def take(self, rows: Tensor) -> Starts:
        """The starts at `rows`."""
        return Starts(
            self.sequence[rows], self.width, self.speaker[rows], self.utterance[rows], self.frame[rows], self.too_short
        )

    def batch(self, step: int) -> Batch:
        """The windows of one step s (1 … K) as a baseline sees them, all true."""
        context = self.sequence[:, step - 1 : step - 1 + self.width]
        now, future = context[:, -1], self.sequence[:, self.width + step - 1]
        return Batch(context=context, target=future - now, now=now, future=future)


def choose_starts(split: Split, width: int, steps: int, per_utterance: int, generator: torch.Generator) -> Starts:
    """Draws up to `per_utterance` different starts in each utterance of at least `width` + `steps` frames."""
    names = {name: index for index, name in enumerate(sorted(set(split.speakers)))}
    need = width + steps
    first, utterance, speaker, frame = [], [], [], []
    for item, (start, length) in enumerate(zip(split.start.tolist(), split.length.tolist(), strict=True)):
        places = length - need + 1
        if places < 1:
            continue
        chosen = torch.randperm(places, generator=generator)[:per_utterance].sort().values.tolist()
        first += [start + place for place in chosen]
        frame += [place + width - 1 for place in chosen]
        utterance += [item] * len(chosen)
        speaker += [names[split.speakers[item]]] * len(chosen)
    rows = torch.tensor(first, dtype=torch.int64)[:, None] + torch.arange(need)
    too_short = int((split.length < need).sum())
    return Starts(split.z[rows], width, torch.tensor(speaker), torch.tensor(utterance), torch.tensor(frame), too_short)


@dataclass(frozen=True)
class Curves:
    """Scores of rollouts per start and step, each [n k] float64.

    Attributes:
        cosine: cos(Δ̂, Δ); 0 where Δ̂ is 0.
        predicted_length: ‖Δ̂‖.
        error: ‖ẑ − z‖ of the state entering the step.
        nll: −log p(Δ) of the true displacement under the law at the rollout's state.
    """

    cosine: Tensor
    predicted_length: Tensor
    error: Tensor
    nll: Tensor


@dataclass(frozen=True)
class SampleCurves(Curves):
    """Scores of sample rollouts, averaged over a start's draws, and those of its ensemble, each [n k].

    Attributes:
        spread: √(Σ‖ẑ_i − mean‖² / (draws − 1)) of the states entering the step.
        energy_score: mean ‖ẑ_i − z‖ − ½ mean_{i≠j} ‖ẑ_i − ẑ_j‖: proper, 0 for a perfect sharp forecast.
    """

    spread: Tensor
    energy_score: Tensor


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """cos(x, y) [...] of x, y [... d] without a floor on lengths, since a mean rollout's steps get arbitrarily short; 0 where either is 0."""
    unit = [v / v.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny) for v in (x, y)]
    product: Tensor = unit[0] * unit[1]
    return product.sum(-1)


def pieces(starts: Starts, size: int) -> list[Starts]:
    """The starts in blocks of at most `size`."""
    rows = torch.arange(len(starts))
    return [starts.take(rows[first : first + size]) for first in range(0, len(rows), size)]


def score(state: Tensor, step: Tensor, log_prob: Tensor, starts: Starts) -> Curves:
    """Scores states entering [n k d], steps [n k d] and log-densities [n k] against the truth."""
    move = starts.displacement.double()
    state, step = state.double().cpu(), step.double().cpu()
    error = (state - starts.entering.double()).norm(dim=-1)
    return Curves(cosine(step, move), step.norm(dim=-1), error, -log_prob.double().cpu())


def follow(model: Dynamics, starts: Starts, inject: tuple[bool, ...], device: str, block: int = 1024) -> Curves:
    """Rolls the deterministic step out from every start, with the truth injected after the steps that `inject` marks."""
    parts = []
    with torch.no_grad():
        for part in pieces(starts, block):
            rolled = rollout(model, part.prefix.to(device), part.truth.to(device), inject)
            parts.append(score(rolled.state_in, rolled.step, rolled.log_prob, part))
    return Curves(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Curves)})


def draw(
    model: Dynamics, starts: Starts, draws: int, generator: torch.Generator, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample rollouts: states entering and steps [n draws k d], log-densities [n draws k]."""
    prefix, truth = (x.repeat_interleave(draws, 0).to(device) for x in (starts.prefix, starts.truth))
    with torch.no_grad():
        rolled = rollout(model, prefix, truth, injections("S", truth.shape[1]), sample=True, generator=generator)
    parts = (rolled.state_in, rolled.step, rolled.log_prob)
    state, step, log_prob = (x.cpu().reshape(len(starts), draws, *x.shape[1:]) for x in parts)
    return state, step, log_prob


def follow_samples(
    model: Dynamics, starts: Starts, draws: int, generator: torch.Generator, device: str, block: int = 1024
) -> SampleCurves:
    """Rolls `draws` samples out from every start (mode S)."""
    parts: list[dict[str, Tensor]] = []
    for part in pieces(starts, max(1, block // draws)):
        state, step, log_prob = draw(model, part, draws, generator, device)
        each = [score(state[:, i], step[:, i], log_prob[:, i], part) for i in range(draws)]
        means = {item.name: torch.stack([getattr(one, item.name) for one in each]).mean(0) for item in fields(Curves)}
        ensemble = state.double().transpose(1, 2)  # [n k draws d]
        apart = torch.cdist(ensemble, ensemble, compute_mode="donot_use_mm_for_euclid_dist").sum((-1, -2))
        spread = ensemble.var(2).sum(-1).sqrt()
        energy = means["error"] - apart / (2 * draws * (draws - 1))
        parts.append(means | {"spread": spread, "energy_score": energy})
    return SampleCurves(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
