"""The CUDA C++ twin of `vmf_draw`: it builds, loads without a GPU, does not spill, and computes what it should."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
from arlat_kernels import TwinUnavailableError, cuda_build, cuda_library, vmf_draw
from arlat_kernels.testing import check_op
from arlat_kernels.vmf_series import DOUBLE, terms
from torch import Tensor

HERE = pathlib.Path(__file__).resolve().parent
needs_compilers = pytest.mark.skipif(cuda_build.obstacle() is not None, reason=cuda_build.obstacle() or "")
obstacle = vmf_draw.twins["cuda"].obstacle


def inputs() -> list[Tensor]:
    return list(vmf_draw.make_inputs(3, 5, 2.0, generator=torch.Generator().manual_seed(0)).values())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return cuda_build.build(tmp_path_factory.mktemp("cuda") / "arlat_cuda.so")


def test_without_a_library_the_sentence_says_how_to_build_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cuda_library.VARIABLE, str(tmp_path / "none.so"))
    expected = f"there is no library {tmp_path / 'none.so'}; build it with `python -m arlat_kernels.cuda_build`, or set"
    assert obstacle(*inputs()).startswith(expected)
    monkeypatch.delenv("ARLAT_KERNELS", raising=False)
    assert vmf_draw.pick(*inputs()) == "reference"
    monkeypatch.setenv("ARLAT_KERNELS", "cuda")
    with pytest.raises(TwinUnavailableError, match="asks for the cuda twin of vmf_draw, which cannot run here: there"):
        vmf_draw(*inputs())


def test_with_a_library_and_no_device_the_sentence_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.so"
    path.touch()
    monkeypatch.setenv(cuda_library.VARIABLE, str(path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert obstacle(*inputs()) == "built, but there is no CUDA device here."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert obstacle(*inputs()) == "its inputs are on cpu; it takes one CUDA device for all."


def test_a_compiled_caller_asks_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv(cuda_library.VARIABLE, str(tmp_path / "none.so"))
    whole = torch.compile(lambda *made: made[0] if obstacle(*made) else made[0] + 1, fullgraph=True, backend="eager")
    made = inputs()
    assert torch.equal(whole(*made), made[0])


def test_the_compiler_of_the_extra_serves_where_none_is_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    if cuda_build.nvcc() is None:
        pytest.skip("the extra arlat-kernels[cuda] is not installed")
    told = subprocess.run([str(cuda_build.nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    assert "release 13.0" in told
    assert cuda_build.cudart(str(cuda_build.nvcc()))[0] == "-L"
    assert cuda_build.obstacle() == "g++ is not on PATH; install a C++ compiler."
    monkeypatch.setattr(cuda_build, "nvcc", lambda: None)
    assert cuda_build.obstacle() is not None
    assert "arlat-kernels[cuda]" in str(cuda_build.obstacle())


@needs_compilers
def test_it_loads_without_a_gpu_and_refuses_cpu_tensors(library: pathlib.Path) -> None:
    program = """
import sys, torch
from arlat_kernels.cuda_library import library_path, load
load(library_path())
print(torch.ops.arlat_cuda.vmf_draw.default._schema)
x = torch.zeros(2, 3)
try:
    torch.ops.arlat_cuda.vmf_draw(x, x[:, 0], torch.zeros(1, dtype=torch.int64), x, x, x, 0)
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, cuda_library.VARIABLE: str(library), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    schema, refusal = done.stdout.splitlines()
    assert schema.startswith("arlat_cuda::vmf_draw(Tensor mu, Tensor kappa, Tensor seed, Tensor(a!) x")
    assert "mu is not on a CUDA device, and these are CUDA kernels; move the tensors there" in refusal


@needs_compilers
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not on PATH")
def test_it_links_no_cuda_library_of_torch(library: pathlib.Path) -> None:
    dynamic = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name or "c10" in name]


@needs_compilers
def test_no_kernel_spills(library: pathlib.Path) -> None:
    pytest.importorskip("triton", reason="cuobjdump comes with the package triton, which is not installed")
    from arlat_kernels.aot import cuobjdump

    usage = cuobjdump("-res-usage", str(library))
    for name in cuda_build.ARCHITECTURES:
        part = usage.partition(f"arch = sm_{name}\n")[2].partition("Fatbin elf code")[0]
        found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part)
        assert len(found) == 6  # three kernels in float and double
        assert all(int(registers) <= 80 and stack == local == "0" for registers, stack, local in found)
    assert not re.search(r"\b(?:LDL|STL)\b", cuobjdump("-sass", str(library)))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels compiled for the CPU by g++."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "cuda_runtime.h").touch()
    (folder / "vmf_draw_constants.h").write_text(cuda_build.constants_header())
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-w", f"-I{folder}", f"-I{cuda_library.SOURCES}"]
    subprocess.run([*command, str(HERE / "cuda_on_host.cpp"), "-o", str(folder / "host.so")], check=True)
    return ctypes.CDLL(str(folder / "host.so"))


def pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")
@pytest.mark.skipif(not cuda_library.SOURCES.is_dir(), reason="the CUDA sources are not here")
@pytest.mark.parametrize(
    ("n", "d", "kappa"),
    [(40, 2, 5.0), (40, 3, 1e4), (40, 3, 1.0), (300, 7, 6.0), (9, 67, 0.0), (5, 1024, 3e3), (20, 8, 1e6)],
)
def test_the_arithmetic_of_the_kernels_is_that_of_the_reference(
    host: ctypes.CDLL, n: int, d: int, kappa: float
) -> None:
    mu, each, seed = vmf_draw.make_inputs(n, d, kappa, generator=torch.Generator().manual_seed(0)).values()
    mu[2] = 0
    size = (ctypes.c_int64(n), ctypes.c_int64(d))
    wide, wide_each = mu.double().requires_grad_(), each.double().requires_grad_()
    expected = vmf_draw.reference(wide, wide_each, seed)
    x, gap, sine = torch.full_like(expected, torch.nan), torch.full((n,), torch.nan).double(), torch.zeros(n).double()
    host.draw(*pointers(wide, wide_each, seed, x, gap, sine), *size)
    torch.testing.assert_close(x, expected.detach(), rtol=0, atol=2e-14)
    grad = torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad_mu, grad_kappa = torch.full_like(x, torch.nan), torch.full_like(gap, torch.nan)
    true_mu, true_kappa = torch.autograd.grad((expected * grad).sum(), (wide, wide_each))
    host.backward(*pointers(grad, wide, wide_each, x, gap, grad_mu, grad_kappa), *size, terms(d, DOUBLE))
    torch.testing.assert_close(grad_mu, true_mu, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad_kappa, true_kappa, rtol=1e-9, atol=1e-9 * float(true_kappa.abs().max()))
    narrow = torch.full((n, d), torch.nan)
    host.draw_float(*pointers(mu, each, seed, narrow, gap, sine), *size)
    assert float((narrow.double() - expected.detach()).abs().max()) < 2e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@needs_compilers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_twin_is_as_good_as_the_reference(
    library: pathlib.Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cuda_library.VARIABLE, str(library))
    assert obstacle(*(tensor.cuda() for tensor in inputs())) is None
    check_op(vmf_draw, "cuda", dtype=dtype, device="cuda")
