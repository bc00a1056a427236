"""Compiles the shipped Triton configurations to machine code without a GPU and reads what they use.

`python -m arlat_kernels.aot` prints the difference to kernels/aot_baseline.json and exits with 1 if there is one;
`--update` writes it. Registers, stack and spills come from the cubin by the cuobjdump in Triton's wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from arlat_kernels.build import Build
from arlat_kernels.op import triton_mode

ARCHITECTURES = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one block may use
BASELINE = pathlib.Path(__file__).resolve().parents[2] / "aot_baseline.json"  # in the source tree, not in a wheel

SPILL = re.compile(r"\b(?:LDL|STL)\b")
PRODUCT = re.compile(r"\b(?:HMMA|HGMMA|DMMA)\b")

Usage = dict[str, int]


def shipped() -> tuple[Build, ...]:
    """Every build of every op's Triton twin."""
    from arlat_kernels import OPS

    return tuple(build for op in OPS if "triton" in op.twins for build in op.twins["triton"].builds())


def obstacle() -> str | None:
    """Why nothing can be compiled here, or None."""
    mode = triton_mode()
    if mode == "absent":
        return "the package triton is not installed"
    return "TRITON_INTERPRET is set: the kernels are interpreted in this process" if mode == "interpreted" else None


def compile_build(build: Build, architecture: int) -> Usage:
    """Registers and stack bytes per thread, shared bytes per block, and spill instructions of one cubin."""
    compiled = compile_kernel(build, architecture)
    return {**read_cubin(compiled.asm["cubin"]), "shared": int(compiled.metadata.shared)}


def compile_kernel(build: Build, architecture: int) -> Any:
    """Triton's compiled kernel: `asm` has "ptx" and "cubin", `metadata` has `shared`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names: list[str] = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.types.get(name, "i32") for name in names}
    hints = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name in build.types or (build.aligned and name != "n" and name not in build.constants)
    }
    source = ASTSource(build.kernel, signature, constexprs=dict(build.constants), attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": build.warps})


def read_cubin(cubin: bytes) -> Usage:
    """`registers`, `stack` (bytes), `spills` (local loads and stores in the code) and `product_spills` (those in a loop of
    matrix products)."""
    usage, code = machine_code(cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers:\n{usage}")
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": len(SPILL.findall(code)),
        "product_spills": product_spills(code),
    }


def machine_code(cubin: bytes) -> tuple[str, str]:
    """What it uses, in cuobjdump's words, and its disassembly."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return cuobjdump("-res-usage", str(path)), cuobjdump("-sass", str(path))


class Loop(NamedTuple):
    """A loop of machine code from its first address to its last, and how many products and spills it holds."""

    start: int
    end: int
    products: int
    spills: int

    def holds(self, other: Loop) -> bool:
        """Whether the other is inside of it."""
        return self.start <= other.start and other.end <= self.end and self != other


def product_loops(code: str) -> list[Loop]:
    """The loops of a disassembly that hold matrix products, in other loops or not; a loop ends in a branch to before it."""
    found = [(int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/ +([^;]+);", code)]
    ends = ((re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text), address) for address, text in found)
    loops = []
    for start, end in [(int(match[1], 16), address) for match, address in ends if match]:
        body = [text for address, text in found if start <= address <= end]
        products, spills = (sum(bool(kind.search(text)) for text in body) for kind in (PRODUCT, SPILL))
        if products:
            loops.append(Loop(start, end, products, spills))
    return loops


def product_spills(code: str) -> int:
    """Spills in the innermost loops of matrix products."""
    loops = product_loops(code)
    return sum(loop.spills for loop in loops if not any(loop.holds(other) for other in loops))


def cuobjdump(*arguments: str) -> str:
    """Output of the cuobjdump that Triton ships."""
    import triton

    tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True, text=True).stdout


def measure() -> dict[str, Any]:
    """{"triton": version, "builds": {name/sm_NN: usage}} over every build and architecture.

    Machine code is read beside the compiling of what follows: taking it apart costs as much.
    """
    import triton

    with ThreadPoolExecutor() as pool:
        reading: dict[str, tuple[Future[Usage], int]] = {}
        for build in shipped():
            for architecture in ARCHITECTURES:
                compiled = compile_kernel(build, architecture)
                name = f"{build.name}/sm_{architecture}"
                reading[name] = pool.submit(read_cubin, compiled.asm["cubin"]), int(compiled.metadata.shared)
        builds = {name: {**found.result(), "shared": shared} for name, (found, shared) in reading.items()}
    return {"triton": triton.__version__, "builds": builds}


def difference(baseline: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """One line for every figure that is not the baseline's; empty where all agree."""
    lines = []
    if baseline.get("triton") != measured["triton"]:
        lines.append(f"triton: {baseline.get('triton')} → {measured['triton']}")
    old, new = baseline.get("builds", {}), measured["builds"]
    for name in sorted(old.keys() | new.keys()):
        for key in sorted(old.get(name, {}).keys() | new.get(name, {}).keys()):
            before, after = old.get(name, {}).get(key), new.get(name, {}).get(key)
            if before != after:
                lines.append(f"{name} {key}: {before} → {after}")
    return lines


def faults(measured: dict[str, Any]) -> list[str]:
    """What no build may have, whatever the baseline says: a spill in a loop of products, more stack than its bound (and
    spills where that is 0), more shared memory than a block has."""
    lines, bounds = [], {build.name: build.stack for build in shipped()}
    for name, usage in measured["builds"].items():
        build, _, architecture = name.rpartition("/sm_")
        bound, limit = bounds.get(build, 0), SHARED_LIMIT[int(architecture)]
        spills = "product_spills" if bound else "spills"
        lines += [f"{name}: {usage[spills]} {spills}"] * (usage[spills] > 0)
        lines += [f"{name}: {usage['stack']} stack, bound {bound}"] * (usage["stack"] > bound)
        lines += [f"{name}: {usage['shared']} bytes shared, limit {limit}"] * (usage["shared"] > limit)
    return lines


def main(arguments: list[str] | None = None) -> int:
    """The command: prints differences and faults; 0 where there is none or the baseline was updated, else 1."""
    parser = argparse.ArgumentParser(prog="python -m arlat_kernels.aot", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write what was measured into the baseline")
    parser.add_argument("--baseline", type=pathlib.Path, default=BASELINE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if why := obstacle():
        print(f"Nothing was compiled: {why}.", file=sys.stderr)
        return 2
    measured = measure()
    old = json.loads(options.baseline.read_text()) if options.baseline.exists() else {}
    changes, wrong = difference(old, measured), faults(measured)
    print("\n".join(changes) if changes else f"{len(measured['builds'])} builds are as in {options.baseline.name}.")
    if wrong:
        print("Faults:\n" + "\n".join(wrong))
    if options.update and changes:
        partial = options.baseline.with_suffix(".partial")
        partial.write_text(json.dumps(measured, indent=1) + "\n")
        os.replace(partial, options.baseline)
        print(f"Wrote {options.baseline}.")
    return int(bool(wrong) or (bool(changes) and not options.update))


if __name__ == "__main__":
    sys.exit(main())
