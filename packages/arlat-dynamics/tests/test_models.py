"""Every trainable model with every head: the contract, one graph, the same weights from the same seed, disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_core import registry
from arlat_core.heads import HEADS
from arlat_core.testing import check_dynamics
from arlat_core.types import LatentSpec
from arlat_data.windows import Windows
from arlat_dynamics import checkpoint
from arlat_dynamics.headed import HeadedModel
from arlat_dynamics.models.linear import fit_linear
from torch import Tensor

DIM = 6
SHAPES: dict[str, dict[str, object]] = {
    "mlp": {"dim": DIM, "context": 4, "hidden": 16, "depth": 2},
    "gru": {"dim": DIM, "width": 16, "depth": 2},
    "transformer": {"dim": DIM, "width": 16, "depth": 2, "heads": 2, "window": 3, "short_context": 3},
}


@pytest.fixture
def begin(ar1: Callable[..., Tensor], cut_windows: Callable[..., Windows]) -> Callable[..., HeadedModel]:
    """An untrained model on AR(1) data of a large scale."""
    windows = cut_windows(50.0 * ar1(0.9, 4, 60, DIM, 0) + 100.0)

    def make(plugin: str, head: str, seed: int = 0) -> HeadedModel:
        module = registry.load("dynamics", plugin)
        settings = SHAPES[plugin] | {"head": {"name": head}}
        rows = torch.arange(len(windows))
        model = module.start(settings, windows, rows[:160], rows[160:], torch.Generator().manual_seed(seed))
        assert isinstance(model, HeadedModel)
        return model

    return make


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("plugin", sorted(SHAPES))
def test_the_contract(begin: Callable[..., HeadedModel], plugin: str, head: str) -> None:
    check_dynamics(begin(plugin, head), scale=50.0)


@pytest.mark.parametrize("plugin", sorted(SHAPES))
def test_an_untrained_model_is_at_the_scale_of_the_data(
    begin: Callable[..., HeadedModel], ar1: Callable[..., Tensor], plugin: str
) -> None:
    z = 50.0 * ar1(0.9, 4, 60, DIM, 1) + 100.0
    model = begin(plugin, "vmf")
    with torch.no_grad():
        law = model.unroll(z)[1]
    drawn = law.sample(torch.Generator().manual_seed(0)).norm(dim=-1).median()
    true = z.diff(dim=1).norm(dim=-1).median()
    assert 0.7 < float(drawn / true) < 1.4
    assert model.saturated_fraction(z) == 0


@pytest.mark.parametrize("head", sorted(HEADS))
def test_an_untrained_mlp_points_where_the_var_points(
    begin: Callable[..., HeadedModel], ar1: Callable[..., Tensor], cut_windows: Callable[..., Windows], head: str
) -> None:
    model = begin("mlp", head)
    windows = cut_windows(50.0 * ar1(0.9, 4, 60, DIM, 0) + 100.0)
    rows = torch.arange(len(windows))
    var = fit_linear(windows, rows[:160], rows[160:])
    context = windows.context[:, -4:]
    features = model.features(context)[:, -1, :DIM]
    cosine = torch.cosine_similarity(features, var.predict(windows.context), dim=-1)
    assert float(cosine.median()) > 0.98
    with torch.no_grad():
        toward = torch.cosine_similarity(model.distribution(context).mean(), var.predict(windows.context), dim=-1)
    assert float(toward.median()) > 0.8


@pytest.mark.parametrize("plugin", sorted(SHAPES))
def test_weights_are_a_function_of_the_seed_alone(begin: Callable[..., HeadedModel], plugin: str) -> None:
    torch.manual_seed(1)
    first, before = begin(plugin, "vmf_mixture").state_dict(), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(before, torch.rand(1))  # the global generator is left as it was
    second, other = begin(plugin, "vmf_mixture").state_dict(), begin(plugin, "vmf_mixture", seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.linear.weight"], other["head.linear.weight"])


@pytest.mark.parametrize("plugin", sorted(SHAPES))
def test_one_graph(begin: Callable[..., HeadedModel], plugin: str) -> None:
    model = begin(plugin, "vmf")
    x = torch.randn(2, 3, DIM, generator=torch.Generator().manual_seed(0))

    def score(x: Tensor, dx: Tensor) -> Tensor:
        state, laws = model.unroll(x)
        law = model.step(state, x[:, 0])[1]
        return laws.log_prob(dx).sum() + law.log_prob(dx[:, 0]).sum() + law.point().sum()

    torch.compiler.reset()
    compiled: Any = torch.compile(score, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x), score(x, x))


@pytest.mark.parametrize("plugin", sorted(SHAPES))
def test_disk(begin: Callable[..., HeadedModel], tmp_path: Path, plugin: str) -> None:
    spec = LatentSpec(codec="test", space="test", dim=DIM, frame_rate=12.5, sample_rate=0, fingerprint="0" * 16)
    model = begin(plugin, "gaussian_mixture")
    checkpoint.save(model, tmp_path, spec)
    again = checkpoint.load(tmp_path, spec)
    x = torch.randn(2, 7, DIM, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.unroll(x)[1].log_prob(x), again.unroll(x)[1].log_prob(x))
