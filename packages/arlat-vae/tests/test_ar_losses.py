"""AR losses: the values that theory gives, what each does to latents that may choose, and that those without weight do nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_core.testing.codec import example_audio
from arlat_vae import ar_losses, train
from arlat_vae.ar_losses import ARConfig, directional, jacobian, noised, rollout_error, smoothness
from arlat_vae.crops import Clips
from arlat_vae.predictor import (
    Predictor,
    PredictorConfig,
    build_predictor,
    mean_reversion,
    standardise,
    surprise,
)
from arlat_vae.probe import ProbeConfig, Sequences, probe
from arlat_vae.train_config import Config
from pydantic import ValidationError
from torch import Tensor

ON = {"weight": 0.5}


Process = Callable[..., Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_losses_of_an_autoregression_are_what_theory_says(
    rho: float, autoregression: Process, stand_still: Predictor
) -> None:
    latents = standardise(5 * autoregression(rho) + 1, 2)
    assert float(smoothness(latents.y, 2)) == pytest.approx(2 - 2 * rho, rel=0.06)
    errors = [2 - 2 * rho**k for k in (1, 2, 3)]
    found = rollout_error(stand_still, latents, 3).detach()
    assert float(found) == pytest.approx(sum(errors) / 3, rel=0.06)


def test_noise_is_as_large_as_it_is_told() -> None:
    zeros = noised(torch.zeros(4000, 4, 1), 0.5, seeded())
    assert float(zeros.square().mean()) == pytest.approx(0.25, rel=0.05)  # k is uniform below 0.5
    assert float(noised(torch.ones(4000, 4, 1), 0.5, seeded()).square().mean()) == pytest.approx(1.0, rel=0.05)


def test_nothing_but_the_plain_form_is_won_by_shrinking(autoregression: Process) -> None:
    z = autoregression(0.5, 0, (4, 20, 3))
    predictor = build_predictor(3, PredictorConfig(window_frames=2), seeded())

    def decode(x: Tensor) -> Tensor:
        return ((x - x.mean()) / x.std()).tanh().flatten(1)

    def losses(z: Tensor) -> list[float]:
        latents = standardise(z, 2)
        found = [smoothness(z, 2), surprise(predictor, latents.y, latents).mean()]
        found += [rollout_error(predictor, latents, 3), jacobian(decode, z, 0.01, seeded())]
        return [float(value.detach()) for value in found]

    assert losses(0.05 * z + 7) == pytest.approx(losses(z), rel=0.02)
    assert float(smoothness(0.05 * z, 2, "plain")) == pytest.approx(0.0025 * float(smoothness(z, 2, "plain")), rel=1e-4)
    scale = torch.ones((), requires_grad=True)
    slopes = [torch.autograd.grad(smoothness(scale * z, 2, form), scale)[0] for form in ("scale_free", "plain")]  # type: ignore[arg-type]
    assert abs(float(slopes[0])) < 1e-4 < float(slopes[1])


def test_l_smooth_is_not_won_by_what_dies_away_at_the_beginning(autoregression: Process) -> None:
    z = autoregression(0.0, 0, (40, 12, 3))
    beginning = torch.zeros(12, 1)
    beginning[:4, 0] = torch.tensor([49.0, 40.0, 14.0, 1.0])
    for form in ("scale_free", "plain"):
        assert float(smoothness(z + beginning, 4, form)) >= float(smoothness(z, 4, form))  # type: ignore[arg-type]


def test_the_directional_derivative_is_that_of_autograd() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()
    z, direction = torch.randn(2, 4, 3, generator=seeded()).double(), torch.randn(2, 4, 3, generator=seeded(1)).double()
    whole = torch.autograd.functional.jacobian(layer, z)  # type: ignore[no-untyped-call]  # [2 4 5 2 4 3]
    moved, value = directional(layer, z, direction, 1e-4)
    torch.testing.assert_close(moved, torch.einsum("abcijk,ijk->abc", whole, direction), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(value, layer(z), rtol=1e-6, atol=1e-6)


def test_the_jacobian_loss_is_one_for_a_linear_decoder_and_more_for_one_that_bends() -> None:
    z = torch.tensor([0.1, 1.0, 7.0]) * torch.randn(40, 50, 3, generator=seeded())
    mix = torch.randn(3, 12, generator=seeded(1))
    linear = float(jacobian(lambda x: (x @ mix).flatten(1), z, 0.01, seeded(2)))
    assert linear == pytest.approx(1.0, rel=0.05)
    bent = float(jacobian(lambda x: (3 * x).sin(), z / z.std((0, 1)), 0.01, seeded(2)))
    cosine = 0.5 * (1 + math.exp(-18))  # E cos²(3x), x ~ N(0, 1)
    assert bent == pytest.approx(9 * cosine / (1 - cosine), rel=0.05)


class Choice(torch.nn.Module):
    """One latent dimension of several given ones: the encoder may choose which."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def learned(config: ARConfig, x: Tensor, weight: list[float], steps: int = 150) -> Choice:
    encoder = Choice(weight)
    state = ar_losses.start(1, config, seeded())
    optimiser = torch.optim.Adam(encoder.parameters(), 0.02)
    for step in range(steps):
        part = x[torch.randint(len(x), (16,), generator=seeded(step))]
        values, weights, _ = ar_losses.ar_losses(state, encoder(part), lambda z: z, config, seeded(step))
        optimiser.zero_grad()
        torch.stack([weights[name] * value for name, value in values.items()]).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return encoder


def test_l_pred_makes_latents_that_a_fresh_predictor_predicts() -> None:
    """Of white noise and an oscillation, whose next step two frames tell, the encoder keeps the oscillation."""
    phase = 2 * math.pi * torch.rand(60, 1, generator=seeded())
    tone = math.sqrt(2) * torch.sin(2.0 * torch.arange(40) + phase) + 0.1 * torch.randn(60, 40, generator=seeded(1))
    x = torch.stack([torch.randn(60, 40, generator=seeded(2)), tone], -1)
    judge = ProbeConfig(steps=200, predictor=PredictorConfig(window_frames=3, hidden=32))

    def worth(encoder: torch.nn.Module) -> float:
        z = encoder(x).detach()
        parts = [Sequences(list(some), [str(i) for i in range(len(some))]) for some in (z[:45], z[45:])]
        return probe(*parts, 12.5, judge)["probe.information"].value or 0.0

    start = [0.8, 0.6]
    config = ARConfig(pred={"weight": 1.0}, predictor=PredictorConfig(window_frames=3, hidden=32))  # type: ignore[arg-type]
    encoder = learned(config, x, start)
    kept = (encoder.weight[1] / encoder.weight[0]).detach().abs()
    before, after = worth(Choice(start)), worth(encoder)
    assert float(kept) > 3
    assert after > before + 0.5
    assert before < 0.6


@pytest.mark.parametrize(("form", "kept"), [("step", 0), ("frame", 1)])
def test_l_pred_in_steps_keeps_what_alternates_and_in_frames_what_is_known_better(
    form: str, kept: int, autoregression: Process
) -> None:
    """Of ρ = −0.6 and ρ = 0.9: in typical steps the next one is known to (1 + ρ)/2, in deviations the next frame to 1 − ρ²."""
    x = torch.cat([autoregression(-0.6, 1, (60, 40, 1)), autoregression(0.9, 2, (60, 40, 1))], -1)
    floors = []
    for part, rho in zip(x.unbind(-1), (-0.6, 0.9), strict=True):
        latents = standardise(part[..., None], 4)
        floors.append(float(mean_reversion(latents) + ar_losses.unit_surprise(latents, form)))  # type: ignore[arg-type]
        known = (1 + rho) / 2 if form == "step" else 1 - rho**2
        assert floors[-1] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * known), abs=0.05)
    assert floors[kept] < floors[1 - kept] - 0.3
    encoder = learned(ARConfig(pred={"weight": 1.0}, pred_form=form), x, [0.7, 0.7])  # type: ignore[arg-type]
    assert float((encoder.weight[kept] / encoder.weight[1 - kept]).detach().abs()) > 3


def test_l_smooth_keeps_what_is_slow(autoregression: Process) -> None:
    x = torch.cat([autoregression(0.0, 1, (60, 40, 1)), autoregression(0.95, 2, (60, 40, 1))], -1)
    encoder = learned(ARConfig(smooth={"weight": 1.0}), x, [0.9, 0.4])  # type: ignore[arg-type]
    assert float((encoder.weight[1] / encoder.weight[0]).detach().abs()) > 5


def config(out: Path, **changes: Any) -> Config:
    steps = {"steps": 4, "batch": 2, "warmup_steps": 0}
    small = {"log_every": 2, "save_every": 2, "held_out_crops": 2}
    return Config(data={"audio_dir": out, "crop": {"frames": 7}}, out=out, train=steps, **small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips() -> Clips:
    audio = (example_audio(2, 30_000, 24_000) * 32767).to(torch.int16)
    return Clips(audio.flatten().numpy(), torch.arange(2) * 30_000, torch.full((2,), 30_000))


PREDICTOR: dict[str, Any] = {"predictor": {"window_frames": 2, "hidden": 16}, "rollout_steps": 3}
STEERED: dict[str, Any] = {"smooth": {"weight": 0.1, "target": 0.3}, **dict.fromkeys(("pred", "noise"), ON)}
EVERY: dict[str, Any] = PREDICTOR | STEERED | {"rollout": ON, "jacobian": {"weight": 0.1, "target": 1.5}}


def test_losses_without_weight_change_no_bit(clips: Clips, tmp_path: Path) -> None:
    off = {"smooth_form": "plain", "noise_level": 0.7, "latent": "sample", **PREDICTOR}
    for name, given in (("a", {}), ("b", {"ar": off})):
        train.train(config(tmp_path / name, **given), clips, clips)
    for file in ("state/000000004.safetensors", "state/000000004.json", "metrics.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    about = json.loads((tmp_path / "a" / "state" / "000000004.json").read_text())
    assert "multipliers" not in about


def test_a_killed_run_with_every_loss_goes_on_to_the_bit(clips: Clips, tmp_path: Path) -> None:
    def kill(done: int, planned: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = train.train(config(tmp_path / "a", ar=EVERY), clips, clips)
    with pytest.raises(KeyboardInterrupt):
        train.train(config(tmp_path / "b", ar=EVERY), clips, clips, kill)
    resumed = train.train(config(tmp_path / "b", ar=EVERY), clips, clips)
    assert whole.ar.multipliers == resumed.ar.multipliers
    assert set(whole.ar.multipliers.log) == {"smooth", "jacobian"}
    for file in ("state/000000004.safetensors", "state/000000004.json", "metrics.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    keys = {"smooth", "pred", "pred_floor", "noise", "rollout", "jacobian", "smooth_multiplier", "jacobian_multiplier"}
    assert keys <= rows[0].keys()
    assert all(math.isfinite(rows[0][key]) for key in keys)
    assert "pred_multiplier" not in rows[0]


def test_the_predictor_learns_and_the_losses_reach_the_encoder(clips: Clips, tmp_path: Path) -> None:
    settings = config(tmp_path, ar=EVERY)
    learner, plain = train.start(settings), train.start(config(tmp_path))
    predictor = {name: value.clone() for name, value in learner.models()["predictor"].state_dict().items()}
    losses = train.reconstruction_losses(24_000)
    audio = example_audio(2, 7 * 1920, 24_000)
    for one, given in ((learner, settings), (plain, config(tmp_path))):
        train.update(one, audio, losses, given)
    assert any(
        not torch.equal(value, predictor[name]) for name, value in learner.models()["predictor"].state_dict().items()
    )
    assert all(value.requires_grad for value in learner.models()["predictor"].parameters())
    first, second = (one.model.bottleneck.mean.weight for one in (learner, plain))
    assert not torch.equal(first, second)


def test_silence_trains_without_harm(tmp_path: Path) -> None:
    settings = config(tmp_path, ar=EVERY)
    silent = train.start(settings)
    metrics = train.update(silent, torch.zeros(2, 7 * 1920), train.reconstruction_losses(24_000), settings)
    assert silent.skipped == 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_batch_that_is_not_finite_leaves_the_predictor_as_it_was(tmp_path: Path) -> None:
    settings = config(tmp_path, ar=EVERY)
    broken = train.start(settings)
    before = {name: value.clone() for name, value in broken.models()["predictor"].state_dict().items()}
    losses = train.reconstruction_losses(24_000)
    train.update(broken, torch.full((2, 7 * 1920), math.nan), losses, settings)
    assert broken.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in broken.models()["predictor"].state_dict().items())
    assert broken.ar.multipliers.log == {}


def test_conditions_have_names_and_crops_must_reach() -> None:
    def named(**changes: Any) -> str:
        return ARConfig(**changes).label()

    assert [named(), named(smooth=ON), named(pred=ON), named(smooth=ON, pred=ON)] == ["none", "smooth", "pred", "both"]
    assert named(smooth=ON, jacobian=ON) == "smooth+jacobian"
    assert named(smooth=ON, pred=ON, pred_form="frame") == "smooth+pred-frame"
    with pytest.raises(ValidationError, match="need crops of 8 frames"):
        config(Path("x"), ar={"rollout": ON})
    with pytest.raises(ValidationError, match="need crops of 8 frames"):
        config(Path("x"), ar={"smooth": ON, "predictor": {"window_frames": 7}})
