"""Configuration: strict pydantic models, TOML presets, dotted overrides, grids."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

T = TypeVar("T", bound="Config")
OVERRIDE = re.compile(r"([A-Za-z_]\w*)[\w.\-]*=")  # `a.b=`, the first part captured


class UserError(Exception):
    """A mistake of the user's: the message says what came, what was expected and what to do. The CLI prints it alone."""


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def read_preset(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Reads a TOML preset and returns its values and its [grid] table (dotted key -> list of values)."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"The preset {path} cannot be read: {error}. Give a TOML file such as those under conf/."
        ) from error
    grid = raw.pop("grid", {})
    bad = {key: value for key, value in grid.items() if not isinstance(value, list) or not value}
    if bad:
        raise UserError(f"[grid] in {path} must map keys to non-empty lists, but has {bad}.")
    return raw, grid


def split_arguments(arguments: Sequence[str], fields: Collection[str]) -> tuple[list[Path], list[str]]:
    """Separates preset files (`*.toml`) from flags, and turns `a.b=c` into `--a.b=c` where `a` is one of `fields`.

    >>> split_arguments(["p.toml", "data.dir=X", "--codec", "lyra=DIR"], {"data", "codec"})[1]
    ['--data.dir=X', '--codec', 'lyra=DIR']
    """
    presets, flags = [], []
    for argument in arguments:
        key = OVERRIDE.match(argument)
        if argument.endswith(".toml") and key is None and not argument.startswith("-"):
            presets.append(Path(argument))
        else:
            flags.append(f"--{argument}" if key and key[1] in fields else argument)
    return presets, flags


def spell_boolean(cls: type[BaseModel], flag: str) -> str:
    """Spells `--a.b=true` as tyro does, `--a.b`, and false as `--a.no-b`, where `a.b` of `cls` is a boolean."""
    key, given, value = flag.partition("=")
    *path, name = key.removeprefix("--").replace("-", "_").split(".")
    inner: Any = cls
    for part in path:
        field = inner.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return flag
    if not given or name not in inner.model_fields or inner.model_fields[name].annotation is not bool:
        return flag
    if value.lower() not in ("true", "false"):
        raise UserError(f"{key.removeprefix('--')} is {value!r}, but it is a switch. Give true or false.")
    return key if value.lower() == "true" else "--" + ".".join([*path, f"no-{name}"])


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merges nested tables; `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def validate(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Validates `values`, turning pydantic's report into a UserError that names each key."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where} is not a valid {cls.__name__}:\n" + "\n".join(complaints(cls, error))) from error


def complaints(cls: type[Config], error: ValidationError, missing: bool = True) -> list[str]:
    """One line for each mistake, those of keys that are not there only where `missing`."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(root)"
        known = f" Known keys: {', '.join(cls.model_fields)}." if item["type"] == "extra_forbidden" else ""
        if missing or item["type"] != "missing":
            lines.append(f"  {key}: {item['msg']} (got {item.get('input')!r}).{known}")
    return lines


def partial(cls: type[Config], values: dict[str, Any]) -> Config:
    """A `cls` of a preset's values, whose required keys may still be missing: tyro asks the command line for them."""
    import tyro

    given: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        inner: Any = field.annotation
        if isinstance(inner, type) and issubclass(inner, Config) and isinstance(values.get(name, {}), dict):
            given[name] = partial(inner, merge(_defaults(field), values.get(name, {})))
        elif name in values:
            given[name] = TypeAdapter(inner).validate_python(values[name])
        else:
            given[name] = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
    return cls.model_construct(**given)


def _defaults(field: FieldInfo) -> dict[str, Any]:
    """What a nested table holds where a preset says nothing."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return default.model_dump() if isinstance(default, Config) else {}


def parse(cls: type[T], arguments: Sequence[str], prog: str = "arlat", description: str | None = None) -> T:
    """Builds one `cls` from presets (`*.toml`), flags (`--seed 3`) and dotted overrides (`data.latents_dir=STORE`)."""
    points = _parse_points(cls, arguments, prog, description)
    if list(points) != [""]:
        raise UserError("The preset has a [grid] table, which makes a sweep; this command runs one configuration.")
    return points[""]


def parse_sweep(
    cls: type[T], arguments: Sequence[str], prog: str = "arlat", description: str | None = None
) -> dict[str, T]:
    """As `parse`, one `cls` for every point of the sweep by its name; without a sweep one, named "".

    Points are those of the presets' [grid] tables, and of every override with commas (`lr=1e-3,1e-4`; a value that holds a
    comma itself is given as a flag, `--data.latents-dir a,b`). Other flags and overrides hold for every point. Nothing is
    returned unless every point is valid.
    """
    every: dict[str, T] = {}
    for name, listed in comma_points(arguments, cls.model_fields).items():
        found = _parse_points(cls, listed, prog, description)
        every |= {",".join(filter(None, (point, name))): config for point, config in found.items()}
    return every


def comma_points(arguments: Sequence[str], fields: Collection[str]) -> dict[str, list[str]]:
    """Arguments for every combination of the values that overrides of `fields` list, by a name made of these overrides.

    >>> comma_points(["lr=1,2", "seed=3"], {"lr", "seed"})
    {'lr=1': ['lr=1', 'seed=3'], 'lr=2': ['lr=2', 'seed=3']}
    """
    choices = []
    for argument in arguments:
        key = OVERRIDE.match(argument)
        values = argument[key.end() :].split(",") if key and key[1] in fields else []
        choices.append([f"{key[0]}{value}" for value in values] if key and len(values) > 1 else [argument])
    swept = [len(choice) > 1 for choice in choices]
    return {",".join(itertools.compress(point, swept)): list(point) for point in itertools.product(*choices)}


def _parse_points(cls: type[T], arguments: Sequence[str], prog: str, description: str | None) -> dict[str, T]:
    """One `cls` for every point of the presets' [grid] tables, by its name."""
    presets, given = split_arguments(arguments, cls.model_fields)
    flags = [spell_boolean(cls, flag) for flag in given]
    values: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    for path in presets:
        table, more = read_preset(path)
        values, grid = merge(values, table), grid | more
    where = str(presets[-1]) if presets else ""
    return {
        point_name(point): _parse_one(cls, merge(values, point), where, flags, prog, description)
        for point in grid_points(grid)
    }


def _parse_one(
    cls: type[T], values: dict[str, Any], where: str, flags: list[str], prog: str, description: str | None
) -> T:
    """One configuration from a preset's values and the command line."""
    import tyro

    default: Any = tyro.MISSING_NONPROP
    if where:
        try:
            cls.model_validate(values)
        except ValidationError as error:
            if lines := complaints(cls, error, missing=False):
                raise UserError(f"{where} is not a valid {cls.__name__}:\n" + "\n".join(lines)) from error
        default = partial(cls, values)
    try:
        parsed: T = tyro.cli(cls, args=flags, default=default, prog=prog, description=description)
    except ValidationError as error:
        raise UserError("The arguments are not valid:\n" + "\n".join(complaints(cls, error))) from error
    return parsed


def point_name(point: dict[str, Any], prefix: str = "") -> str:
    """A grid point's name, from its keys and values; empty for an empty point.

    >>> point_name({"teacher_weight": 0.1, "model": {"context": 4}})
    'teacher_weight=0.1,model.context=4'
    """
    parts = [
        point_name(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key}={value}"
        for key, value in point.items()
    ]
    return ",".join(parts)


def grid_points(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Expands a [grid] table to nested override tables, the last key varying fastest."""
    points = []
    for values in itertools.product(*grid.values()):
        point: dict[str, Any] = {}
        for key, value in zip(grid, values, strict=True):
            node = point
            *path, last = key.split(".")
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        points.append(point)
    return points
