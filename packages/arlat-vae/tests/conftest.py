"""A small VAE that the tests of the package share, and what perturbing an input changes."""

from collections.abc import Callable

import pytest
import torch
from arlat_vae.bottleneck import BottleneckConfig
from arlat_vae.model import VAE, Config, build
from torch import Tensor

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
