"""One step's way through the VAE in one call, which is what DDP and torch.compile wrap."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from arlat_vae.bottleneck import Posterior
from arlat_vae.discriminator import Discriminator, discriminator_loss
from arlat_vae.model import VAE
from arlat_vae.teacher import distillation_loss


class Reconstructed(NamedTuple):
    """The laws of the frames, the draw z [b t d] of them, what it decodes to [b n] in float32, and the distillation loss or 0."""

    law: Posterior
    z: Tensor
    audio: Tensor
    distill: Tensor


class Reconstruction(nn.Module):
    """Audio to latents and back; the posterior mean goes on to the teacher's features by a learned map, where there is one."""

    def __init__(self, model: VAE, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, audio: Tensor, noise: Tensor, features: Tensor | None = None) -> Reconstructed:
        """Audio [b n], whose draw is mean + σ ⊙ noise [b t d], and the teacher's features [b t F]."""
        law = self.model.encode(audio)
        z = law.draw(noise)
        distill = audio.new_zeros(())
        if self.projection is not None and features is not None:
            distill = distillation_loss(self.projection(law.mean), features)
        return Reconstructed(law, z, self.model.decode(z).float(), distill)


class Judging(nn.Module):
    """What the discriminator is trained on."""

    def __init__(self, judge: Discriminator) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, audio: Tensor, decoded: Tensor) -> Tensor:
        """Real and decoded audio [b n], the latter without gradient, to the discriminator's loss."""
        return discriminator_loss(self.judge(audio), self.judge(decoded))
