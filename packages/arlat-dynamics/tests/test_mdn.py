"""The mixture density network: never worse than the VAR, better where the VAR cannot be right."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from arlat_core.distributions import DiagonalGaussian
from arlat_core.heads import LOG_SCALE_RANGE, soft_bound
from arlat_core.testing import check_dynamics
from arlat_data.windows import Windows
from arlat_dynamics.mixture import fit_mixture
from arlat_dynamics.models.linear import fit_linear
from arlat_dynamics.models.mdn import ResidualMixture
from arlat_dynamics.train import TrainConfig, batch_rows, fit, split_speakers, validation_nll
from torch import Tensor

Ar1 = Callable[[float, int, int, int, int], Tensor]
Cut = Callable[..., Windows]
QUICK = TrainConfig(max_steps=60, evaluate_every=20)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(windows: Windows, config: TrainConfig = QUICK, components: int = 4) -> tuple[ResidualMixture, float]:
    """A fitted network, and its gain over its VAR on the validation part."""
    rows = split_speakers(windows, 0)
    linear = fit_linear(windows, *rows)
    model = ResidualMixture.start(linear, windows, *rows, components, seeded(0), width=32)
    fit(model, windows, *rows, config, seeded(1))
    gain = validation_nll(linear, windows, rows[1]) - validation_nll(model, windows, rows[1])
    return model, float(gain.mean())


def walk(frames: int, seed: int) -> Tensor:
    """A walk whose steps are (+1, 0) or (−1, 0), with a little noise, [20 t 2]."""
    sign = torch.randint(0, 2, (20, frames, 1), generator=seeded(seed)) * 2.0 - 1
    noise = 0.1 * torch.randn(20, frames, 2, generator=seeded(seed + 1))
    return (sign * torch.tensor([1.0, 0.0]) + noise).cumsum(1)


def test_white_noise_leaves_the_start(ar1: Ar1, cut_windows: Cut) -> None:
    model, gain = trained(cut_windows(ar1(0.0, 40, 100, 16, 0)))
    assert abs(gain) < 1e-3
    batch = cut_windows(ar1(0.0, 20, 100, 16, 1)).all()
    with torch.no_grad():
        nll = -model.distribution(batch.context).log_prob(batch.target).mean()
    expected = 8 * (math.log(2 * math.pi)) + 0.5 * float(batch.future.square().sum(-1).mean())
    assert float(nll) == pytest.approx(expected, abs=0.02)


def test_bimodal_steps_beat_the_gaussian(cut_windows: Cut) -> None:
    model, gain = trained(cut_windows(walk(120, 0)))
    # ½ log(2πe·1.01) of one Gaussian against log 2 + ½ log(2πe·0.01) of two.
    assert gain == pytest.approx(0.5 * math.log(101) - math.log(2), abs=0.1)
    batch = cut_windows(walk(120, 5)).all()
    with torch.no_grad():
        law = model.distribution(batch.context)
        true = (
            torch.logsumexp(
                torch.stack(
                    [-50 * (batch.target - torch.tensor([sign, 0.0])).square().sum(-1) for sign in (-1.0, 1.0)]
                ),
                0,
            )
            - math.log(2)
            - math.log(2 * math.pi * 0.01)
        )
        assert float((true - law.log_prob(batch.target)).mean()) < 0.15
        assert (
            float((law.point()[:, 0].abs() - 1).abs().mean()) < 0.1
        )  # a step of the likelier kind, not the mean of both


def test_scale_that_depends_on_the_window_is_learnt(cut_windows: Cut) -> None:
    noise = torch.randn(40, 150, 2, generator=seeded(0))
    z = torch.zeros_like(noise)
    for t in range(1, 150):  # loud after positive frames, quiet after negative ones: the mean is always 0
        z[:, t] = noise[:, t] * torch.where(z[:, t - 1, :1] > 0, 3.0, 0.3)
    _, gain = trained(cut_windows(z), TrainConfig(max_steps=200, evaluate_every=20, max_epochs=100))
    assert gain > 0.5


def test_start_equals_the_var(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 20, 100, 16, 0))
    rows = split_speakers(windows, 0)
    linear = fit_linear(windows, *rows)
    model = ResidualMixture.start(linear, windows, *rows, 8, seeded(0))
    batch = windows.gather(rows[1])
    with torch.no_grad():
        a, b = linear.distribution(batch.context), model.distribution(batch.context)
        assert float((a.log_prob(batch.target) - b.log_prob(batch.target)).mean()) == pytest.approx(0, abs=0.01)
        assert torch.allclose(a.mean(), b.mean(), atol=1e-4)
        assert (a.point() - b.point()).abs().max() < 0.1
    assert model.saturated_fraction(batch.context) == 0


def test_contract(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 20, 60, 4, 0))
    rows = split_speakers(windows, 0)
    model = ResidualMixture.start(fit_linear(windows, *rows), windows, *rows, 3, seeded(0), width=16)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3, generator=seeded(2))
    check_dynamics(model)


def test_soft_bound_never_dies() -> None:
    raw = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    value = soft_bound(raw)
    assert value.abs().max() < LOG_SCALE_RANGE
    (slope,) = torch.autograd.grad(value.sum(), raw)
    assert (slope > 1e-7).all()


def test_saturation_is_counted(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 20, 60, 4, 0))
    rows = split_speakers(windows, 0)
    model = ResidualMixture.start(fit_linear(windows, *rows), windows, *rows, 4, seeded(0), width=16)
    with torch.no_grad():
        model.raw_log_scale[0] = -1e3
    assert model.saturated_fraction(windows.gather(rows[1]).context) == pytest.approx(0.25)


def test_unconditional_mixture() -> None:
    side = torch.randint(0, 2, (4000, 1), generator=seeded(1)) * torch.tensor([4.0, 0.0, 0.0])
    x = torch.randn(4000, 3, generator=seeded(0)) + side
    law = fit_mixture(x[:3000], x[3000:], 4, seeded(2))
    each = torch.stack([-0.5 * (x[3000:] - torch.tensor([c, 0.0, 0.0])).square().sum(-1) for c in (0.0, 4.0)])
    true = torch.logsumexp(each, 0) - math.log(2) - 1.5 * math.log(2 * math.pi)
    assert float((true - law.log_prob(x[3000:])).mean()) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("dim", [2, 64])
def test_unconditional_mixture_of_gaussian_rows_is_one_gaussian(dim: int) -> None:
    x = torch.randn(3000, dim, generator=seeded(3)) * torch.logspace(-2, 2, dim) + 5
    law = fit_mixture(x[:2500], x[2500:], 8, seeded(4))
    assert isinstance(law.base, DiagonalGaussian)  # type: ignore[attr-defined]


def test_speakers_are_kept_apart(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 30, 40, 2, 0))
    fit_rows, held_out = split_speakers(windows, 3)
    assert not set(windows.speaker[fit_rows].tolist()) & set(windows.speaker[held_out].tolist())
    assert len(fit_rows) + len(held_out) == len(windows)
    assert 0.1 < len(held_out) / len(windows) < 0.25
    one = cut_windows(ar1(0.8, 30, 40, 2, 0), speakers=1)
    fit_rows, held_out = split_speakers(one, 3)
    assert not set(one.utterance[fit_rows].tolist()) & set(one.utterance[held_out].tolist())


def test_order_is_a_function_of_seed_and_step() -> None:
    rows = torch.arange(1000)
    assert torch.equal(batch_rows(rows, 32, 1, 7), batch_rows(rows, 32, 1, 7))
    assert not torch.equal(batch_rows(rows, 32, 1, 7), batch_rows(rows, 32, 1, 8))


def test_fit_repeats(cut_windows: Cut) -> None:
    first, second = (trained(cut_windows(walk(60, 0)))[0] for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_losses_that_stay_non_finite_are_reported(ar1: Ar1, cut_windows: Cut) -> None:
    windows = cut_windows(ar1(0.8, 20, 60, 4, 0))
    rows = split_speakers(windows, 0)
    model = ResidualMixture.start(fit_linear(windows, *rows), windows, *rows, 4, seeded(0), width=16)
    windows.z.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="finite"):
        fit(model, windows, *rows, QUICK, seeded(0))


def test_the_start_is_stopped_on_other_speakers_in_whatever_order_they_stand(cut_windows: Cut) -> None:
    z = walk(120, 0)
    z[-3:] = torch.randn(3, 120, 2, generator=seeded(7)).cumsum(1)  # the last speakers were recorded differently
    windows = cut_windows(z)
    speakers = torch.arange(20)
    validation = torch.isin(windows.speaker, speakers[:3])
    rows = ((~validation).nonzero()[:, 0], validation.nonzero()[:, 0])
    linear = fit_linear(windows, *rows)
    model = ResidualMixture.start(linear, windows, *rows, 4, seeded(0), width=16)
    gain = validation_nll(linear, windows, rows[1]) - validation_nll(model, windows, rows[1])
    assert float(gain.mean()) > 1.5
