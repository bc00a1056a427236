"""Mimi and EnCodec with random weights: loading, module layouts, the bridge, and parity of the two EnCodec libraries.

Nothing here says anything about the real models' quality.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.testing import check_codec
from arlat_core.testing.codec import example_audio
from arlat_data.codecs import build_codec
from arlat_data.codecs import encodec as encodec_codec
from arlat_data.codecs import mimi as mimi_codec
from arlat_data.codecs._transformers import HUB_ID
from safetensors.torch import load_file, save_file
from torch import nn

transformers = pytest.importorskip("transformers", reason="arlat-data[mimi] is not installed")


@pytest.fixture(scope="module")
def codecs() -> Path:
    folder = Path(os.environ.get("ARLAT_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder / "data/codecs"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache, and sockets that fail at once."""
    from huggingface_hub import constants

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def tiny_mimi(seed: int = 0, **options: Any) -> Any:
    """A MimiModel of 24 kHz and 12.5 Hz with random weights."""
    config = transformers.MimiConfig(
        hidden_size=24,
        num_filters=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=32,
        codebook_size=16,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        upsample_groups=24,
        sliding_window=4,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.MimiModel(config).eval()
        for name, buffer in model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.copy_(torch.randn(buffer.shape))
    return model


class OlderMimi(nn.Module):
    """The module layout of transformers before the halves were split: everything hangs on the model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        self.encoder = model.encoder.encoder_seanet
        self.encoder_transformer = model.encoder.encoder_transformer
        self.downsample = model.encoder.downsample
        self.upsample = model.decoder.upsample
        self.decoder_transformer = model.decoder.decoder_transformer
        self.decoder = model.decoder.decoder_seanet
        self.quantizer = model.quantizer


def test_mimi_contract(codecs: Path) -> None:
    codec = build_codec(f"mimi={codecs / 'mimi-tiny-random'}")
    check_codec(codec)
    assert (codec.spec.codec, codec.spec.dim, codec.spec.frame_rate, codec.spec.causal) == ("mimi", 32, 12.5, True)
    check_codec(mimi_codec.Mimi(tiny_mimi()))


def test_mimi_loads_the_weights_of_the_file(codecs: Path) -> None:
    codec = mimi_codec.build(mimi_codec.Config(folder=str(codecs / "mimi-tiny-random")), "cpu")
    file = load_file(codecs / "mimi-tiny-random/model.safetensors")
    state = mimi_codec.canonical_state(codec._parts)
    for name, tensor in file.items():
        if not name.startswith("quantizer."):
            assert torch.equal(state[name], tensor), name
    bridge = torch.stack(
        [
            file[f"quantizer.{b}_residual_vector_quantizer.output_proj.weight"][..., 0]
            @ file[f"quantizer.{b}_residual_vector_quantizer.input_proj.weight"][..., 0]
            for b in ("semantic", "acoustic")
        ]
    ).sum(0)
    z = torch.randn(1, 32, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.bridge(z), bridge @ z, atol=1e-5, rtol=0)


def test_mimi_latents_are_what_the_model_quantises() -> None:
    model = tiny_mimi()
    codec = mimi_codec.Mimi(model)
    audio = example_audio(2, 5 * 1920, 24_000)
    z = codec.encode(audio)
    torch.testing.assert_close(model.encoder(audio[:, None]).latents.transpose(1, 2), z)
    codes = model.encode(audio[:, None]).audio_codes
    assert torch.equal(model.quantizer.encode(z.transpose(1, 2)).transpose(0, 1), codes)
    sound = codec.synthesise(model.quantizer.decode(codes))
    torch.testing.assert_close(sound, model.decode(codes).audio_values[:, 0])


def test_mimi_bridge_is_the_limit_of_the_quantiser() -> None:
    """With a codebook that holds each projected latent itself, quantised decoding equals the bridge."""
    model = tiny_mimi()
    codec = mimi_codec.Mimi(model)
    z = codec.encode(example_audio(1, 5 * 1920, 24_000)).transpose(1, 2)
    for quantizer in (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    ):
        for layer in quantizer.layers:
            layer.codebook.embed_sum.zero_()
            layer.codebook._embed = None
        quantizer.layers[0].codebook.embed_sum[:5] = quantizer.input_proj(z)[0].T
    quantised = model.quantizer.decode(model.quantizer.encode(z).transpose(0, 1))
    torch.testing.assert_close(codec.bridge(z), quantised, atol=1e-5, rtol=1e-4)


def test_both_mimi_layouts_give_the_same() -> None:
    model = tiny_mimi()
    new, old = mimi_codec.Mimi(model), mimi_codec.Mimi(OlderMimi(model))
    assert new.spec == old.spec
    audio = example_audio(2, 4000, 24_000)
    z = new.encode(audio)
    assert torch.equal(z, old.encode(audio))
    assert torch.equal(new.decode(z), old.decode(z))
    assert mimi_codec.Mimi(tiny_mimi(seed=1)).spec.fingerprint != new.spec.fingerprint


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_mimi_of_some_levels_decodes_what_the_model_decodes_from_them(levels: int) -> None:
    model = tiny_mimi()
    codec, plain = mimi_codec.Mimi(model, levels=levels), mimi_codec.Mimi(model)
    audio = example_audio(2, 5 * 1920, 24_000)
    z = codec.encode(audio)
    assert torch.equal(z, plain.encode(audio))
    codes = model.encode(audio[:, None], num_quantizers=levels).audio_codes
    assert codes.shape[1] == levels
    torch.testing.assert_close(codec.decode(z), model.decode(codes).audio_values[:, 0])
    assert not torch.allclose(codec.decode(z), plain.decode(z), atol=1e-4)


def test_mimi_of_some_levels_is_a_codec_of_its_own(codecs: Path) -> None:
    folder = codecs / "mimi-tiny-random"
    codec, plain = build_codec(f"mimi:levels=3={folder}"), build_codec(f"mimi={folder}")
    check_codec(codec)
    assert codec.spec.codec == "mimi:levels=3"
    fingerprints = {build_codec(f"mimi:levels={n}={folder}").spec.fingerprint for n in (1, 2, 3)}
    assert len(fingerprints | {plain.spec.fingerprint}) == 4
    model = tiny_mimi()
    assert mimi_codec.Mimi(OlderMimi(model), levels=2).spec == mimi_codec.Mimi(model, levels=2).spec
    before = mimi_codec.Mimi(model, levels=2).spec.fingerprint
    model.quantizer.acoustic_residual_vector_quantizer.layers[0].codebook.embed_sum[0] += 1
    assert mimi_codec.Mimi(model, levels=2).spec.fingerprint != before
    for levels in (0, 5):
        with pytest.raises(UserError, match=r"1 to 4 quantiser levels|greater than or equal to 1"):
            build_codec(f"mimi:levels={levels}={folder}")


def test_encodec_contract_and_parity(codecs: Path) -> None:
    pytest.importorskip("encodec", reason="arlat-data[encodec] is not installed")
    folder = codecs / "encodec-tiny-random"
    one, other = build_codec(f"encodec={folder}"), build_codec(f"encodec:library=encodec={folder}")
    check_codec(one)
    check_codec(other)
    assert one.spec == other.spec
    assert (one.spec.dim, one.spec.frame_rate, one.spec.sample_rate) == (16, 75.0, 24_000)
    audio = example_audio(2, 9000, 24_000)
    z = one.encode(audio)
    torch.testing.assert_close(other.encode(audio), z, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(other.decode(z), one.decode(z), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"use_conv_shortcut": False}, {"num_residual_layers": 2, "pad_mode": "constant"}]
)
def test_encodec_parity_of_other_shapes(options: dict[str, Any]) -> None:
    pytest.importorskip("encodec", reason="arlat-data[encodec] is not installed")
    config = transformers.EncodecConfig(
        hidden_size=8, num_filters=2, codebook_size=16, target_bandwidths=[0.6], **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.EncodecModel(config).eval()
    spec = encodec_codec.spec_of(model)
    one = encodec_codec.Encodec(model.encoder, model.decoder, spec)
    other = encodec_codec.Encodec(*encodec_codec.package_networks(model), spec)
    audio = example_audio(1, 6400, 24_000)
    z = one.encode(audio)
    torch.testing.assert_close(other.encode(audio), z, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(other.decode(z), one.decode(z), atol=1e-6, rtol=1e-5)
    check_codec(one)
    assert spec.causal == ("pad_mode" in options)


def test_encodec_latents_are_what_the_model_quantises(codecs: Path) -> None:
    folder = codecs / "encodec-tiny-random"
    model = transformers.EncodecModel.from_pretrained(folder).eval()
    audio = example_audio(1, 3200, 24_000)
    z = build_codec(f"encodec={folder}").encode(audio).transpose(1, 2)
    codes = model.encode(audio[:, None], bandwidth=1.2).audio_codes[0]
    assert torch.equal(model.quantizer.encode(z, 1.2).transpose(0, 1), codes)


def test_encodec_reads_weights_under_their_older_names(codecs: Path, tmp_path: Path) -> None:
    folder = codecs / "encodec-tiny-random"
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    assert build_codec(f"encodec={tmp_path}").spec == build_codec(f"encodec={folder}").spec


def test_stereo_encodec_is_refused() -> None:
    config = transformers.EncodecConfig(
        hidden_size=8, num_filters=2, audio_channels=2, normalize=True, codebook_size=16, target_bandwidths=[0.6]
    )
    with pytest.raises(UserError, match="Only mono"):
        encodec_codec.spec_of(transformers.EncodecModel(config))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mimi=kyutai/mimi", "not on this machine.*mimi:hub=true,revision=main=kyutai/mimi"),
        ("encodec:revision=abc=facebook/encodec_24khz", "not on this machine"),
        ("mimi:hub=true=kyutai/mimi", "names its revision"),
        ("mimi:hub=true,revision=main=kyutai/mimi", "cannot be reached"),
        ("mimi", "folder: Field required"),
    ],
)
def test_absent_weights_are_answered_at_once(text: str, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=words):
        build_codec(text)
    assert time.monotonic() - start < 5


def test_a_cached_snapshot_is_found_without_network(
    codecs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    commit = "0" * 40
    repo = tmp_path / "cache/models--someone--tiny"
    shutil.copytree(codecs / "mimi-tiny-random", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    local = build_codec(f"mimi={codecs / 'mimi-tiny-random'}").spec
    assert build_codec("mimi=someone/tiny").spec == local
    assert build_codec(f"mimi:revision={commit}=someone/tiny").spec == local


def test_wrong_folders_are_named(codecs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        build_codec(f"mimi={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="'encodec' model, not 'mimi'"):
        build_codec(f"mimi={codecs / 'encodec-tiny-random'}")
    with pytest.raises(UserError, match=r"lacks config.json, model.safetensors; it holds nothing"):
        build_codec(f"encodec={tmp_path}")
    shutil.copy(codecs / "mimi-tiny-random/config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="cannot be loaded as MimiModel"):
        build_codec(f"mimi={tmp_path}")
    weights = load_file(codecs / "mimi-tiny-random/model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "downsample" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="lack 1 tensors"):
        build_codec(f"mimi={tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps([]))
    with pytest.raises(UserError, match="should hold a JSON object"):
        build_codec(f"mimi={tmp_path}")


def test_what_counts_as_a_hub_id() -> None:
    assert all(HUB_ID.fullmatch(text) for text in ("kyutai/mimi", "facebook/encodec_24khz"))
    assert not any(HUB_ID.fullmatch(text) for text in ("../codecs/mimi", "/a/b", "./mimi", "mimi", "a/b/c", "~/mimi"))
