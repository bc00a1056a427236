"""Run directories, files, the registry and the command line root."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from arlat_core import registry
from arlat_core.config import Config, UserError
from arlat_core.files import atomic_write, safe_name
from arlat_core.run import keep_settings, resumed, run_directory, says_how_to_go_on
from arlat_core.types import LatentSpec, fingerprint
from hypothesis import given
from hypothesis import strategies as st


def test_attempts_count_and_other_settings_are_refused(tmp_path: Path) -> None:
    with run_directory(tmp_path / "r", {"a": {"b": 1}}) as attempt:
        assert attempt == 1
    with run_directory(tmp_path / "r", {"a": {"b": 1}}) as attempt:
        assert attempt == 2
    with pytest.raises(UserError, match=r"a\.b: was 1, is 2"), run_directory(tmp_path / "r", {"a": {"b": 2}}):
        pass


class Settings(Config):
    """Of a run."""

    out: Path
    store: Path
    rate: float = 1.0


def test_a_run_and_a_sweep_are_gone_on_with_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("run")
    for points in ({"": 1.0}, {"rate=0.5": 0.5, "rate=2": 2.0}):
        keep_settings(out, {name: Settings(out=out, store=Path("s"), rate=rate) for name, rate in points.items()})
        monkeypatch.chdir("/")
        found = resumed(Settings, ["--resume", str(tmp_path / "run")])
        monkeypatch.chdir(tmp_path)
        expected = {
            name: Settings(out=tmp_path / "run", store=tmp_path / "s", rate=rate) for name, rate in points.items()
        }
        assert found == expected
    assert resumed(Settings, ["rate=3"]) is None
    with pytest.raises(UserError, match="takes one run directory and nothing else"):
        resumed(Settings, ["--resume", "run", "rate=3"])
    with pytest.raises(UserError, match=r"nowhere is no training to go on with: it has no resolved\.json"):
        resumed(Settings, ["--resume", "nowhere"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_what_ends_a_run_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    with pytest.raises(error), says_how_to_go_on(tmp_path, "arlat vae train"):
        raise error
    assert capsys.readouterr().err == ""  # nothing has begun
    keep_settings(tmp_path, {"": Settings(out=tmp_path, store=Path("s"))})
    with pytest.raises(error), says_how_to_go_on(tmp_path, "arlat vae train"):
        raise error
    told = f"\n{tmp_path} is not finished. Go on with: arlat vae train --resume {tmp_path}\n"
    assert capsys.readouterr().err == ("" if error is UserError else told)


def test_a_second_process_is_refused_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from arlat_core.run import run_directory\n"
        "with run_directory(Path(sys.argv[1]), {}): print('in', flush=True); time.sleep(30)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        start = time.monotonic()
        with pytest.raises(UserError, match=f"process {holder.pid}"), run_directory(tmp_path / "r", {}):
            pass
        assert time.monotonic() - start < 5
    finally:
        holder.kill()
        holder.wait()
    with run_directory(tmp_path / "r", {}) as attempt:
        assert attempt == 2


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    atomic_write(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["f.json"]


@given(st.text(max_size=300))
def test_safe_names_stay_in_their_folder(text: str) -> None:
    name = safe_name(text)
    assert name
    assert (Path("root") / name).parent == Path("root")
    assert name not in {".", ".."}
    assert "\0" not in name
    assert len(name) < 130


def test_safe_names_of_different_texts_differ() -> None:
    assert len({safe_name(text) for text in ["a/b", "a_b", "a|b", "a?b"]}) == 4


def test_fingerprints_see_every_weight() -> None:
    tensors = {"w": torch.zeros(3), "s": torch.tensor(1.0)}
    first = fingerprint({"a": 1}, tensors)
    assert first == fingerprint({"a": 1}, {key: value.clone() for key, value in tensors.items()})
    tensors["w"][1] = 1e-7
    assert fingerprint({"a": 1}, tensors) != first
    assert fingerprint({"a": 2}, {"w": torch.zeros(3), "s": torch.tensor(1.0)}) != first


def test_specs_refuse_a_partner_that_does_not_fit() -> None:
    spec = LatentSpec(codec="mel", space="log-mel", dim=80, frame_rate=100, sample_rate=24000, fingerprint="0")
    spec.require(spec, "the model")
    with pytest.raises(ValueError, match="dim: 80 against 81"):
        spec.require(spec.model_copy(update={"dim": 81}), "the model")


def test_the_registry_lists_and_names_what_it_knows() -> None:
    with pytest.raises(UserError, match="Known:"):
        registry.load("codecs", "no-such-codec")


def test_help_imports_no_torch() -> None:
    code = "import sys; from arlat_core.cli import main; main(['--help']); main([]); print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"
    assert "demo" in output


def test_unknown_commands_list_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    from arlat_core.cli import main

    assert main(["dat"]) == 2
    assert "Commands: demo, data" in capsys.readouterr().err


def test_runs_lists_run_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from arlat_core.cli import main

    with run_directory(tmp_path / "one", {"seed": 0}):
        pass
    assert main(["runs", str(tmp_path)]) == 0
    assert "one  unfinished, attempt 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "one" / "config.json").read_text()) == {"seed": 0}
