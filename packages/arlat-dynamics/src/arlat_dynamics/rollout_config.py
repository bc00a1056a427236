"""How a model is trained on rollouts, and what follows from it for every update."""

from __future__ import annotations

from typing import Any, Literal

import torch
from arlat_core import registry
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from pydantic import Field, model_validator

from arlat_dynamics.headed import HeadConfig
from arlat_dynamics.noise import NoiseConfig
from arlat_dynamics.route import Asked


class ModelConfig(BaseConfig):
    """A model by name, and what its own `Config` asks for; what is not given takes that one's default."""

    name: str = "mlp"
    """mlp, gru, transformer, or a model of another package."""
    width: int | None = Field(default=None, gt=0)
    """Width of the stream or of the state."""
    hidden: int | None = Field(default=None, gt=0)
    """mlp: units inside a block."""
    depth: int | None = Field(default=None, ge=0)
    """Blocks or layers."""
    heads: int | None = Field(default=None, gt=0)
    """transformer: attention heads."""
    window: int | None = Field(default=None, gt=0)
    """transformer: frames that each layer sees."""
    short_context: int | None = Field(default=None, ge=0)
    """transformer: frames of the second, clean context (0 for none)."""
    activation: str | None = None
    """mlp: silu or relu2."""
    head: HeadConfig = HeadConfig()
    """The law of a step."""

    def settings(self, dim: int, context: int) -> dict[str, Any]:
        """What the model's `build` takes.

        Raises:
            UserError: When a key is given that the model does not have.
        """
        module = registry.load("dynamics", self.name)
        given = self.model_dump(exclude={"name"}, exclude_none=True) | {"dim": dim}
        if "context" in module.Config.model_fields:
            given["context"] = context
        if odd := sorted(given.keys() - module.Config.model_fields.keys()):
            known = ", ".join(sorted(module.Config.model_fields.keys() - {"dim", "context"}))
            raise UserError(f"The model {self.name!r} has no {', '.join(odd)}. It has {known}.")
        return given


class RolloutTrainConfig(BaseConfig):
    """How a model is trained on rollouts. One step (`steps=1`, mean_nll) is plain maximum likelihood."""

    model: ModelConfig = ModelConfig()
    """What is trained."""
    context: int = Field(8, gt=0)
    """True frames w that a rollout starts from."""
    steps: int = Field(16, gt=0)
    """K, steps of a rollout."""
    objective: Literal["mean_nll", "sampled_nll", "energy", "adversarial"] = "mean_nll"
    """What a rollout is judged by."""
    draws: int = Field(4, ge=2)
    """energy: sampled rollouts of each sequence."""
    teacher_weight: float = Field(0.1, ge=0)
    """Weight of the NLL at true windows."""
    state_weight: float = Field(0.0, ge=0)
    """Weight of the squared state error in units of the squared typical step."""
    true_frames: tuple[float, float] = (0.0, 0.0)
    """Scheduled sampling: probability that the truth is put back after a step, at the first update and at the last."""
    curriculum: float = Field(0.3, ge=0, le=1)
    """Part of the updates in which the rollout grows from 1 step to K."""
    longest: float | None = Field(10.0, gt=0)
    """Steps are shortened to so many typical ones; how many were is logged."""
    noise: NoiseConfig = NoiseConfig()
    """Noise on the frames that the model sees in training."""
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate of AdamW: linear warm-up over 5 % of the updates, then a cosine to 0."""
    critic_lr: float = Field(1e-3, gt=0)
    """adversarial: learning rate of the critic."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's decoupled weight decay."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    batch: int = Field(128, gt=0)
    """Sequences in an update, over all processes."""
    updates: int = Field(1000, gt=0)
    """Updates of the weights."""
    evaluate_every: int = Field(100, gt=0)
    """Updates between two looks at the validation part, and between two states on disk."""
    validation_rows: int = Field(512, gt=1)
    """Validation sequences looked at."""
    log_every: int = Field(10, gt=0)
    """Updates between two lines of metrics.jsonl."""
    route: Asked = "auto"
    """What computes the rollouts: fused (one op for all steps), graph (a CUDA graph of the losses) or eager (step by step)."""
    bf16: bool = False
    """Whether the network computes in bfloat16; laws and losses stay in float32."""
    seed: int = 0
    """Seed of weights, validation speakers, sequences and draws."""

    @model_validator(mode="after")
    def shares(self) -> RolloutTrainConfig:
        """Probabilities are between 0 and 1."""
        if not all(0 <= share <= 1 for share in self.true_frames):
            raise ValueError(f"true_frames holds probabilities from 0 to 1, not {self.true_frames}")
        return self

    def with_steps(self, steps: int, seed: int) -> RolloutTrainConfig:
        """The same for another K, with `seed` where this has none of its own."""
        return self.model_copy(update={"steps": steps, "seed": self.seed or seed})


def rollout_steps(config: RolloutTrainConfig, update: int) -> int:
    """Steps of the rollout in an update (1 …): they grow linearly from 1 to K over the curriculum's part of the updates."""
    grown = config.curriculum * config.updates
    return config.steps if update > grown else max(1, -(-config.steps * update // max(1, int(grown))))


def true_share(config: RolloutTrainConfig, update: int) -> float:
    """Probability of a true frame after a step, in an update."""
    begin, end = config.true_frames
    return begin + (end - begin) * (update - 1) / max(1, config.updates - 1)


def stream(seed: int, update: int, what: int) -> torch.Generator:
    """The generator of one purpose in one update: a function of its arguments alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + update) * 8 + what)
