"""What makes latents z [b t d] easy to predict: L_smooth, L_pred, L_noise, L_rollout and L_jacobian, each with its weight.

They are taken of the posterior mean, which is what a codec gives, or of the draw by option. All but the plain form of
L_smooth are unchanged by z → a·z + c, so that no loss is won by shrinking z. docs/metrics.md has the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from arlat_core.config import Config as BaseConfig
from pydantic import Field
from torch import Tensor

from arlat_vae.predictor import (
    TINY,
    Predictor,
    PredictorConfig,
    Standardised,
    build_predictor,
    contexts,
    mean_reversion,
    standardise,
    surprise,
)
from arlat_vae.steering import Multipliers, SteeringConfig, Term

NAMES = ("smooth", "pred", "noise", "rollout", "jacobian")
Decode = Callable[[Tensor], Tensor]


class ARConfig(BaseConfig):
    """The AR losses; all are off by default."""

    smooth: Term = Term()
    """L_smooth, the size of a step."""
    smooth_form: Literal["scale_free", "plain"] = "scale_free"
    """Whether the step is taken over the variance of z (scale_free), which shrinking z does not lower, or as it is (plain)."""
    pred: Term = Term()
    """L_pred, the surprise of a light predictor that is trained along."""
    pred_form: Literal["step", "frame"] = "step"
    """What the surprise of L_pred and L_noise is measured in: the typical step, or the latents' deviation. Steps grow where latents
    alternate, so the former is won by z_t ≈ −z_{t−1}."""
    noise: Term = Term()
    """L_noise, its surprise where its window has noise."""
    noise_level: float = Field(default=0.1, gt=0, le=1)
    """Highest part k of the window's variance that is noise; each sequence draws its own from 0 to this."""
    rollout: Term = Term()
    """L_rollout, the error of its mean rollout."""
    rollout_steps: int = Field(default=4, gt=0)
    """K, the steps of that rollout."""
    jacobian: Term = Term()
    """L_jacobian, how far the decoded audio moves with the latents."""
    jacobian_step: float = Field(default=0.01, gt=0)
    """Finite difference for L_jacobian, in standard deviations of z."""
    latent: Literal["mean", "sample"] = "mean"
    """The posterior mean, which is what the codec gives, or the draw that is decoded."""
    predictor: PredictorConfig = PredictorConfig()
    """The predictor that is trained along, where a loss asks it; L_smooth leaves out its first window too."""
    steering: SteeringConfig = SteeringConfig()
    """How fast weights move that have a target."""

    def terms(self) -> dict[str, Term]:
        """The losses that have a weight."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name).weight > 0}

    def asks(self) -> bool:
        """Whether a loss needs the predictor."""
        return any(name in self.terms() for name in ("pred", "noise", "rollout"))

    def frames(self) -> int:
        """Frames that a crop must have."""
        ahead = self.rollout_steps if "rollout" in self.terms() else 1
        return self.predictor.window_frames + ahead if self.asks() or "smooth" in self.terms() else 2

    def label(self) -> str:
        """The name of the condition: none, smooth, pred, both (smooth and pred), or the losses joined by +; pred-frame in that form."""
        form = {"pred": "pred-frame", "noise": "noise-frame"} if self.pred_form == "frame" else {}
        names = [form.get(name, name) for name in self.terms()]
        return {"": "none", "smooth+pred": "both"}.get("+".join(names), "+".join(names))


def smoothness(z: Tensor, window_frames: int, form: Literal["scale_free", "plain"] = "scale_free") -> Tensor:
    """L_smooth = E‖z_t − z_{t−1}‖² / E‖z_t − Ez‖² over frames t ≥ W, 2 for white noise; or its numerator alone.

    The frames before W are left out as in `standardise`: an encoder that sees silence before the crop could else win by large
    latents that die away at the beginning of every crop, which are variance and hardly a step.
    """
    z = z.float()
    told = z[:, window_frames:]
    step = (told - z[:, window_frames - 1 : -1]).square().sum(-1).mean()
    return step if form == "plain" else step / ((told - told.mean((0, 1))).square().sum(-1).mean() + TINY)


def noised(y: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """√(1 − k)·y + √k·ε, k uniform in [0, level] for each sequence of y [b t d].

    Source: Rouard et al., 2025, "Continuous audio language models".
    """
    k = level * torch.rand(len(y), 1, 1, generator=generator)
    noise = torch.randn(y.shape, generator=generator)
    return (1 - k).sqrt().to(y) * y + (k.sqrt() * noise).to(y)


def rollout_error(predictor: Predictor, latents: Standardised, steps: int) -> Tensor:
    """L_rollout: squared error of ŷ_{t+1} = ŷ_t + s·δ̂, δ̂ the law's deterministic step, from every window.

    Mean over `steps` steps, starts and dimensions; a forecast of the mean has 1.
    """
    width = predictor.window_frames
    count = latents.y.shape[1] - width - steps + 1
    window = contexts(latents.y, width)[:, :count]
    errors = []
    for ahead in range(steps):
        state = window[..., -1, :] + latents.unit * predictor(window).point()
        errors.append((state - latents.y[:, width + ahead : width + ahead + count]).square().mean())
        window = torch.cat([window[..., 1:, :], state[..., None, :]], -2)
    return torch.stack(errors).mean()


def directional(decode: Decode, z: Tensor, direction: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """J·direction by a central difference, J = ∂decode/∂z at z [b t d], and what is decoded there, up to O(step²)."""
    after, before = decode(z + step * direction), decode(z - step * direction)
    return (after - before) / (2 * step), (after + before) / 2


def jacobian(decode: Decode, z: Tensor, step: float, generator: torch.Generator) -> Tensor:
    """L_jacobian = E‖J·diag(σ)·v‖² / Var x̂ = ‖J·diag(σ)‖²_F / Var x̂, v ~ N(0, I), J of the decoder, σ the latents' deviations.

    It is 1 for a linear decoder of independent dimensions, and by Poincaré's inequality never less for Gaussian ones: what lies
    above is how much the decoder bends. The decoder's map is the one that carries a predicted latent's error into sound.
    """
    z = z.float()
    noise = torch.randn(z.shape, generator=generator).to(z)
    deviation = (z.var((0, 1), correction=0) + TINY).sqrt()
    moved, decoded = directional(decode, z, deviation * noise, step)
    variance = (decoded - decoded.mean((0, 1))).square().mean()
    return moved.square().mean() / (variance + TINY)


@dataclass
class ARState:
    """What the AR losses carry from step to step: the predictor with its optimiser, and the steered weights."""

    predictor: Predictor | None = None
    optimiser: torch.optim.Optimizer | None = None
    multipliers: Multipliers = field(default_factory=Multipliers)

    def models(self) -> dict[str, torch.nn.Module]:
        """The modules by name."""
        return {} if self.predictor is None else {"predictor": self.predictor}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name."""
        return {} if self.optimiser is None else {"predictor_optimiser": self.optimiser}

    def about(self) -> dict[str, Any]:
        """What of it is no tensor; nothing where nothing is steered."""
        if not self.multipliers.log:
            return {}
        return {"multipliers": {"log": dict(self.multipliers.log), "average": dict(self.multipliers.average)}}


def start(dim: int, config: ARConfig, generator: torch.Generator, device: str = "cpu") -> ARState:
    """The untrained state for latents of `dim` dimensions; no draw is taken where no loss asks a predictor."""
    if not config.asks():
        return ARState()
    predictor = build_predictor(dim, config.predictor, generator).to(device)
    return ARState(predictor, torch.optim.AdamW(predictor.parameters(), config.predictor.lr))


def surprises(predictor: Predictor, latents: Standardised, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean surprise in nats per dimension after each of the sequences that are `seen`, in units of the typical step."""
    return {name: surprise(predictor, y, latents).mean() / y.shape[-1] for name, y in seen.items()}


def unit_surprise(latents: Standardised, form: Literal["step", "frame"]) -> Tensor:
    """What a surprise in units of the typical step has more in this form: nothing, or mean_d ln s_d, the step in deviations."""
    return latents.unit.log().mean() if form == "frame" else latents.unit.new_zeros(())


def fit(state: ARState, latents: Standardised, seen: Mapping[str, Tensor]) -> None:
    """One step of the predictor on what the losses will ask; none where the gradient is not finite. It is never trained on rollouts."""
    if state.predictor is None or state.optimiser is None:
        return
    parameters = list(state.predictor.parameters())
    fixed = replace(latents, y=latents.y.detach(), unit=latents.unit.detach())
    values = surprises(state.predictor, fixed, {name: y.detach() for name, y in seen.items()})
    total = torch.stack(list(values.values())).sum()
    gradients = torch.autograd.grad(total, parameters)
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    state.optimiser.step()


def ar_losses(
    state: ARState,
    z: Tensor,
    decode: Decode,
    config: ARConfig,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float]]:
    """The AR losses of z [b t d] with gradients, their weights, and what else there is to log.

    The predictor takes a step on these latents first and is then held fixed, so that the gradients are the latents' (and the
    decoder's); steered weights move after they are read. Several processes all give the latents of the whole batch (`Ranks.gather`), so that
    their predictors and steered weights stay the same.
    """
    terms = config.terms()
    if not terms:
        return {}, {}, {}
    values: dict[str, Tensor] = {}
    shown: dict[str, float] = {}
    if "smooth" in terms:
        values["smooth"] = smoothness(z, config.predictor.window_frames, config.smooth_form)
    if state.predictor is not None:
        latents = standardise(z, state.predictor.window_frames)
        seen = {"pred": latents.y}
        if "noise" in terms:
            seen["noise"] = noised(latents.y, config.noise_level, generator)
        fit(state, latents, seen)
        state.predictor.requires_grad_(False)
        more = unit_surprise(latents, config.pred_form)
        asked = {name: value + more for name, value in surprises(state.predictor, latents, seen).items()}
        if "rollout" in terms:
            asked["rollout"] = rollout_error(state.predictor, latents, config.rollout_steps)
        state.predictor.requires_grad_(True)
        values |= {name: value for name, value in asked.items() if name in terms}
        shown = {"pred": float(asked["pred"].detach()), "pred_floor": float((mean_reversion(latents) + more).detach())}
    if "jacobian" in terms:
        values["jacobian"] = jacobian(decode, z, config.jacobian_step, generator)
    found = {name: float(value.detach()) for name, value in values.items()}
    weights = {name: state.multipliers.weight(name, term) for name, term in terms.items()}
    steered = {f"{name}_multiplier": weights[name] for name, term in terms.items() if term.target is not None}
    state.multipliers = state.multipliers.updated(found, terms, config.steering)
    return values, weights, shown | found | steered
