"""Builds the library of CUDA C++ kernels: `python -m arlat_kernels.cuda_build` needs nvcc and g++, and no GPU.

The kernels are compiled without torch's headers, the binding without CUDA's; torch comes in by its stable ABI.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

from arlat_kernels.cuda_library import DEFAULT, SOURCES
from arlat_kernels.vmf_sample import COSINE, ROUNDS, TANGENT
from arlat_kernels.vmf_sample_gradient import CLOSED, NODES, QUADRATURE

ARCHITECTURES = ("80", "90a")
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10


class BuildError(RuntimeError):
    """A compiler is missing or refuses."""


def obstacle() -> str | None:
    """Why nothing can be built here, or None."""
    if nvcc() is None:
        return "there is no nvcc, neither on PATH nor from a wheel; install arlat-kernels[cuda] or the CUDA toolkit."
    if shutil.which("g++") is None:
        return "g++ is not on PATH; install a C++ compiler."
    if not SOURCES.is_dir():
        return f"there is no folder {SOURCES}; build from a checkout of the source."
    return None


def nvcc() -> str | None:
    """The CUDA compiler on PATH, else the one that the extra `cuda` brings, else None."""
    if found := shutil.which("nvcc"):
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for wheel in sorted(pathlib.Path(folder).glob("cu*/bin/nvcc")):
            return str(wheel)
    return None


def cudart(compiler: str) -> list[str]:
    """Where the static runtime lies beside a compiler from a wheel, whose profile does not name the folder."""
    beside = pathlib.Path(compiler).parents[1] / "lib"
    return ["-L", str(beside)] if (beside / "libcudart_static.a").is_file() else []


def constants_header() -> str:
    """C++ that says the constants which Python and CUDA share."""
    nodes, weights = (", ".join(repr(pair[i]) for pair in QUADRATURE) for i in (0, 1))
    return (
        "#pragma once\n#include <cstdint>\n"
        f"constexpr int ROUNDS = {ROUNDS}, NODES = {NODES};\n"
        f"constexpr double CLOSED = {CLOSED!r};\n"
        f"constexpr uint32_t COSINE = {COSINE}, TANGENT = {TANGENT};\n"
        f"__constant__ double NODE[NODES] = {{{nodes}}};\n"
        f"__constant__ double WEIGHT[NODES] = {{{weights}}};\n"
    )


def build(library: pathlib.Path = DEFAULT) -> pathlib.Path:
    """Compiles and links `library`, with its objects beside it; BuildError says what a compiler said."""
    if why := obstacle():
        raise BuildError(f"Nothing was built: {why}")
    compiler = str(nvcc())
    folder = library.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vmf_draw_constants.h").write_text(constants_header())
    kernels, binding = folder / "vmf_draw.o", folder / "binding.o"
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
    own = ["-I", str(SOURCES), "-I", str(folder)]
    run([compiler, "-std=c++17", "-O3", "-Xcompiler", "-fPIC", *targets, *own, "-c", str(SOURCES / "vmf_draw.cu"), "-o",
         str(kernels)])  # fmt: skip
    home = pathlib.Path(torch.__file__).parent
    run(["g++", "-std=c++20", "-O2", "-fPIC", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *own, "-isystem",
         str(home / "include"), "-c", str(SOURCES / "binding.cpp"), "-o", str(binding)])  # fmt: skip
    partial = folder / f"{library.name}.partial"
    run([compiler, "-shared", "-cudart", "static", str(kernels), str(binding), "-L", str(home / "lib"), "-ltorch_cpu", *cudart(compiler),
         "-Xlinker", "--as-needed,--strip-debug", "-o", str(partial)])  # fmt: skip
    return partial.replace(library)


def run(command: Sequence[str]) -> None:
    """Runs one compiler; BuildError with the command and what it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def main(arguments: list[str] | None = None) -> int:
    """The command: builds, says where; 0, or 1 if it could not."""
    parser = argparse.ArgumentParser(prog="python -m arlat_kernels.cuda_build", description=__doc__)
    parser.add_argument("--library", type=pathlib.Path, default=DEFAULT, help="file to write; default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        library = build(options.library)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    names = ", ".join(f"sm_{name}" for name in ARCHITECTURES)
    print(f"Built {library} for {names} ({library.stat().st_size / 1e6:.1f} MB).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
