"""Every preset parses with what it leaves to the command line, and holds nothing but differences from the defaults."""

from pathlib import Path
from typing import Any

import pytest
from arlat_core.config import Config as BaseConfig
from arlat_core.config import grid_points, parse_sweep, point_name, read_preset
from arlat_core.run import flatten
from arlat_vae.inner_train import Config as InnerConfig
from arlat_vae.train_config import Config

VAE = sorted((Path(__file__).resolve().parents[1] / "conf" / "vae").glob("*.toml"))


@pytest.mark.parametrize("path", VAE, ids=lambda path: path.stem)
def test_vae_presets(path: Path) -> None:
    cls: type[BaseConfig] = InnerConfig if path.stem == "inner" else Config
    needed = ["data.latents_dir=store" if path.stem == "inner" else "data.audio_dir=speech", "out=run"]
    values, grid = read_preset(path)
    preset: dict[str, Any] = flatten(values)
    defaults = flatten(parse_sweep(cls, needed)[""].model_dump(mode="json"))
    points = parse_sweep(cls, [str(path), *needed])
    expected = {point_name(point): flatten(point) for point in grid_points(grid)}
    assert points.keys() == expected.keys()
    for name, config in points.items():
        found = flatten(config.model_dump(mode="json"))
        assert {key: found[key] for key in preset | expected[name]} == preset | expected[name]
    assert all(defaults[key] != value for key, value in preset.items())
    assert all(any(value != defaults[key] for value in values) for key, values in grid.items())
    assert len(path.read_text().splitlines()) <= 25
