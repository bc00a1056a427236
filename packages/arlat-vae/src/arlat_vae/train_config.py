"""Settings of `arlat vae train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from arlat_core.config import Config as BaseConfig
from pydantic import Field, model_validator

from arlat_vae.ar_losses import ARConfig
from arlat_vae.bottleneck import BottleneckConfig
from arlat_vae.crops import CropConfig
from arlat_vae.discriminator import Config as JudgeConfig
from arlat_vae.probe import ProbeConfig
from arlat_vae.teacher import TeacherConfig

JUDGED = ("adversarial", "feature")  # losses that ask the discriminator


class Data(BaseConfig):
    """What to train on."""

    audio_dir: Path
    """A folder of speech; its train split is trained on, its eval split is listened to."""
    speaker_pattern: str | None = None
    """Regular expression with the group `speaker`, as in `arlat data extract`."""
    crop: CropConfig = CropConfig()
    """What a training crop is."""


class LossConfig(BaseConfig):
    """Weights by the names that the metrics have; 0 leaves a loss out."""

    waveform: float = Field(default=1.0, ge=0)
    """Mean absolute difference of samples."""
    stft: float = Field(default=1.0, ge=0)
    """Multi-resolution STFT."""
    mel: float = Field(default=1.0, ge=0)
    """Multi-scale log-mel."""
    adversarial: float = Field(default=0.0, ge=0)
    """The discriminator's hinge."""
    feature: float = Field(default=0.0, ge=0)
    """Feature matching on the discriminator."""
    kl: float = Field(default=0.01, ge=0)
    """β, on the KL averaged over batch, time and dimension."""
    kl_warmup_steps: int = Field(default=0, ge=0)
    """Steps in which β grows linearly to its value."""
    adversarial_start: int = Field(default=0, ge=0)
    """Step from which the discriminator is trained and asked."""
    distill: float = Field(default=0.0, ge=0)
    """How far the latents' linear image is from the teacher's features: 1 − cosine."""
    balanced: bool = False
    """Whether the weights of what is measured on the audio are shares of its gradient."""
    balanced_norm: float = Field(default=10.0, gt=0)
    """Norm of an item's balanced gradient, times the batch. β is relative to it; 10 is about what the default sum has.
    EnCodec's and AudioCraft's convention is the batch size."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(self.on_audio().values()):
            raise ValueError(f"every loss on the audio has weight 0; give one of {', '.join(self.on_audio())} a weight")
        if self.adversarial_start > 0 and not any(self.at(0).values()):
            raise ValueError(
                f"before step {self.adversarial_start} (adversarial_start) every loss on the audio has weight 0; give waveform, "
                "stft or mel a weight"
            )
        return self

    def on_audio(self) -> dict[str, float]:
        """The weights of what is measured on the audio."""
        return {name: getattr(self, name) for name in ("waveform", "stft", "mel", *JUDGED)}

    def at(self, step: int) -> dict[str, float]:
        """Those of `on_audio` that count in a step."""
        return {
            name: weight if name not in JUDGED or step >= self.adversarial_start else 0.0
            for name, weight in self.on_audio().items()
        }

    def beta(self, step: int) -> float:
        """β in a step: linear up to its value."""
        return self.kl * min(1.0, (step + 1) / (self.kl_warmup_steps + 1))


class OptimiserConfig(BaseConfig):
    """AdamW with linear warm-up and a cosine to 0."""

    steps: int = Field(default=1000, gt=0)
    """Steps in all."""
    batch: int = Field(default=8, gt=0)
    """Crops in a step, of all processes together."""
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.8, 0.99)
    """Decay of the moments."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's decoupled weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is kept; less in the first steps."""


class TrainingConfig(BaseConfig):
    """Settings that every VAE's training has."""

    out: Path
    """Run directory: the same command goes on with a killed run there."""
    ar: ARConfig = ARConfig()
    """Losses that make latents easy to predict, as `ar.pred.weight=0.1`."""
    train: OptimiserConfig = OptimiserConfig()
    """The optimiser."""
    log_every: int = Field(default=10, gt=0)
    """Steps between two rows of metrics.jsonl."""
    save_every: int = Field(default=200, gt=0)
    """Steps between two states on disk, and between two looks at held-out speakers."""
    held_out_crops: int = Field(default=16, gt=1)
    """Crops of held-out speakers that are looked at."""
    probe: ProbeConfig = ProbeConfig()
    """The judge of the finished latents."""
    seed: int = Field(default=0, ge=0)
    """Seed of the split, the weights, the crops and the noise."""
    device: str = "cpu"
    """Where to train; under torchrun each process takes the GPU of its rank."""


def require_reach(ar: ARConfig, frames: int, key: str) -> None:
    """Raises ValueError where crops of `frames` frames, set by `key`, are too short for the AR losses."""
    if frames < ar.frames():
        raise ValueError(
            f"the AR losses need crops of {ar.frames()} frames (the predictor's window and what follows it), but {key} is {frames}; "
            "give longer crops, or a smaller ar.predictor.window_frames"
        )


class Config(TrainingConfig):
    """Settings of `arlat vae train`."""

    data: Data
    """What to train on."""
    size: Literal["tiny", "small", "base"] = "tiny"
    """tiny (0.4 M weights) for a CPU, small (11 M), base (98 M)."""
    bottleneck: BottleneckConfig = BottleneckConfig()
    """The law of a latent frame."""
    loss: LossConfig = LossConfig()
    """Weights of the losses."""
    judge: JudgeConfig = JudgeConfig()
    """Shape of the discriminator, where `loss.adversarial` or `loss.feature` is above 0."""
    teacher: TeacherConfig = TeacherConfig()
    """Whose features the latents should tell of, where `loss.distill` is above 0."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; losses and weights stay float32."""
    compile: bool = False
    """Whether torch.compile makes one program of the model."""
    sample_crops: int = Field(default=4, ge=0)
    """The first of the held-out crops that are written as audio and pictures at every look."""
    probe_utterances: int = Field(default=200, gt=0)
    """Utterances at most, of training and of held-out speakers, that the probe is given, evenly spaced."""

    @model_validator(mode="after")
    def _reaches(self) -> Self:
        require_reach(self.ar, self.data.crop.frames, "data.crop.frames")
        return self
