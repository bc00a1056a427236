"""A VAE of arlat as a codec: the posterior mean in, the decoder out, causal."""

from __future__ import annotations

from pathlib import Path

import torch
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError
from arlat_core.types import LatentSpec, fingerprint
from torch import Tensor

from arlat_vae import checkpoint
from arlat_vae.checkpoint import UNKNOWN, Training
from arlat_vae.model import VAE

SHIPPED = Path(__file__).parents[1] / "shipped"  # trained VAEs, each a folder with a model card


class Config(BaseConfig):
    """`vae:speech-tiny`, or `vae=FOLDER` with what `arlat vae train` made (RUN/vae) and options of what it is expected to be."""

    what: str = ""
    """Without a folder: which of the trained VAEs that come with arlat-vae. With one: its expected dimension; any by default."""
    beta: float | None = None
    """Weight of the KL that it is expected to have been trained with."""
    ar_loss: str = ""
    """AR losses that it is expected to have been trained with."""
    folder: Path | None = None
    """Holds vae.json and vae.safetensors."""


class VAECodec:
    """A VAE without its noise."""

    def __init__(self, model: VAE, device: str = "cpu", training: Training = UNKNOWN, name: str = "") -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        config = model.config
        self._spec = LatentSpec(
            codec=f"vae:{name or config.bottleneck.dim}{training.options()}",
            space="posterior mean",
            dim=config.bottleneck.dim,
            frame_rate=config.frame_rate,
            sample_rate=config.sample_rate,
            fingerprint=fingerprint({"vae": 1, **config.model_dump(mode="json")}, model.state_dict()),
            causal=True,
        )

    @property
    def spec(self) -> LatentSpec:
        """The VAE's rates and dimension, and the hash of its weights."""
        return self._spec

    def frames(self, samples: int) -> int:
        """⌈samples / hop⌉."""
        return -(-samples // self.model.config.hop)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """[b n] -> posterior means [b t d]."""
        return self.model.encode(audio.to(self._device, torch.float32)).mean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[b t d] -> [b t·hop] in [-1, 1]."""
        return self.model.decode(latents.to(self._device, torch.float32)).clamp(-1.0, 1.0)


def shipped() -> list[str]:
    """Names of the trained VAEs that come with arlat-vae."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/vae.json"))


def build(config: Config, device: str) -> VAECodec:
    """Reads the folder that training wrote, or the one that is shipped under the name."""
    if config.folder is None and config.what not in shipped():
        raise UserError(
            f"The codec vae takes a folder that `arlat vae train` wrote, vae=RUN/vae, or the name of a VAE that comes with arlat-vae "
            f"({', '.join(f'vae:{name}' for name in shipped())}); it was given {config.what or 'neither'!r}."
        )
    folder = SHIPPED / config.what if config.folder is None else config.folder
    model, training = checkpoint.load(folder)
    name = config.what if config.folder is None else ""
    dim = None if name or not config.what else int(config.what) if config.what.isdecimal() else config.what
    expected = {"dim": dim, "beta": config.beta, "ar_loss": config.ar_loss}
    checkpoint.require(expected, model.config.bottleneck.dim, training, folder)
    return VAECodec(model, device, training, name)
