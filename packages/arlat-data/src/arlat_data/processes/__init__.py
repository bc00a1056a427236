"""Stationary processes with known answers: the file name is the process's name, `Config` its parameters, `build` makes it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, cast

import torch
from arlat_core.config import UserError, validate

from arlat_data.processes._process import Process


def names() -> list[str]:
    """The processes, without importing any."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(name: str, dim: int, params: Mapping[str, Any], generator: torch.Generator) -> Process[Any]:
    """Makes the process `name` in `dim` dimensions; what is planted in it (matrices, codebooks) is drawn from `generator`.

    Raises:
        UserError: For an unknown name, parameter or dimension; the sentence lists what is known.
    """
    if name not in names():
        raise UserError(f"There is no process {name!r}. Known: {', '.join(names())}.")
    if dim < 1:
        raise UserError(f"A process needs dim >= 1, but got {dim}.")
    module = importlib.import_module(f"{__name__}.{name}")
    config = validate(module.Config, dict(params), f"The parameters of {name}")
    return cast("Process[Any]", module.build(config, dim, generator))
