"""On a CUDA device: fused, captured and eager trainings are the same training, and Triton draws sampled rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_data.store import LatentStore
from arlat_data.synth import make
from arlat_dynamics.fused import twin
from arlat_dynamics.models.mlp import Config, ResidualMLP
from arlat_dynamics.rollout import Route, injections, rollout
from arlat_dynamics.rollout_config import RolloutTrainConfig
from arlat_dynamics.rollout_train import train_rollout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there is no CUDA device (torch.cuda.is_available() is False)"
    ),
]


@pytest.mark.parametrize(
    ("model", "dim", "said"),
    [
        ({"width": 64, "hidden": 256}, 32, "rollout: fused (Triton)"),
        ({"width": 128, "hidden": 512}, 128, "rollout: fused (Triton)"),
        ({"width": 512, "hidden": 512}, 512, "rollout: graph (its stream is 512 wide"),
        ({"width": 64, "hidden": 256, "head": {"name": "gaussian"}}, 32, "rollout: graph (The fused rollout takes"),
        ({"name": "gru", "width": 64}, 32, "rollout: graph (The fused rollout runs the residual MLP"),
    ],
    ids=["fused", "fused 128", "wide", "gaussian", "gru"],
)
def test_the_route_of_the_device_has_the_loss_curve_of_the_loop(
    tmp_path: Path, model: dict[str, Any], dim: int, said: str
) -> None:
    store = LatentStore.open(make("ar1", dim, 24, 60, 12, 0, tmp_path / "ar1", rho=0.9))
    curves = []
    for route in ("auto", "eager"):
        settings = {"model": model, "steps": 8, "updates": 200, "log_every": 1, "evaluate_every": 100, "route": route}
        heard: list[str] = []
        config = RolloutTrainConfig.model_validate(settings | {"validation_rows": 64})
        train_rollout(store, config, tmp_path / route, "cuda", announce=heard.append)
        if route == "auto":
            assert heard[0].startswith(said)
        lines = (tmp_path / route / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert max(abs(one - other) for one, other in zip(*curves, strict=True)) < 1e-4


def test_sampled_rollouts_go_through_triton_where_no_gradient_is_needed() -> None:
    torch.manual_seed(0)
    model = ResidualMLP(Config(dim=32, width=64, hidden=64, depth=2, context=4)).cuda()
    assert twin(model) == ("triton", "")
    rows, steps = 4096, 4
    frames = torch.randn(1, 4 + steps, 32, device="cuda").cumsum(1).expand(rows, -1, -1)

    def sampled(route: Route) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return rollout(model, frames[:, :4], frames[:, 4:], injections("S", steps), True, generator, route=route).step

    assert sampled("auto").requires_grad  # the loop
    with torch.no_grad():
        auto, fused, eager = (sampled(route) for route in ("auto", "fused", "eager"))
    assert torch.equal(auto, fused)
    assert not torch.equal(auto, eager)  # other draws by the same law
    for one, other in ((auto.norm(dim=-1).log(), eager.norm(dim=-1).log()), (auto[..., 0], eager[..., 0])):
        error = ((one.var(0) + other.var(0)) / rows).sqrt()
        assert float(((one.mean(0) - other.mean(0)) / error).abs().max()) < 5
