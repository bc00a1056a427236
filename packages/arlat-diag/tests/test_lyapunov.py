"""Singular values and growth of errors are those of the map's Jacobian, of which only products are taken."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arlat_diag.injection import Starts
from arlat_diag.lyapunov import error_growth, singular_values, step_map_values
from arlat_dynamics.models import linear, mdn
from arlat_dynamics.models.linear import LinearModel

D, W, K = 6, 3, 5


def starts_of(count: int = 7) -> Starts:
    sequence = torch.randn(count, W + K, D, generator=torch.Generator().manual_seed(0))
    some: Any = SimpleNamespace(sequence=sequence, width=W, truth=sequence[:, W:], prefix=sequence[:, :W])
    found: Starts = some
    return found


def map_of(matrix: torch.Tensor, second: torch.Tensor | None = None) -> LinearModel:
    """z_{t+1} = matrix z_t + second (z_t − z_{t−1})."""
    model = LinearModel(linear.Config(dim=D, context=W, order=2, frames=2))
    more = torch.zeros(D, D) if second is None else second
    weight = torch.cat([(matrix - torch.eye(D) + more).mT, -more.mT])
    zero = torch.zeros(D)
    model.load_state_dict({"center": zero, "bias": zero, "weight": weight, "factor": torch.eye(D)})
    return model


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_singular_values_are_those_of_each_rows_jacobian() -> None:
    at = torch.randn(4, D, generator=generator(), dtype=torch.float64)
    matrix = torch.randn(D, D, generator=generator(), dtype=torch.float64)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ matrix) * x.square().sum(-1, keepdim=True)

    found = singular_values(function, at, 3, 60, generator())
    for row in range(4):
        full = torch.autograd.functional.jacobian(lambda x: function(x[None])[0], at[row])
        torch.testing.assert_close(found[row], torch.linalg.svdvals(full)[:3], rtol=1e-5, atol=1e-8)
    assert singular_values(function, at, 50, 3, generator()).shape == (4, D)


def test_exponents_of_linear_maps_are_known() -> None:
    orthogonal = torch.linalg.qr(torch.randn(D, D, generator=generator())).Q
    for matrix, truth in ((0.8 * torch.eye(D), math.log(0.8)), (orthogonal, 0.0), (1.1 * orthogonal, math.log(1.1))):
        model = map_of(matrix)
        sigma = step_map_values(model, starts_of(), K, 2, 3, generator(), "cpu")
        torch.testing.assert_close(
            sigma.log() / K, torch.full((7, 2), truth, dtype=torch.float64), rtol=1e-5, atol=1e-6
        )
        growth = error_growth(model, starts_of(), "cpu")
        assert growth.shape == (7, K - 1)
        torch.testing.assert_close(growth, torch.full_like(growth, truth), rtol=1e-5, atol=1e-6)


def test_a_shear_grows_for_some_steps_though_its_radius_is_below_one() -> None:
    matrix = 0.9 * torch.eye(D)
    matrix[0, 1] = 2.0
    sigma = step_map_values(map_of(matrix), starts_of(), K, 1, 10, generator(), "cpu")
    truth = torch.linalg.svdvals(torch.linalg.matrix_power(matrix.double(), K))[0]
    torch.testing.assert_close(sigma[:, 0], truth.expand(7), rtol=1e-5, atol=0)
    assert float(truth) > 5


def test_the_older_frames_of_an_error_count_too() -> None:
    second = 0.5 * torch.eye(D)
    starts, model = starts_of(), map_of(0.8 * torch.eye(D), second)
    growth = error_growth(model, starts, "cpu")
    frames = [starts.prefix[:, -2].double(), starts.prefix[:, -1].double()]
    for _ in range(K):
        frames.append(0.8 * frames[-1] + 0.5 * (frames[-1] - frames[-2]))
    error = torch.stack(frames[2:], 1) - starts.truth.double()
    before = torch.cat([torch.zeros_like(error[:, :1]), error[:, :-1]], 1)
    after = (1.3 * error - 0.5 * before)[:, :-1].norm(dim=-1)
    torch.testing.assert_close(growth, (after / error[:, :-1].norm(dim=-1)).log(), rtol=1e-5, atol=1e-6)


def test_a_network_is_differentiated_exactly() -> None:
    config = mdn.Config(linear=linear.Config(dim=D, context=W, order=1, frames=1), components=2, width=16)
    model = mdn.ResidualMixture(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator())
    starts = starts_of(2)
    sigma = step_map_values(model, starts, K, 2, 80, generator(), "cpu")
    double = model.double()

    def rolled(newest: torch.Tensor) -> torch.Tensor:
        frames = torch.cat([starts.prefix[0, :-1].double(), newest[None]])
        for _ in range(K):
            frames = torch.cat([frames, (frames[-1] + double.distribution(frames[-W:][None]).point()[0])[None]])
        return frames[-1]

    full = torch.autograd.functional.jacobian(rolled, starts.prefix[0, -1].double())
    torch.testing.assert_close(sigma[0], torch.linalg.svdvals(full)[:2], rtol=1e-4, atol=1e-8)


def test_a_map_that_forgets_has_no_exponent() -> None:
    sigma = step_map_values(map_of(torch.zeros(D, D)), starts_of(), K, 1, 2, generator(), "cpu")
    assert float(sigma.max()) == pytest.approx(0, abs=1e-12)
    assert bool((error_growth(map_of(torch.zeros(D, D)), starts_of(), "cpu") == -math.inf).all())
