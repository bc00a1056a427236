"""Networks whose features a head of arlat-core turns into laws: what the MLP, the GRU and the transformer share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.distributions import StepDistribution
from arlat_core.heads import build_head
from arlat_core.seed import seeded
from pydantic import Field
from torch import Tensor, nn

from arlat_dynamics.base import Dynamics, State, WindowSource, row_blocks, spread_out
from arlat_dynamics.covariance import spread

SHORTEST = 1e-12  # ‖Δ‖ below this is taken as this in the moments of its logarithm


class HeadConfig(BaseConfig):
    """The law that a model ends in."""

    name: str = "vmf"
    """gaussian, gaussian_mixture, vmf, vmf_mixture, power_spherical or flow."""
    components: int | None = Field(default=None, gt=0)
    """Components of a mixture (default: 8)."""


class Scales(NamedTuple):
    """Moments of training data: of frames z, of one step between frames of the context, and of the target Δ.

    center and scale [d] of z, step_scale [d] of z_t − z_{t−1}; `length` is the median of ‖Δ‖, `log_spread` the standard
    deviation of log ‖Δ‖.
    """

    center: Tensor
    scale: Tensor
    step_scale: Tensor
    length: float
    log_spread: float


def measure(windows: WindowSource, rows: Tensor) -> Scales:
    """The moments of (at most 40 000 of) the windows at `rows`."""
    newest, target = [], []
    for part in row_blocks(spread_out(rows), 4096):
        batch = windows.gather(part)
        newest.append(batch.context[:, -2:])
        target.append(batch.target)
    frames, dx = torch.cat(newest).double(), torch.cat(target).double()
    now = frames[:, -1]
    scale = spread(now.var(0, correction=0))
    step_scale = spread((now - frames[:, 0]).square().mean(0)) if frames.shape[1] > 1 else scale
    length = dx.norm(dim=-1).clamp_min(SHORTEST)
    log_spread = float(length.log().std().clamp_min(1e-2)) if len(length) > 1 else 1.0
    return Scales(now.mean(0), scale, step_scale, float(length.median()), log_spread)


class HeadedModel(Dynamics):
    """A network from standardised frames to features [... features], and a head from features to laws in raw units."""

    center: Tensor
    scale: Tensor
    step_scale: Tensor

    def __init__(self, dim: int, features: int, head: HeadConfig) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("step_scale", torch.ones(dim))
        self.norm = nn.RMSNorm(features, eps=1e-6, elementwise_affine=False)
        self.head = build_head(head.name, dim, features, head.components)

    def calibrate(self, scales: Scales) -> None:
        """Takes the scales of the data, so that an untrained model is already at them."""
        self.center.copy_(scales.center)
        self.scale.copy_(scales.scale)
        self.step_scale.copy_(scales.step_scale)
        self.head.calibrate(scales.length, scales.log_spread)

    def standardise(self, x: Tensor) -> Tensor:
        """Frames [... d] in units of their standard deviation."""
        return (x - self.center) / self.scale

    def unstandardise(self, x: Tensor) -> Tensor:
        """What `standardise` made of frames, undone."""
        return x * self.scale + self.center

    def law(self, features: Tensor) -> StepDistribution:
        """The laws [...] after features [... features], in float32 whatever the network computes in."""
        with torch.autocast(features.device.type, enabled=False):
            law: StepDistribution = self.head(features.float() if features.dtype == torch.bfloat16 else features)
        return law

    def unroll_noised(self, noised: Tensor, clean: Tensor) -> tuple[State, StepDistribution]:
        """`unroll` in training with noise: `noised` [b t d] is what the model sees, `clean` the same frames without noise."""
        return self.unroll(noised)

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Normalised features [b t features] after every frame of x [b t d]: what the head sees."""

    @torch.no_grad()
    def saturated_fraction(self, x: Tensor) -> float:
        """Part of the bounded parameters near the end of their range, in the laws after the last frame of x [n t d]."""
        return self.head.saturated_fraction(self.features(x)[:, -1])


M = TypeVar("M", bound=HeadedModel)


def begin(
    build: Callable[[dict[str, object]], M],
    settings: dict[str, object],
    windows: WindowSource,
    rows: Tensor,
    generator: torch.Generator,
) -> M:
    """An untrained model at the scales of the windows at `rows`, its weights a function of the generator."""
    with seeded(generator):
        model = build(settings)
    model.calibrate(measure(windows, rows))
    return model
