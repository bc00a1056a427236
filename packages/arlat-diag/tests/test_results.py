from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from arlat_core.config import UserError
from arlat_diag.results import SCHEMA_FILE, Key, Results, json_schema, merge_results, read_results, write_results
from pydantic import TypeAdapter, ValidationError

Maker = Callable[..., Results]


def test_written_results_are_read_back_and_the_same_bytes_come_again(tmp_path: Path, real_results: Maker) -> None:
    results = real_results({"stack:8|mel": 640})
    write_results(tmp_path / "a" / "results.json", results)
    again = read_results(tmp_path / "a")
    assert again == results
    write_results(tmp_path / "b.json", again)
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a" / "results.json").read_bytes()
    assert json.loads((tmp_path / "b.json").read_text())["schema"] == "arlat-results/1"


def test_the_published_schema_is_current() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == json_schema(), "run `python -m arlat_diag.results`"


def test_the_published_schema_names_what_a_file_must_hold() -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert {"schema", "results", "representations"} <= set(schema["required"])
    assert schema["properties"]["schema"]["const"] == "arlat-results/1"
    assert {"value", "n"} <= set(schema["$defs"]["Value"]["required"])


@pytest.mark.parametrize("version", ["arlat-results/2", None, 1])
def test_another_schema_version_is_refused_with_a_sentence(tmp_path: Path, version: object) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"schema": version, "results": {}, "representations": {}}))
    with pytest.raises(UserError, match=r"this version of arlat-diag reads 'arlat-results/1'.*Run the battery again"):
        read_results(path)


def test_faults_are_named_with_their_place(tmp_path: Path, real_results: Maker) -> None:
    raw = real_results({"mel": 8}).model_dump(mode="json", by_alias=True)
    raw["results"]["mel"]["p1.h1.nll"]["valu"] = 3
    raw["results"]["mel"]["Not a key"] = raw["results"]["mel"]["p1.h1.cosine"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError) as caught:
        read_results(path)
    assert "results.mel.p1.h1.nll.valu" in str(caught.value)
    assert "Not a key" in str(caught.value)


def test_not_a_number_is_refused(tmp_path: Path, real_results: Maker) -> None:
    raw = real_results({"mel": 8}).model_dump(mode="json", by_alias=True)
    raw["results"]["mel"]["p1.h1.nll"]["value"] = float("nan")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="finite number"):
        read_results(path)


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), ("{", "cannot be read as JSON")])
def test_a_missing_or_broken_file_is_a_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)


def test_merging_keeps_order_and_provenance_and_refuses_a_name_twice(real_results: Maker) -> None:
    first, second = real_results({"z": 8}), real_results({"a": 4})
    merged = merge_results([first, second])
    assert list(merged.results) == ["z", "a"]
    assert len(merged.provenance) == 2
    with pytest.raises(UserError, match=r"'z' is in run 1 and in run 3 .*--name"):
        merge_results([first, second, first])


def test_figures_without_a_description_are_refused(real_results: Maker) -> None:
    results = real_results({"mel": 8})
    with pytest.raises(ValueError, match="the same names, but differ in mel"):
        Results(results=results.results, representations={})


def test_a_key_may_carry_a_step_or_a_size() -> None:
    keys = TypeAdapter(Key)
    assert keys.validate_python("r1.D.cosine[16]") == "r1.D.cosine[16]"
    assert keys.validate_python("r1.F.cosine[0.03]") == "r1.F.cosine[0.03]"
    for wrong in ("r1.F.cosine[.3]", "r1.F.cosine[1.]", "r1.F.cosine[a]", "cosine"):
        with pytest.raises(ValidationError):
            keys.validate_python(wrong)
