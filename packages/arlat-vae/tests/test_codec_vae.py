"""A VAE as a codec: the contract, the registry, a folder that comes back as it was, and broken folders."""

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
from arlat_vae.codecs.vae import SHIPPED, VAECodec, shipped
from arlat_vae.model import VAE, Config, build, sized


@pytest.mark.parametrize("kind", ["gaussian", "sigma", "plain"])
def test_contract(small: Config, kind: str) -> None:
    config = small.model_copy(update={"bottleneck": BottleneckConfig(kind=kind, dim=3)})
    check_codec(VAECodec(build(config, torch.Generator().manual_seed(0))))


def test_contract_of_a_real_size() -> None:
    check_codec(VAECodec(build(sized("tiny"), torch.Generator().manual_seed(0))))


def test_a_folder_comes_back_through_the_registry(vae: VAE, tmp_path: Path) -> None:
    checkpoint.save(vae, tmp_path / "vae")
    codec = build_codec(f"vae={tmp_path / 'vae'}")
    audio = example_audio(2, 500, 2400)
    z = codec.encode(audio)
    with torch.no_grad():
        torch.testing.assert_close(z, vae.encode(audio).mean)
        torch.testing.assert_close(codec.decode(z), vae.decode(z))
    direct = VAECodec(vae)
    assert torch.equal(z, direct.encode(audio))
    assert torch.equal(codec.decode(z), direct.decode(z))
    assert (codec.spec.codec, codec.spec.dim, codec.spec.frame_rate, codec.spec.sample_rate) == ("vae:3", 3, 100, 2400)
    assert codec.spec == direct.spec
    assert build_codec(f"vae:3={tmp_path / 'vae'}").spec == codec.spec
    assert build_codec(f"stack:2|vae={tmp_path / 'vae'}").spec.dim == 6


def test_what_a_vae_was_trained_for_is_in_its_name(vae: VAE, tmp_path: Path) -> None:
    checkpoint.save(vae, tmp_path, Training(beta=0.01, ar_loss="both"))
    name = build_codec(f"vae={tmp_path}").spec.codec
    assert name == "vae:3,beta=0.01,ar_loss=both"
    assert build_codec(f"{name}={tmp_path}").spec.codec == name
    with pytest.raises(UserError, match=r"beta 0\.01, not 0\.1, ar_loss 'both', not 'pred'"):
        build_codec(f"vae:3,beta=0.1,ar_loss=pred={tmp_path}")


def test_a_trained_vae_comes_with_the_package() -> None:
    assert shipped() == ["speech-tiny"]
    codec = build_codec("vae:speech-tiny")
    check_codec(codec)
    assert (codec.spec.dim, codec.spec.frame_rate, codec.spec.sample_rate) == (32, 12.5, 24_000)
    assert codec.spec.codec == "vae:speech-tiny,beta=0.01,ar_loss=none"
    assert build_codec(codec.spec.codec).spec == codec.spec
    files = {path.name: path.stat().st_size for path in (SHIPPED / "speech-tiny").iterdir()}
    assert set(files) == {"README.md", "vae.json", "vae.safetensors"}
    assert sum(files.values()) < 12e6
    with pytest.raises(UserError, match=r"vae:speech-tiny\); it was given 'speech-huge'"):
        build_codec("vae:speech-huge")


def test_what_is_decoded_stays_in_range(vae: VAE) -> None:
    with torch.no_grad():
        assert vae.decode(torch.full((1, 4, 3), 1e4)).abs().max() > 1
    assert VAECodec(vae).decode(torch.full((1, 4, 3), 1e4)).abs().max() == 1


def test_the_fingerprint_knows_the_weights(vae: VAE) -> None:
    before = VAECodec(vae).spec.fingerprint
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-6
    assert VAECodec(vae).spec.fingerprint != before


def test_broken_folders_are_named(vae: VAE, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no vae.json"):
        checkpoint.load(tmp_path)
    checkpoint.save(vae, tmp_path)
    with pytest.raises(UserError, match="dim 3, not 32"):
        build_codec(f"vae:32={tmp_path}")
    data = bytearray((tmp_path / "vae.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "vae.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="not the file that was written"):
        checkpoint.load(tmp_path)
    text = (tmp_path / "vae.json").read_text()
    (tmp_path / "vae.json").write_text(text.replace("arlat-vae/1", "arlat-vae/0"))
    with pytest.raises(UserError, match="'arlat-vae/0', not 'arlat-vae/1'"):
        checkpoint.load(tmp_path)
    (tmp_path / "vae.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        checkpoint.load(tmp_path)
