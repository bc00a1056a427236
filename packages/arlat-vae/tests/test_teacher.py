"""Teachers: their frames lie where latent frames are, what they know is learned, and a weight of 0 changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.testing.codec import example_audio
from arlat_vae import model, train
from arlat_vae.crops import Clips
from arlat_vae.teacher import TeacherConfig, alignment, build_teacher, distillation_loss, lessons
from arlat_vae.train_config import Config
from pydantic import ValidationError

MICRO = model.Config(channels=2, max_channels=8, width=8, layers=1, heads=2, bottleneck={"dim": 3})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.SIZES, "tiny", MICRO)


@pytest.fixture(scope="module")
def clips() -> Clips:
    audio = (example_audio(3, 30_000, 24_000) * 32767).to(torch.int16)
    return Clips(audio.flatten().numpy(), torch.arange(3) * 30_000, torch.full((3,), 30_000))


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WavLM of the real class with random weights and two layers."""
    transformers = pytest.importorskip("transformers", reason="arlat-vae[semantic] is not installed")
    folder = tmp_path_factory.mktemp("wavlm")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    more = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_buckets": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.WavLMModel(transformers.WavLMConfig(**sizes, **more)).save_pretrained(folder)
    return folder


def test_a_latent_frame_has_the_mean_of_the_frames_that_lie_in_it() -> None:
    weights = alignment(9, rate=50.0, first=0.0125, wanted=2, wanted_rate=12.5)
    assert weights[0].tolist() == [0.25] * 4 + [0.0] * 5  # 12.5, 32.5, 52.5 and 72.5 ms lie in the first 80 ms
    assert weights[1].tolist() == [0.0] * 4 + [0.25] * 4 + [0.0]
    few = alignment(2, rate=5.0, first=0.11, wanted=4, wanted_rate=12.5)  # at 110 and 310 ms, in frames 1 and 3
    assert few.argmax(1).tolist() == [0, 0, 0, 1]
    assert few.sum(1).tolist() == [1.0] * 4


def test_the_loss_is_one_minus_the_cosine() -> None:
    a = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    assert float(distillation_loss(3 * a, a)) == pytest.approx(0.0, abs=1e-6)
    assert float(distillation_loss(-a, a)) == pytest.approx(2.0)
    silent = torch.zeros(2, 3, 5, requires_grad=True)
    loss = distillation_loss(silent, a)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)
    assert torch.isfinite(silent.grad).all()  # type: ignore[arg-type]


def test_components_of_log_mel_are_white_on_what_they_were_fitted_to(clips: Clips) -> None:
    teacher = build_teacher(TeacherConfig(name="mel_pca", dim=4), clips, 24_000, "cpu")
    known = torch.cat([teacher.features(clips.read(clip, 0, 30_000)[None])[0] for clip in range(3)])
    torch.testing.assert_close(torch.cov(known.T, correction=0), torch.eye(4), atol=1e-2, rtol=0)
    assert lessons(teacher, example_audio(2, 7680, 24_000), 24_000, 4, 12.5).shape == (2, 4, 4)


def test_a_wavlm_is_read_from_a_folder_and_hears_where_it_says(wavlm: Path, clips: Clips) -> None:
    teacher = build_teacher(TeacherConfig(folder=str(wavlm), layer=0), clips, 24_000, "cpu")
    assert (teacher.frame_rate, teacher.sample_rate, teacher.dim) == (50.0, 16_000, 12)
    assert teacher.first_seconds == pytest.approx(0.0125)
    assert teacher.features(torch.zeros(1, 100)).shape == (1, 1, 12)
    audio = example_audio(1, 16_000, 16_000)
    last = build_teacher(TeacherConfig(folder=str(wavlm)), clips, 24_000, "cpu")
    assert last.features(audio).shape == teacher.features(audio).shape == (1, 49, 12)
    assert not torch.allclose(last.features(audio), teacher.features(audio))
    with pytest.raises(UserError, match=r"teacher\.layer is 3, but this WavLM has layers 0 to 2"):
        build_teacher(TeacherConfig(folder=str(wavlm), layer=3), clips, 24_000, "cpu")


def test_nothing_is_downloaded_unasked(clips: Clips, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="arlat-vae[semantic] is not installed")
    with pytest.raises(UserError, match=r"--teacher\.hub teacher\.revision=main"):
        build_teacher(TeacherConfig(folder="nobody/no-such-wavlm"), clips, 24_000, "cpu")
    with pytest.raises(UserError, match="no teacher is given"):
        build_teacher(TeacherConfig(), clips, 24_000, "cpu")
    with pytest.raises(ValidationError, match="'mel_pca' takes no folder"):
        TeacherConfig(name="mel_pca", folder=str(tmp_path))


def config(out: Path, **changes: object) -> Config:
    """A few steps on two frames."""
    steps = {"steps": 4, "batch": 2, "warmup_steps": 0}
    data = {"audio_dir": out, "crop": {"frames": 2}}
    values = {"data": data, "out": out, "train": steps, "held_out_crops": 2, "save_every": 2, "log_every": 1}
    return Config.model_validate(values | changes)


def test_a_weight_of_zero_changes_no_bit_and_another_resumes(clips: Clips, tmp_path: Path) -> None:
    asked = {"name": "mel_pca", "dim": 4}
    plain = train.train(config(tmp_path / "plain"), clips, clips)
    zero = train.train(config(tmp_path / "zero", teacher=asked, loss={"distill": 0.0}), clips, clips)
    some = train.train(config(tmp_path / "some", teacher=asked, loss={"distill": 1.0}), clips, clips)
    names = ("state/000000004.safetensors", "state/000000004.json", "metrics.jsonl")
    assert all((tmp_path / "plain" / name).read_bytes() == (tmp_path / "zero" / name).read_bytes() for name in names)
    assert zero.projection is None
    weight = "encoder.transformer.layers.0.enter.weight"
    assert not torch.equal(plain.model.state_dict()[weight], some.model.state_dict()[weight])
    with pytest.raises(KeyboardInterrupt):
        train.train(config(tmp_path / "again", teacher=asked, loss={"distill": 1.0}), clips, clips, killed)
    train.train(config(tmp_path / "again", teacher=asked, loss={"distill": 1.0}), clips, clips)
    assert all((tmp_path / "some" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def killed(done: int, planned: int) -> None:
    if done == 3:
        raise KeyboardInterrupt


def test_what_the_teacher_knows_is_learned(clips: Clips, tmp_path: Path, wavlm: Path) -> None:
    """From the same crops, the distillation loss falls far below that of latents that were never told."""
    settings = config(tmp_path, loss={"distill": 10.0}, train={"steps": 200, "batch": 2, "lr": 1e-2, "warmup_steps": 0})
    teacher = build_teacher(TeacherConfig(folder=str(wavlm)), clips, 24_000, "cpu")
    trainee = train.start(settings, teacher=teacher)
    audio, losses = example_audio(4, 3840, 24_000), {"waveform": train.waveform_loss}
    few = settings.model_copy(update={"loss": settings.loss.model_copy(update={"stft": 0.0, "mel": 0.0})})
    found = []
    for trainee.step in range(40):
        found.append(train.update(trainee, audio, losses, few)["distill"])
    assert found[-1] < 0.5 * found[0]
