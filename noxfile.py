"""The sessions of the workspace: `uv run nox` runs what CI runs; `uv run nox -l` lists all."""

from __future__ import annotations

import difflib
import os
import pathlib
import re
import tempfile
import tomllib

import nox

ROOT = pathlib.Path(__file__).parent
MEMBERS = {
    "arlat-kernels": ("kernels", ""),
    "arlat-core": ("packages/arlat-core", ""),
    "arlat-data": ("packages/arlat-data", "[encodec,hifigan,lyra,mimi,voices]"),
    "arlat-dynamics": ("packages/arlat-dynamics", ""),
    "arlat-vae": ("packages/arlat-vae", "[semantic]"),
    "arlat-score": ("packages/arlat-score", ""),
    "arlat-diag": ("packages/arlat-diag", "[perceptual]"),
}
TEST_TOOLS = ["hypothesis", "psutil", "pytest", "pytest-timeout", "pytest-xdist", "scipy"]

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "interpreter", "aot", "docs", "build", "alone", "line"]
nox.options.error_on_missing_interpreters = True


def constraints() -> list[str]:
    """The exact pins of the root pyproject."""
    pins: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    return pins


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """mypy --strict over every package."""
    session.run("mypy")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Every test that needs no GPU, in the workspace's own environment."""
    session.run(
        "pytest", "-n", "2", "--dist", "loadgroup", "-m", "not gpu", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session(venv_backend="none")
def line(session: nox.Session) -> None:
    """What crosses packages: layers, workspace, README, and the whole line on real speech."""
    session.run("pytest", "tests", "-m", "not gpu", *session.posargs, env={"OMP_NUM_THREADS": "2"})


@nox.session(name="tests-gpu", venv_backend="none")
def tests_gpu(session: nox.Session) -> None:
    """The tests that need a CUDA device; says why they skip where there is none."""
    session.run("pytest", "-m", "gpu", "-rs", *session.posargs, success_codes=[0, 5])


@nox.session(venv_backend="none")
def interpreter(session: nox.Session) -> None:
    """Every Triton kernel on the CPU, by Triton's interpreter, in a process of its own."""
    session.run(
        "pytest",
        "kernels/tests/test_interpreter.py",
        "kernels/tests/test_interpreter_traps.py",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "kernels" / "tests").glob("test_*_triton.py")),
        *session.posargs,
        env={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "2"},
    )


@nox.session(venv_backend="none")
def aot(session: nox.Session) -> None:
    """Every shipped Triton configuration to cubin for sm_80 and sm_90, against kernels/aot_baseline.json; CUDA C++ by nvcc."""
    files = ("kernels/tests/test_aot.py", "kernels/tests/test_vmf_sample_cuda.py")
    with tempfile.TemporaryDirectory() as cache:
        session.run("pytest", *files, *session.posargs, env={"TRITON_CACHE_DIR": cache})


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The documentation; a warning is an error."""
    environment = {"UV_PROJECT_ENVIRONMENT": os.environ.get("VIRTUAL_ENV", str(ROOT / ".venv"))}
    session.run(
        "uv",
        "run",
        "--group",
        "docs",
        "sphinx-build",
        "-W",
        "-q",
        "-b",
        "html",
        "docs",
        "docs/_build/html",
        external=True,
        env=environment,
    )


@nox.session(venv_backend="none")
def build(session: nox.Session) -> None:
    """A wheel of every member into dist/."""
    for wheel in (ROOT / "dist").glob("*"):
        wheel.unlink()
    session.run("uv", "build", "--all-packages", "--wheel", "--out-dir", "dist", external=True)


@nox.session
@nox.parametrize("member", list(MEMBERS), ids=list(MEMBERS))
def alone(session: nox.Session, member: str) -> None:
    """Installs one member's wheel with its closure only, and runs its own tests there (after `build`)."""
    folder, extras = MEMBERS[member]
    if not list((ROOT / "dist").glob("*.whl")):
        session.run("uv", "build", "--all-packages", "--wheel", "--out-dir", "dist", external=True)
    pins = pathlib.Path(session.create_tmp()) / "constraints.txt"
    pins.write_text("\n".join(constraints()) + "\n")
    fresh = [f"--refresh-package={name}" for name in MEMBERS]  # a wheel of the same version is not the same wheel
    session.install("--find-links", "dist", "-c", str(pins), *fresh, f"{member}{extras}", *TEST_TOOLS)
    command = ["pytest", "-n", "2", "-q", "-p", "no:cacheprovider", "-m", "not gpu and not slow", f"{folder}/tests"]
    session.run(*command, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """The benchmarks that need no GPU; rows go to benchmarks/results/."""
    for script in ("store", "battery", "vmf", "dynamics", "vae"):
        session.run("python", f"benchmarks/{script}.py", *session.posargs)


@nox.session(name="bench-gpu", venv_backend="none")
def bench_gpu(session: nox.Session) -> None:
    """The benchmarks that need a CUDA device, or those named after `--`; rows go to benchmarks/results/."""
    small = ["--size", "small", "--batch", "32", "--device", "cuda", "--precision", "bfloat16"]
    for script in session.posargs or ("ops", "rollout", "sampling", "vae"):
        session.run("python", f"benchmarks/{script}.py", *(small if script == "vae" else []))


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """The main job with the embedded voices."""
    session.run("arlat", "demo", *session.posargs)


@nox.session(venv_backend="none")
def lock(session: nox.Session) -> None:
    """Resolves anew, writes the pins of the full closure into pyproject.toml and prints the difference; `-- --upgrade` lifts them."""
    path = ROOT / "pyproject.toml"
    text = path.read_text()
    if "--upgrade" in session.posargs:
        fixed = [pin for pin in constraints() if re.match(r"(torch|torchaudio|triton)==", pin)]
        path.write_text(with_pins(text, fixed))
    session.run("uv", "lock", *session.posargs, external=True)
    new = with_pins(path.read_text(), exported(session))
    path.write_text(new)
    session.run("uv", "lock", external=True)
    difference = list(
        difflib.unified_diff(
            text.splitlines(), new.splitlines(), "pyproject.toml before", "pyproject.toml after", lineterm="", n=0
        )
    )
    print("\n".join(difference) if difference else "The pins are what they were.")


def exported(session: nox.Session) -> list[str]:
    """The closure of every member, extra and group as exact requirements, without hashes or hosts."""
    output = session.run(
        "uv", "export", "--frozen", "--no-hashes", "--no-emit-workspace", "--all-packages", "--all-extras", "--all-groups",
        "--no-annotate", "--no-header", "--no-emit-index-url", external=True, silent=True,
    )  # fmt: skip
    return sorted(
        line for line in str(output).splitlines() if "==" in line and not line.startswith(("#", "-", "warning"))
    )


def with_pins(text: str, pins: list[str]) -> str:
    """`text` with its constraint-dependencies replaced."""
    rows = "".join(f'    "{pin}",\n' for pin in (pin.replace('"', "'") for pin in pins))
    return re.sub(
        r"constraint-dependencies = \[\n.*?^\]",
        lambda _: f"constraint-dependencies = [\n{rows}]",
        text,
        flags=re.S | re.M,
    )
