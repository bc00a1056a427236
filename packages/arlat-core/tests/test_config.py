"""Configuration: presets, overrides, refusals."""

from pathlib import Path

import pytest
from arlat_core.config import Config, UserError, grid_points, parse, parse_sweep, read_preset
from pydantic import Field


class Inner(Config):
    rate: float = Field(0.5, gt=0)


class Outer(Config):
    inner: Inner = Inner()
    codec: tuple[str, ...] = ()
    seed: int = 0


def test_dotted_overrides_and_values_with_equals() -> None:
    config = parse(Outer, ["inner.rate=2", "--codec", "lyra=DIR", "mel", "--seed", "3"])
    assert config == Outer(inner=Inner(rate=2.0), codec=("lyra=DIR", "mel"), seed=3)


def test_preset_then_override(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text("seed = 1\n[inner]\nrate = 3.0\n")
    assert parse(Outer, [str(preset), "seed=2"]) == Outer(inner=Inner(rate=3.0), seed=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed = 1\n", "Known keys: inner, codec, seed"),
        ("[inner]\nrate = -1\n", "inner.rate"),
        ("[inner]\nrate = nan\n", "inner.rate"),
        ("seed = \n", "cannot be read"),
    ],
)
def test_bad_presets_are_refused_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text(text)
    with pytest.raises(UserError, match=said):
        parse(Outer, [str(preset)])


def test_a_bad_override_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((UserError, SystemExit)):
        parse(Outer, ["inner.rate=-1"])
    with pytest.raises((UserError, SystemExit)):
        parse(Outer, ["inner.speed=1"])


def test_a_grid_expands_and_is_refused_by_a_single_run(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text('[grid]\n"inner.rate" = [1.0, 2.0]\nseed = [0, 1, 2]\n')
    _, grid = read_preset(preset)
    points = grid_points(grid)
    assert len(points) == 6
    assert points[0] == {"inner": {"rate": 1.0}, "seed": 0}
    with pytest.raises(UserError, match="sweep"):
        parse(Outer, [str(preset)])


class Run(Config):
    inner: Inner
    out: Path
    steps: int = 10


def test_a_preset_leaves_required_keys_to_the_command_line(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text("steps = 3\n[inner]\nrate = 2.0\n")
    assert parse(Run, [str(preset), "--out", "a"]) == Run(inner=Inner(rate=2.0), out=Path("a"), steps=3)
    with pytest.raises(SystemExit):
        parse(Run, [str(preset)])


def test_a_sweep_is_one_configuration_for_each_point_or_none_at_all(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text('steps = 3\n[grid]\n"inner.rate" = [1.0, 2.0]\nsteps = [5, 6]\n')
    points = parse_sweep(Run, [str(preset), "--out", "a"])
    assert next(iter(points)) == "inner.rate=1.0,steps=5"
    assert points["inner.rate=2.0,steps=6"] == Run(inner=Inner(rate=2.0), out=Path("a"), steps=6)
    assert parse_sweep(Run, ["--out", "a", "inner.rate=4"]) == {"": Run(inner=Inner(rate=4.0), out=Path("a"))}
    preset.write_text('[grid]\n"inner.rate" = [1.0, -2.0]\n')
    with pytest.raises(UserError, match=r"inner\.rate"):
        parse_sweep(Run, [str(preset), "--out", "a"])


def test_overrides_with_commas_are_a_sweep_too_and_flags_keep_theirs(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text("[grid]\nsteps = [5, 6]\n")
    points = parse_sweep(Run, [str(preset), "--out", "a,b", "inner.rate=4,8"])
    assert list(points) == [f"steps={steps},inner.rate={rate}" for rate in (4, 8) for steps in (5, 6)]
    assert points["steps=6,inner.rate=8"] == Run(inner=Inner(rate=8.0), out=Path("a,b"), steps=6)
    with pytest.raises(SystemExit):
        parse_sweep(Run, ["--out", "a", "inner.rate=4,-8"])
    assert parse(Run, ["out=a,b", "inner.rate=4"]).out == Path("a,b")  # no sweep where a command runs one


class Switched(Config):
    class Loss(Config):
        balanced: bool = False
        keep_old: bool = True

    loss: Loss = Loss()
    check: bool = False


@pytest.mark.parametrize(
    ("arguments", "balanced", "keep_old", "check"),
    [
        (["loss.balanced=True", "loss.keep-old=false"], True, False, False),
        (["loss.keep_old=False", "check=true"], False, False, True),
        (["--loss.balanced", "--loss.no-keep-old", "--check"], True, False, True),
        (["--loss.balanced=false", "--loss.keep-old=true"], False, True, False),
    ],
)
def test_switches_are_spelt_as_in_toml_or_as_flags(
    arguments: list[str], balanced: bool, keep_old: bool, check: bool
) -> None:
    expected = Switched(loss=Switched.Loss(balanced=balanced, keep_old=keep_old), check=check)
    assert parse(Switched, arguments) == expected


def test_switches_make_a_sweep_over_a_preset_and_nothing_else_is_taken(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text("check = true\n[loss]\nbalanced = true\n")
    points = parse_sweep(Switched, [str(preset), "loss.balanced=true,false"])
    assert {name: (one.loss.balanced, one.check) for name, one in points.items()} == {
        "loss.balanced=true": (True, True),
        "loss.balanced=false": (False, True),
    }
    with pytest.raises(UserError, match=r"loss\.balanced is 'yes', but it is a switch. Give true or false"):
        parse(Switched, ["loss.balanced=yes"])
