"""`results.json`: figures by representation and key, with what they were made of. Its schema is published and versioned.

`results[representation][key]` is a `Value`; keys are SPEC's names, `p1.h1.dnll_b5` or `r1.D.cosine[16]` (docs/metrics.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from arlat_core.config import Config, UserError
from arlat_core.files import atomic_write, write_json
from arlat_core.types import Count, LatentSpec, Value, WorstFrame
from pydantic import Field, StringConstraints, ValidationError, model_validator

SCHEMA: Final = "arlat-results/1"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
Key = Annotated[str, StringConstraints(pattern=r"^[a-z]\w*(\.\w+)+(\[\d+(\.\d+)?\])?$")]
Name = Annotated[str, StringConstraints(min_length=1)]


class Skipped(Config):
    """A file that could not be read, and why."""

    path: str
    reason: str


class AudioExample(Config):
    """A clip for the report; `path` is relative to the folder of results.json."""

    label: str
    path: str


class Representation(Config):
    """What a representation's figures were made of.

    `counts` is by split; `settings` by diagnostic; `truth` holds the closed-form answers of a synthetic store.
    """

    spec: LatentSpec
    store_hash: str
    counts: dict[str, Count] = Field(default_factory=dict)
    skipped: list[Skipped] = Field(default_factory=list)
    worst: list[WorstFrame] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    audio: list[AudioExample] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    truth: dict[str, Any] | None = None


class Results(Config):
    """One results.json: any number of representations.

    `notes` are remarks on the whole (shown at the top of a report); `provenance` has one manifest per run merged into it.
    """

    schema_: Literal["arlat-results/1"] = Field(SCHEMA, alias="schema")
    results: dict[Name, dict[Key, Value]] = Field(default_factory=dict)
    representations: dict[Name, Representation] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    provenance: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def same_names(self) -> Results:
        """Every representation has both its figures and its description."""
        if odd := sorted(self.results.keys() ^ self.representations.keys()):
            raise ValueError(
                f"`results` and `representations` must hold the same names, but differ in {', '.join(odd)}"
            )
        return self


def write_results(path: Path, results: Results) -> None:
    """Writes results.json atomically; the same results give the same bytes."""
    write_json(path, results.model_dump(mode="json", by_alias=True))


def read_results(path: Path) -> Results:
    """Reads results.json, or the one in the folder `path`.

    Raises UserError when it is missing, is no JSON, has another schema version, or is not valid (naming each fault).
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist. Give a run directory that `arlat diag battery` or `arlat demo` has finished."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}. Run the battery again.") from error
    version = raw.get("schema") if isinstance(raw, dict) else None
    if version != SCHEMA:
        raise UserError(
            f"{file} has the schema {version!r}, but this version of arlat-diag reads {SCHEMA!r}. "
            "Run the battery again, or use the version of arlat-diag that wrote it."
        )
    try:
        return Results.model_validate(raw)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, item['loc'])) or '(root)'}: {item['msg']}" for item in error.errors()[:20]]
        raise UserError(f"{file} does not fit {SCHEMA}:\n" + "\n".join(faults)) from error


def merge_results(parts: Sequence[Results]) -> Results:
    """Puts the representations of several results together, in order; raises UserError where a name comes twice."""
    seen: dict[str, int] = {}
    for index, part in enumerate(parts):
        for name in part.results:
            if name in seen:
                raise UserError(
                    f"The representation {name!r} is in run {seen[name] + 1} and in run {index + 1} of those given. "
                    "Leave one out, or run one battery again with --name."
                )
            seen[name] = index
    return Results(
        results={name: values for part in parts for name, values in part.results.items()},
        representations={name: item for part in parts for name, item in part.representations.items()},
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        provenance=[manifest for part in parts for manifest in part.provenance],
    )


def json_schema() -> str:
    """The JSON Schema of results.json as text."""
    schema = Results.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["required"] = sorted({*schema.get("required", []), "schema", "results", "representations"})
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":  # python -m arlat_diag.results: publishes the schema
    atomic_write(SCHEMA_FILE, json_schema())
