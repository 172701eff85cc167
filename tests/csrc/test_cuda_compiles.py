"""The CUDA sources compile, without a warning, for every GPU that we name. Slow: run with `pytest -m slow`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.cuda_kernels import KERNELS, ROOT, SHIM

ARCHITECTURES = (80, 87, 89, 90, 110, 120, 121)
BENCHMARK = "tests/bench/speech_head_cuda.cu"
MOST_SPILLED_BYTES = 64  # by one kernel: a few values that are read once a phase

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc (the CUDA toolkit, 13.0 for sm_110 and sm_121)"),
]


@pytest.mark.parametrize("source", [*KERNELS, SHIM, BENCHMARK])
def test_compiles_for_every_architecture(source: str, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    warnings = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    command = ["nvcc", "-std=c++17", "-O3", *targets, *warnings, "-Icsrc", "-Xptxas", "-v", "-c", source]
    made = subprocess.run([*command, "-o", str(tmp_path / "object.o")], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", made.stderr)]
    assert spilled, made.stderr
    assert max(spilled) <= MOST_SPILLED_BYTES, made.stderr
