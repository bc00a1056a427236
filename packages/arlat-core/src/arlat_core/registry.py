"""The file name is the registry: `--codec mimi` loads the module `mimi` of a folder that an entry point names."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import Literal

from arlat_core.config import UserError

Kind = Literal["codecs", "dynamics", "diagnostics", "correctors"]
KINDS: tuple[Kind, ...] = ("codecs", "dynamics", "diagnostics", "correctors")


def packages(kind: Kind) -> list[str]:
    """The import names of the folders that installed packages add for `kind`, in the order of their entry points' names."""
    return [point.value for point in sorted(entry_points(group=f"arlat.{kind}"), key=lambda point: point.name)]


def names(kind: Kind) -> dict[str, str]:
    """Plugin name -> module path, without importing any plugin."""
    found: dict[str, str] = {}
    for package in packages(kind):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise UserError(
                f"The entry point arlat.{kind} names {package!r}, which is no package. Reinstall what provides it."
            )
        for module in pkgutil.iter_modules(spec.submodule_search_locations):
            if not module.name.startswith("_"):
                found.setdefault(module.name, f"{package}.{module.name}")
    return dict(sorted(found.items()))


def load(kind: Kind, name: str) -> ModuleType:
    """Imports the plugin `name`; an unknown name lists the known ones, a missing dependency names the extra that brings it."""
    known = names(kind)
    if name not in known:
        raise UserError(
            f"There is no {kind.removesuffix('s')} named {name!r}. Known: {', '.join(known) or '(none installed)'}."
        )
    return importlib.import_module(known[name])


def missing_extra(package: str, extra: str, error: ImportError) -> UserError:
    """The sentence for a plugin whose dependency is not installed."""
    return UserError(
        f"{error.name or error} is not installed, which {package}[{extra}] brings: pip install '{package}[{extra}]'."
    )
