"""A run directory: its lock, its configuration, its manifest, and what says that it is done."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from arlat_core.config import Config, UserError, validate
from arlat_core.files import write_json

T = TypeVar("T", bound=Config)
RESOLVED = "resolved.json"  # every setting of a run, which `--resume RUN` reads
POINTS = "points"  # in it, the settings of each point of a sweep
VERSIONED = (
    "arlat-kernels",
    "arlat-core",
    "arlat-data",
    "arlat-dynamics",
    "arlat-vae",
    "arlat-score",
    "arlat-diag",
    "torch",
    "torchaudio",
    "numpy",
    "scipy",
    "zarr",
)


def manifest(seed: int, config: dict[str, Any], inputs: dict[str, str], device: str) -> dict[str, Any]:
    """Everything needed to repeat a run: seeds, versions, device, input hashes, config. Holds no time and no path of the machine."""
    versions = {}
    for name in VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "seed": seed,
        "config": config,
        "inputs": inputs,
        "device": device,
        "python": platform.python_version(),
        "platform": sys.platform,
        "versions": versions,
    }


@contextlib.contextmanager
def run_directory(path: Path, settings: dict[str, Any]) -> Iterator[int]:
    """Locks `path` for this process, writes or compares its `config.json`, and yields the attempt number (1, 2, …).

    Raises UserError when another process holds the run, or when the run was made with other settings (their difference is listed).
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    owner = path / "owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = json.loads(owner.read_text()) if owner.exists() else {}
        raise UserError(
            f"{path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}. Wait for it, or choose another --out."
        ) from None
    try:
        attempt = (json.loads(owner.read_text())["attempt"] if owner.exists() else 0) + 1
        write_json(owner, {"pid": os.getpid(), "host": platform.node(), "attempt": attempt})
        check_settings(path / "config.json", settings)
        yield attempt
    finally:
        lock.release()


def keep_settings(out: Path, points: Mapping[str, Config]) -> None:
    """Writes every setting of a run, the only point named "", or of a sweep's points by name, for `--resume OUT`; paths become absolute."""
    kept = {name: absolute(point.model_dump(exclude={"out"})) for name, point in points.items()}
    settings = kept[""] if list(kept) == [""] else {POINTS: kept}
    write_json(out / RESOLVED, json.loads(json.dumps(settings, default=str)))


def absolute(value: Any) -> Any:
    """Settings whose paths hold wherever they are read."""
    if isinstance(value, dict):
        return {name: absolute(inner) for name, inner in value.items()}
    return value.expanduser().absolute() if isinstance(value, Path) else value


def kept_settings(out: Path) -> dict[str, dict[str, Any]]:
    """What `keep_settings` wrote: the settings of each point.

    Raises UserError where `out` is no run.
    """
    path = out / RESOLVED
    if not path.is_file():
        raise UserError(f"{out} is no training to go on with: it has no {RESOLVED}. Give a run directory.")
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    points: dict[str, dict[str, Any]] = settings.get(POINTS, {"": settings})
    return points


def resumed(cls: type[T], arguments: list[str]) -> dict[str, T] | None:
    """The points of RUN as `parse_sweep` gives them, with RUN as their `out`, where the arguments are `--resume RUN`; else nothing."""
    if arguments[:1] != ["--resume"]:
        return None
    if len(arguments) != 2:
        raise UserError("--resume takes one run directory and nothing else: it goes on with that run's own settings.")
    out = Path(arguments[1])
    return {
        name: validate(cls, settings | {"out": out}, str(out / RESOLVED))
        for name, settings in kept_settings(out).items()
    }


@contextlib.contextmanager
def says_how_to_go_on(out: Path, prog: str, first: bool = True) -> Iterator[None]:
    """Inside, what ends a run that has begun but for a UserError ends with the command that goes on with it, said by the first process."""
    try:
        yield
    except UserError:
        raise
    except BaseException:
        if first and (out / RESOLVED).is_file():
            print(f"\n{out} is not finished. Go on with: {prog} --resume {out}", file=sys.stderr)
        raise


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes `settings` to `path`, or refuses when the file there differs, naming each differing key."""
    wanted = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        write_json(path, wanted)
        return
    old = flatten(json.loads(path.read_text()))
    new = flatten(wanted)
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if different:
        lines = "\n".join(f"  {key}: was {old.get(key)!r}, is {new.get(key)!r}" for key in different)
        raise UserError(
            f"{path.parent} holds a run with another configuration:\n{lines}\nChoose another --out, or repeat the old settings to resume it."
        )


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables to dotted keys.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
