"""Every preset parses with what it leaves to the command line, and holds nothing but differences from the defaults."""

from pathlib import Path
from typing import Any

import pytest
from arlat_core.config import parse, read_preset
from arlat_core.run import flatten
from arlat_vae.train_config import Config

VAE = sorted((Path(__file__).resolve().parents[1] / "conf" / "vae").glob("*.toml"))


@pytest.mark.parametrize("path", VAE, ids=lambda path: path.stem)
def test_vae_presets(path: Path) -> None:
    needed = ["data.audio_dir=speech", "--out", "run"]
    config = flatten(parse(Config, [str(path), *needed]).model_dump(mode="json"))
    defaults = flatten(parse(Config, needed).model_dump(mode="json"))
    preset: dict[str, Any] = flatten(read_preset(path)[0])
    assert {key: config[key] for key in preset} == preset
    assert all(defaults[key] != value for key, value in preset.items())
    assert len(path.read_text().splitlines()) <= 25
