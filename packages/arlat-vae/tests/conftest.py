"""A small VAE that the tests of the package share, what perturbing an input changes, and a process whose law is known."""

import math
from collections.abc import Callable

import pytest
import torch
from arlat_vae.bottleneck import BottleneckConfig
from arlat_vae.model import VAE, Config, build
from arlat_vae.predictor import Predictor, PredictorConfig, build_predictor
from torch import Tensor

Process = Callable[..., Tensor]
Reach = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def reach(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[outputs inputs] of bool: which outputs [1 … n] of `function` move when an input of x [1 … n] does."""
    base = function(x)
    rows = []
    for place in range(x.shape[-1]):
        other = x.clone()
        other[..., place] += 1.0
        rows.append((function(other) - base).abs().flatten(0, -2).amax(0) > 0)
    return torch.stack(rows, 1)


def autoregress(rho: float, seed: int = 0, shape: tuple[int, int, int] = (200, 40, 3)) -> Tensor:
    """Stationary AR(1) [b t d] of variance 1 in every dimension."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    z = [noise[:, 0]]
    for t in range(1, shape[1]):
        z.append(rho * z[-1] + math.sqrt(1 - rho**2) * noise[:, t])
    return torch.stack(z, 1)


@pytest.fixture(scope="session")
def autoregression() -> Process:
    return autoregress


@pytest.fixture(scope="session")
def reached() -> Reach:
    return reach


@pytest.fixture(scope="session")
def small() -> Config:
    """24 samples a frame, so that a second of audio is many frames."""
    shape = {"ratios": (3, 2, 4), "channels": 4, "max_channels": 16, "width": 16, "layers": 2, "heads": 2}
    return Config(**shape, sample_rate=2400, window_frames=4, layer_scale=0.5, bottleneck=BottleneckConfig(dim=3))


@pytest.fixture
def vae(small: Config) -> VAE:
    return build(small, torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def stand_still() -> Predictor:
    """Says N(0, 1) of every standardised step of 3 dimensions, whatever two frames it sees."""
    predictor = build_predictor(3, PredictorConfig(window_frames=2, hidden=8), torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(predictor.head.linear.weight)
    return predictor
