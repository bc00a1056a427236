"""A VAE of stored latents: the codec's contract, units, and folders that come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.testing import check_codec
from arlat_core.testing.codec import example_audio
from arlat_data.codecs import build_codec
from arlat_vae import checkpoint
from arlat_vae.bottleneck import BottleneckConfig
from arlat_vae.checkpoint import Training
from arlat_vae.codecs.inner import Inner
from arlat_vae.codecs.vae import VAECodec
from arlat_vae.inner import Config, InnerVAE, build
from arlat_vae.model import VAE

TEXT = "pool:4|mel:bins=16"
MEAN, DEVIATION = torch.linspace(-3, 3, 16), torch.linspace(0.5, 2, 16)


@pytest.fixture
def model() -> InnerVAE:
    shape = {"width": 16, "layers": 1, "heads": 2, "window_frames": 4, "layer_scale": 0.5}
    config = Config(inner=build_codec(TEXT).spec, bottleneck=BottleneckConfig(dim=3), **shape)  # type: ignore[arg-type]
    return build(config, MEAN, DEVIATION, torch.Generator().manual_seed(0)).eval()


def test_contract(vae: VAE) -> None:
    """Around a decoder that is continuous: mel's phases blow rounding up."""
    outer = VAECodec(vae)
    config = Config(inner=outer.spec, width=16, layers=1, heads=2, window_frames=4, bottleneck=BottleneckConfig(dim=2))
    inner = build(config, torch.zeros(3), torch.full((3,), 0.1), torch.Generator().manual_seed(0))
    check_codec(Inner(outer, inner))


def test_latents_come_and_go_in_the_store_s_units(model: InnerVAE) -> None:
    x = MEAN + DEVIATION * torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    assert float(model.error(x, MEAN.expand_as(x))) == pytest.approx(float(((x - MEAN) / DEVIATION).square().mean()))
    with torch.no_grad():
        z = model.encode(x).mean
        model.mean.add_(1)
        torch.testing.assert_close(model.encode(x + 1).mean, z)
        model.deviation.mul_(2)
        torch.testing.assert_close(model.encode(model.mean + 2 * (x - MEAN)).mean, z, rtol=1e-4, atol=1e-5)


def test_the_future_does_not_change_the_past(model: InnerVAE) -> None:
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    other = torch.cat([x[:, :4], x[:, 4:] + 1], 1)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(other).mean[:, :4], model.encode(x).mean[:, :4])
        assert not torch.equal(model.encode(other).mean[:, 4], model.encode(x).mean[:, 4])


def test_a_folder_comes_back_through_the_registry(model: InnerVAE, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path, Training(beta=0.1, ar_loss="pred"), "inner")
    codec = build_codec(f"inner={tmp_path}")
    assert codec.spec.codec == f"inner:3,beta=0.1,ar_loss=pred|{TEXT}"
    assert (codec.spec.dim, codec.spec.frame_rate) == (3, build_codec(TEXT).spec.frame_rate)
    assert build_codec(f"inner:3,beta=0.1,ar_loss=pred={tmp_path}|{TEXT}").spec == codec.spec
    audio = example_audio(1, 9000, codec.spec.sample_rate)
    with torch.no_grad():
        z = model.encode(build_codec(TEXT).encode(audio)).mean
        torch.testing.assert_close(codec.encode(audio), z)
        torch.testing.assert_close(codec.decode(z), build_codec(TEXT).decode(model.decode(z)))
    with pytest.raises(UserError, match="was made for other latents"):
        build_codec(f"inner={tmp_path}|mel")
    with pytest.raises(UserError, match="dim 3, not 4"):
        build_codec(f"inner:4={tmp_path}")
    with pytest.raises(UserError, match=r"no vae\.json"):
        checkpoint.load(tmp_path)


def test_without_layers_it_sees_one_frame_alone(model: InnerVAE) -> None:
    config = Config.model_validate(model.config.model_dump() | {"layers": 0})
    alone = build(config, MEAN, DEVIATION, torch.Generator().manual_seed(0))
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = alone.encode(x).mean
        torch.testing.assert_close(alone.encode(x[:, 4:5]).mean, z[:, 4:5])
        torch.testing.assert_close(alone.decode(z[:, 4:5]), alone.decode(z)[:, 4:5])
        assert not torch.allclose(model.encode(x[:, 4:5]).mean, model.encode(x).mean[:, 4:5], atol=1e-4)
