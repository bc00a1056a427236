"""Training on stored latents: it finds what linear algebra would, goes on to the bit after a kill, and ends in a codec and a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from arlat_core.config import UserError
from arlat_core.testing.codec import example_audio
from arlat_data.codecs import build_codec
from arlat_data.store import LatentStore, write_store
from arlat_vae import inner_train
from arlat_vae.inner import InnerVAE
from arlat_vae.inner_train import Config
from arlat_vae.train_command import main

PROG = "arlat vae train"
TEXT = "pool:4|mel:bins=16"
SHAPE = {"width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    """Utterances of 40 frames and 16 dimensions, three of which hold 0.97 of the variance."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 16, generator=generator)
    rows = []
    for index in range(24):
        slow = torch.randn(40, 3, generator=generator).cumsum(0) / 4
        z = 5 + slow @ mix + 0.3 * torch.randn(40, 16, generator=generator)
        rows.append((f"u{index}", f"s{index // 2}", "eval" if index >= 18 else "train", z.numpy(), None))
    path = tmp_path_factory.mktemp("store") / "store"
    write_store(path, build_codec(TEXT).spec, rows, dtype="float32")
    return LatentStore.open(path)


def config(store: LatentStore, out: Path, **changes: Any) -> Config:
    steps = {"steps": 4, "batch": 4, "warmup_steps": 0} | changes.pop("train", {})
    small = {"log_every": 1, "save_every": 2, "held_out_crops": 8}
    data = {"latents_dir": store.path, "crop_frames": 10}
    return Config(
        data=data,
        out=out,
        shape=SHAPE | {"bottleneck": {"dim": 3, **changes.pop("law", {})}},
        train=steps,
        **small,
        **changes,
    )  # type: ignore[arg-type]


def residual(store: LatentStore, rank: int) -> float:
    """Mean square error of standardised held-out frames beyond `rank` principal axes of training frames."""
    train, held_out = store.load("train").z, store.load("eval").z
    x, y = ((z - train.mean(0)) / train.std(0) for z in (train, held_out))
    axes = torch.linalg.svd(x, full_matrices=False).Vh[:rank]
    return float((y - y @ axes.T @ axes).square().mean())


def test_it_reaches_what_principal_axes_reach(store: LatentStore, tmp_path: Path) -> None:
    wanted = {"steps": 250, "batch": 8, "lr": 1e-2, "weight_decay": 0.0, "ema": 0.9}
    settings = config(store, tmp_path, train=wanted, kl=0.0, law={"kind": "plain"}).model_copy(
        update={"save_every": 125}
    )
    model = inner_train.train(settings, store).average
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in rows if row["part"] == "held_out"][-1]
    assert residual(store, 3) < seen["mse"] < 1.3 * residual(store, 3) + 0.02
    assert seen["mse"] < 0.3 * seen["mse_floor"]
    assert model.config.inner == store.spec


ARS: dict[str, Any] = {name: {"weight": 0.1} for name in ("pred", "noise", "rollout", "jacobian")}
ARS |= {"smooth": {"weight": 0.1, "target": 0.2}, "predictor": {"window_frames": 2, "hidden": 16}}


def test_a_killed_run_goes_on_to_the_bit(store: LatentStore, tmp_path: Path) -> None:
    def kill(done: int, planned: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    inner_train.train(config(store, tmp_path / "a", ar=ARS), store)
    with pytest.raises(KeyboardInterrupt):
        inner_train.train(config(store, tmp_path / "b", ar=ARS), store, kill)
    inner_train.train(config(store, tmp_path / "b", ar=ARS), store)
    for file in ("state/000000004.safetensors", "state/000000004.json", "metrics.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4]
    assert {"mse", "smooth", "pred", "noise", "rollout", "jacobian", "smooth_multiplier"} <= rows[0].keys()


def test_a_run_that_meets_nothing_finite_goes_back_to_other_crops(
    store: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fifth step on nothing is finite, until training has gone back and draws others."""
    seen: list[torch.Tensor] = []
    error = InnerVAE.error

    def broken(model: InnerVAE, latents: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        if decoded.requires_grad:
            seen.append(latents)
        return (torch.nan if 5 <= len(seen) <= 9 else 1.0) * error(model, latents, decoded)

    monkeypatch.setattr(InnerVAE, "error", broken)
    settings = config(store, tmp_path, train={"steps": 12}).model_copy(update={"save_every": 4})
    with pytest.warns(UserWarning, match="No finite loss or gradient in 5 steps up to step 9: back to step 4"):
        trainee = inner_train.train(settings, store)
    assert (trainee.step, trainee.returns, trainee.skipped, trainee.stuck) == (12, 1, 5, 0)
    assert len(seen) == 9 + 8
    assert not any(torch.equal(first, later) for first in seen[:9] for later in seen[9:])


def test_losses_without_weight_change_no_bit(store: LatentStore, tmp_path: Path) -> None:
    for name, ar in (("a", {}), ("b", {"noise_level": 0.5, "predictor": {"hidden": 3}})):
        inner_train.train(config(store, tmp_path / name, ar=ar), store)
    for file in ("state/000000004.safetensors", "state/000000004.json", "metrics.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_l_smooth_makes_slower_latents(store: LatentStore, tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 3.0):
        settings = config(store, tmp_path / str(weight), train={"steps": 60, "batch": 8, "lr": 1e-2, "ema": 0.9})
        settings = settings.model_copy(update={"save_every": 60, "log_every": 60})
        changed = {"ar": {"smooth": {"weight": weight}}}
        settings = Config.model_validate(settings.model_dump() | changed)
        model = inner_train.train(settings, store).average
        with torch.no_grad():
            z = model.encode(store.load("eval").z.view(6, 40, 16)).mean
        found.append(float(z.diff(dim=1).square().sum(-1).mean() / (z - z.mean((0, 1))).square().sum(-1).mean()))
    assert found[1] < 0.8 * found[0]


def test_the_command_makes_a_codec_and_a_store(
    store: LatentStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [f"data.latents_dir={store.path}", f"out={run}", "train.steps=3", "save_every=2", "shape.width=16"]
    command += ["shape.layers=1", "shape.heads=2", "shape.bottleneck.dim=3", "ar.smooth.weight=0.1", "probe.steps=3"]
    assert main(command, PROG) == 0
    assert "on held-out speakers mse" in capsys.readouterr().out
    codec = build_codec(f"inner={run / 'inner'}")
    assert codec.spec.codec == f"inner:3,beta=0.01,ar_loss=smooth|{TEXT}"
    latents = LatentStore.open(run / "latents")
    assert latents.spec == codec.spec
    assert latents.ids("eval") == store.ids("eval")
    x = torch.from_numpy(store.frames("u3"))[None]
    expected = codec.project(x)[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(torch.from_numpy(latents.frames("u3")), expected, rtol=2e-3, atol=2e-3)  # float16
    assert codec.decode(codec.encode(example_audio(1, 9000, codec.spec.sample_rate))).isfinite().all()
    for again in (command, ["--resume", str(run)]):
        assert main(again, PROG) == 0
        assert "is finished already" in capsys.readouterr().out
    grid = [argument for argument in command if not argument.startswith(("out", "ar."))]
    assert main([*grid, f"out={tmp_path / 'grid'}", "kl=0,0.1"], PROG) == 0
    assert list(json.loads((tmp_path / "grid" / "table.json").read_text())["points"]) == ["kl=0", "kl=0.1"]
    with pytest.raises(UserError, match="No utterance has 99 frames"):
        main([*grid, f"out={tmp_path / 'long'}", "data.crop_frames=99"], PROG)
