"""The package works where Triton is not installed, and importing it does not import Triton."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys
import torch
assert "triton" not in sys.modules, "torch imports triton: the next lines prove nothing"
import arlat_kernels
assert "triton" not in sys.modules, "arlat_kernels imports triton"
for name in [name for name in sys.modules if name.startswith("arlat_kernels")]:
    del sys.modules[name]
sys.modules["triton"] = None  # from here on `import triton` fails
import arlat_kernels
op = arlat_kernels.mixture_nll
inputs = tuple(op.make_inputs(3, 2, 4, generator=torch.Generator()).values())
assert op.pick(*inputs) == "reference"
assert op(*inputs).shape == (3,)
from arlat_kernels import aot
assert aot.obstacle() == "the package triton is not installed"
import os
os.environ["ARLAT_KERNELS"] = "triton"
try:
    op(*inputs)
except arlat_kernels.TwinUnavailableError as error:
    print(error)
"""


def test_without_triton() -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("ARLAT_KERNELS", "TRITON_INTERPRET")
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "the package triton is not installed. Unset ARLAT_KERNELS" in done.stdout
