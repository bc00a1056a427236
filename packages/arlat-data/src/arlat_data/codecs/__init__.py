"""Codecs by name: `build_codec("stack:8|mel")`.

A codec text is a chain of parts, wrappers first, joined by ``|``; a part is ``NAME[:OPTION,…][=FOLDER]``:

- ``mel``, ``mel:bins=128``: a name, and options as KEY=VALUE; a bare value is the codec's first option
- ``lyra=../codecs/lyra_v2``: the rest after ``=`` is the folder of weights (for mimi and encodec also a hub id)
- ``stack:8|mel``, ``pool:8|mel``, ``stride:4|lyra=FOLDER``, ``rate:12.5|mel``: a wrapper and what it wraps

Each ``codecs/NAME.py`` is one codec: its ``Config`` lists the options, its ``build(config, device)`` makes it. A
``Config`` with the field ``inner`` is a wrapper.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from arlat_core import registry
from arlat_core.config import Config, UserError, validate

if TYPE_CHECKING:
    from arlat_core.types import Codec

GRAMMAR = "NAME[:OPTION,…][=FOLDER], wrappers first and joined by |, as in stack:8|mel or stride:4|lyra=FOLDER"
_OPTION = r"(?:[A-Za-z_]\w*=)?[^,=|]+"
_PART = re.compile(rf"(?P<name>[A-Za-z_]\w*)(?::(?P<options>{_OPTION}(?:,{_OPTION})*))?(?:=(?P<folder>.+))?")


def build_codec(text: str, device: str = "cpu") -> Codec:
    """Builds the codec that `text` describes (grammar: the module's docstring) on `device`.

    Raises UserError for text outside the grammar, unknown names and options, and weights that are not there.
    """
    head, bar, inner = text.partition("|")
    part = _PART.fullmatch(head.strip())
    if part is None:
        raise UserError(f"{head.strip()!r} in the codec {text!r} cannot be read. Expected {GRAMMAR}.")
    module = registry.load("codecs", part["name"])
    config_type: type[Config] = module.Config
    values = _options(part["options"], config_type, text)
    if part["folder"] is not None:
        if "folder" not in config_type.model_fields:
            raise UserError(f"The codec {part['name']!r} takes no folder, but {text!r} gives {part['folder']!r}.")
        values["folder"] = part["folder"]
    if bar:
        if "inner" not in config_type.model_fields:
            raise UserError(
                f"The codec {part['name']!r} wraps nothing, but {text!r} puts {inner!r} inside it. Wrappers come first."
            )
        values["inner"] = inner.strip()
    codec: Codec = module.build(validate(config_type, values, f"The codec {text!r}"), device)
    return codec


def codec_text(name: str, config: Config) -> str:
    """The text that builds a codec without folder again: its name and the options that are not at their default.

    >>> from arlat_data.codecs.mel import Config
    >>> codec_text("mel", Config(bins=128))
    'mel:bins=128'
    """
    fields = type(config).model_fields
    options = [
        f"{key}={value}"
        for key, value in config.model_dump().items()
        if key not in ("folder", "inner") and value != fields[key].default
    ]
    return f"{name}:{','.join(options)}" if options else name


def _options(text: str | None, config_type: type[Config], whole: str) -> dict[str, Any]:
    """Reads `8,kind=pool`: a bare value belongs to the first field, and may only come first."""
    values: dict[str, Any] = {}
    for index, option in enumerate(text.split(",") if text else []):
        key, equals, value = option.partition("=")
        if not equals:
            if index > 0:
                raise UserError(f"The option {option!r} in the codec {whole!r} has no name. Write KEY=VALUE.")
            key, value = next(iter(config_type.model_fields)), option
        if key in values:
            raise UserError(f"The option {key!r} stands twice in the codec {whole!r}.")
        values[key] = value
    return values
