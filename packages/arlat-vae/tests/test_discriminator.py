"""The discriminator's shapes, its losses' known answers, and that it learns to tell."""

from __future__ import annotations

import pytest
import torch
from arlat_core.testing.codec import example_audio
from arlat_vae.discriminator import (
    Config,
    Discriminator,
    Judgement,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)


def judgement(logit: float, feature: float) -> Judgement:
    return Judgement(torch.full((2, 1, 3, 4), logit), [torch.full((2, 5, 3, 4), feature)])


@pytest.fixture
def small() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(Config(n_ffts=(256, 64), channels=4))


def test_shapes() -> None:
    judgements = Discriminator(Config(channels=2))(torch.zeros(3, 24_000))
    assert len(judgements) == 5
    for n_fft, (logits, features) in zip(Config().n_ffts, judgements, strict=True):
        frames, bins = 24_000 // (n_fft // 4) + 1, n_fft // 2 + 1
        sizes = [bins]
        for _ in range(3):
            sizes.append((sizes[-1] + 1) // 2)
        assert [tuple(value.shape) for value in features] == [(3, 2, frames, size) for size in [*sizes, sizes[-1]]]
        assert logits.shape == (3, 1, frames, sizes[-1])


def test_losses_have_known_answers() -> None:
    real, fake = [judgement(0.25, 2.0), judgement(3.0, 1.0)], [judgement(-0.5, 2.5), judgement(-3.0, 1.0)]
    assert float(discriminator_loss(real, fake)) == pytest.approx((0.75 + 0.5 + 0.0 + 0.0) / 2)
    assert float(adversarial_loss(fake)) == pytest.approx((1.5 + 4.0) / 2)
    assert float(feature_loss(real, fake)) == pytest.approx((0.5 / 2.0 + 0.0) / 2, rel=1e-5)
    assert float(feature_loss(real, real)) == 0.0


def test_features_pull_on_the_fake_side_alone(small: Discriminator) -> None:
    real, fake = (example_audio(1, 2000, 24_000, seed).requires_grad_() for seed in (0, 1))
    feature_loss(small(real), small(fake)).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


@pytest.mark.parametrize("level", [0.0, 1.0, 1e4])
def test_gradients_are_finite_on_silence_and_on_clipping(small: Discriminator, level: float) -> None:
    real = torch.zeros(1, 2000)
    fake = (level * example_audio(1, 2000, 24_000)).clamp(-1, 1).requires_grad_()
    judged, other = small(real), small(fake)
    (discriminator_loss(judged, other) + adversarial_loss(other) + feature_loss(judged, other)).backward()
    assert torch.isfinite(fake.grad).all()  # type: ignore[arg-type]
    assert all(torch.isfinite(value.grad).all() for value in small.parameters())


def test_it_learns_to_tell_speech_like_sound_from_noise(small: Discriminator) -> None:
    optimiser = torch.optim.Adam(small.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(40):
        real, fake = example_audio(2, 2000, 24_000, step), 0.2 * torch.randn(2, 2000, generator=generator)
        loss = discriminator_loss(small(real), small(fake))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(2.0, abs=0.2)  # it knows nothing: max(0, 1 − 0) + max(0, 1 + 0)
    assert losses[-1] < 0.7
