"""The GRU and the transformer: what they see, how far back, in one graph, and what they learn of a known process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from arlat_core.config import UserError, validate
from arlat_dynamics.base import UNBOUNDED
from arlat_dynamics.headed import HeadedModel, measure
from arlat_dynamics.models import gru, transformer
from arlat_dynamics.models.transformer import Transformer
from arlat_dynamics.rollout import injections, rollout
from arlat_dynamics.streaming import StreamingModel
from torch import Tensor, nn

DIM = 3
SMALL: dict[str, object] = {"dim": DIM, "width": 16, "heads": 2, "head": {"name": "gaussian"}}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(**settings: object) -> Transformer:
    torch.manual_seed(0)
    return transformer.build(SMALL | settings)


def frames_that_matter(output: Tensor, x: Tensor) -> list[int]:
    """The frames of x [b t d] whose gradient is not 0."""
    (slope,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
    return [t for t in range(x.shape[1]) if float(slope[:, t].abs().max()) > 0]


@pytest.mark.parametrize(("depth", "window", "short"), [(1, 2, 0), (1, 5, 0), (3, 3, 0), (2, 2, 10), (2, 8, 5)])
def test_the_transformer_sees_what_it_says_and_no_more(depth: int, window: int, short: int) -> None:
    model = make(depth=depth, window=window, short_context=short)
    assert model.context == max(depth * (window - 1) + 1, short)
    x = torch.randn(1, 20, DIM, generator=seeded(0), requires_grad=True)
    assert frames_that_matter(model.features(x)[:, -1], x) == list(range(20 - model.context, 20))


@pytest.mark.parametrize("short", [2, 3, 10])
def test_the_short_transformer_sees_clean_frames_and_the_long_one_noised_frames(short: int) -> None:
    model = make(depth=2, window=7, short_context=short)
    clean = torch.randn(1, 20, DIM, generator=seeded(0), requires_grad=True)
    noised = (clean + torch.randn(1, 20, DIM, generator=seeded(1))).detach().requires_grad_()
    (_, features) = model.read_apart(model.initial(1), [noised, clean])
    assert frames_that_matter(features[:, -1], clean) == list(range(20 - short, 20))
    assert frames_that_matter(features[:, -1], noised) == list(range(7, 20))


def test_laws_after_noise_are_laws_after_the_clean_frame_where_one_is_seen() -> None:
    model = make(depth=2, window=4, short_context=4)
    clean, noise = torch.randn(2, 1, 9, DIM, generator=seeded(0)).unbind(0)
    target = torch.randn(1, 9, DIM, generator=seeded(1))
    _, features = model.read_apart(model.initial(1), [clean + noise, clean])
    expected = model.law(features).log_prob(target - clean)
    torch.testing.assert_close(
        model.unroll_noised(clean + noise, clean)[1].log_prob(target - clean - noise), expected, rtol=1e-4, atol=1e-4
    )
    plain = make(depth=2, window=4)
    torch.testing.assert_close(
        plain.unroll_noised(clean + noise, clean)[1].log_prob(target), plain.unroll(clean + noise)[1].log_prob(target)
    )


def shapes(state: Any) -> list[tuple[int, ...]]:
    """Shapes of all tensors of a state."""
    return [tuple(state.shape)] if isinstance(state, Tensor) else [shape for part in state for shape in shapes(part)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_far_beyond_the_window_steps_are_the_unroll_and_the_state_keeps_its_shapes(name: str) -> None:
    torch.manual_seed(0)
    shape: dict[str, object] = {"dim": DIM, "width": 16, "depth": 2, "head": {"name": "gaussian"}}
    model: StreamingModel = (
        gru.build(shape) if name == "gru" else transformer.build(shape | {"heads": 2, "window": 4, "short_context": 6})
    )
    x = torch.randn(2, 80, DIM, generator=seeded(0))
    whole = model.unroll(x)[1].mean()
    state = model.initial(2)
    first = shapes(state)
    for t in range(80):
        state, law = model.step(state, x[:, t])
        torch.testing.assert_close(law.mean(), whole[:, t], rtol=1e-4, atol=1e-4)
        assert shapes(state) == first
    state, early = model.read(model.initial(2), x[:, :33])
    late = model.read(state, x[:, 33:])[1]  # many frames at once, from a state
    torch.testing.assert_close(torch.cat([early, late], 1), model.features(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_a_step_compiles_once(name: str) -> None:
    torch.manual_seed(0)
    module: Any = {"gru": gru, "transformer": transformer}[name]
    model = module.build({"dim": DIM, "width": 8, "depth": 1, "head": {"name": "gaussian"}})
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled: Any = torch.compile(lambda state, x: model.step(state, x)[0], fullgraph=True, backend=count)
    after_many = model.unroll(torch.randn(2, 5, DIM, generator=seeded(0)))[0]
    for state in (model.initial(2), after_many):
        for t in range(3):
            state = compiled(state, torch.full((2, DIM), float(t)))
    assert len(graphs) == 1


def test_the_gru_is_torchs_and_forgets_nothing_by_rule() -> None:
    torch.manual_seed(0)
    layer = gru.Layer(5)
    x, h = torch.randn(2, 7, 5, generator=seeded(0)), torch.randn(2, 5, generator=seeded(1))
    got, after = layer(x, h)
    for t in range(7):
        h = layer.cell(layer.norm(x[:, t]), h)
        torch.testing.assert_close(got[:, t], x[:, t] + h)
    torch.testing.assert_close(after, h)
    model = gru.build({"dim": DIM, "width": 16})
    assert model.context == UNBOUNDED
    z = torch.randn(1, 20, DIM, generator=seeded(0), requires_grad=True)
    assert frames_that_matter(model.features(z)[:, -1], z) == list(range(20))


def test_a_rollout_of_unbounded_memory_shows_a_corrector_every_frame() -> None:
    torch.manual_seed(0)
    model = gru.build({"dim": DIM, "width": 16, "head": {"name": "gaussian"}})
    prefix, truth = torch.randn(2, 9, DIM, generator=seeded(0)).split([4, 5], 1)
    shown: list[int] = []

    def correct(x: Tensor, context: Tensor, generator: torch.Generator | None) -> Tensor:
        shown.append(context.shape[1])
        return x

    out = rollout(model, prefix, truth, injections("A", 5), correct=correct)
    assert shown == [4, 5, 6, 7, 8]
    laws = model.unroll(torch.cat([prefix, truth[:, :-1]], 1))[1]
    torch.testing.assert_close(
        out.log_prob, laws.log_prob(torch.cat([prefix[:, 1:], truth], 1) - torch.cat([prefix, truth[:, :-1]], 1))[:, 3:]
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    for wrong, reason in (({"width": 10, "heads": 4}, "no multiple"), ({"short_context": 1}, "no step")):
        with pytest.raises(UserError, match=reason):
            validate(transformer.Config, SMALL | wrong, "test")


def test_low_precision_inside_gives_laws_in_float32() -> None:
    for model in (make(depth=1), gru.build({"dim": DIM, "width": 16})):
        x = torch.randn(2, 6, DIM, generator=seeded(0))
        with torch.autocast("cpu", torch.bfloat16):
            state, law = model.unroll(x)
            law = model.step(state, x[:, 0])[1]
        assert law.mean().dtype == torch.float32
        torch.testing.assert_close(law.mean(), model.step(model.unroll(x)[0], x[:, 0])[1].mean(), rtol=0.1, atol=0.1)


def seasonal(lag: int, rho: float, utterances: int, frames: int, seed: int) -> Tensor:
    """z_t = ρ z_{t−lag} + √(1 − ρ²) ε_t, [u t 2]: the newest `lag` − 1 frames say nothing about the next one."""
    z = torch.randn(utterances, frames, 2, generator=seeded(seed))
    for t in range(lag, frames):
        z[:, t] = rho * z[:, t - lag] + math.sqrt(1 - rho**2) * z[:, t]
    return z


def fit(model: HeadedModel, train: Tensor, steps: int) -> None:
    """A few dozen steps of Adam on the NLL of all frames."""
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    generator = seeded(1)
    for _ in range(steps):
        z = train[torch.randint(len(train), (32,), generator=generator)]
        loss = -model.unroll(z[:, :-1])[1].log_prob(z.diff(dim=1)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_training_reaches_the_entropy_of_a_known_process(name: str, lag: int, cut_windows: Callable[..., Any]) -> None:
    rho = 0.95
    z = 20.0 * seasonal(lag, rho, 288, 32, 0) + 7.0
    windows = cut_windows(z[:64], context=4)
    module: Any = {"gru": gru, "transformer": transformer}[name]
    settings = {"dim": 2, "width": 32, "depth": 1, "head": {"name": "gaussian"}}
    settings |= {"heads": 2, "window": 8} if name == "transformer" else {}
    rows = torch.arange(len(windows))
    model = module.start(settings, windows, rows, rows, seeded(0))
    assert torch.equal(model.center, measure(windows, rows).center.float())
    fit(model, z[:256], 250)
    with torch.no_grad():
        nll = -model.unroll(z[256:, :-1])[1].log_prob(z[256:].diff(dim=1))[:, 7:].mean()
    plain = (z[256:] - 7.0) / 20.0
    residual = (plain[:, 8:] - rho * plain[:, 8 - lag : -lag]) / math.sqrt(1 - rho**2)
    exact = residual.square().sum(-1).mean() / 2 + math.log(2 * math.pi * (1 - rho**2)) + 2 * math.log(20.0)
    assert -0.02 < float(nll - exact) < 0.2  # without the frame `lag` − 1 before the newest one: 2.3 nats
