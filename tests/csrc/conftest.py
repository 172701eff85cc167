"""The native core, built once a session with what tests/csrc adds to it, or the reason why it is not."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "csrc-tests"
CPUINFO = Path("/proc/cpuinfo")
WORDS = {"avx2": "avx2", "avx512_vnni": "avx512", "asimddp": "neon"}  # of /proc/cpuinfo, and what we call them
FOUND = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
ISAS = ("plain", *(isa for word, isa in WORDS.items() if word in FOUND))


def missing() -> str:
    """What a build lacks here, "" if nothing."""
    tools = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    tools += [module for module in ("pybind11", "cffi") if importlib.util.find_spec(module) is None]
    return ", ".join(tools)


@pytest.fixture(scope="session")
def native_build() -> Path:
    """The folder the native core is built in; a second run builds only what changed."""
    if missing():
        pytest.skip(f"the native core is not built here: {missing()} missing")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the session's workers share it
        run("cmake", "-S", ROOT / "csrc", "-B", BUILD, "-DTESTS=ON", f"-DPython_EXECUTABLE={sys.executable}")
        run("cmake", "--build", BUILD, "-j", "2")
    return BUILD


def run(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


@pytest.fixture(scope="session")
def native_folder(native_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Library and header as a package holds them."""
    folder = tmp_path_factory.mktemp("native")
    shutil.copy(native_build / "libedge_sdk.so", folder)
    shutil.copy(ROOT / "csrc" / "include" / "edge_sdk.h", folder)
    return folder


@pytest.fixture(scope="session")
def any_kernels(native_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Single kernels by instruction set: `any_kernels(name)` is the module with that one chosen."""
    built = next((native_build / "tests").glob("edge_sdk_kernels*.so"), None)
    if built is None:
        pytest.skip("the kernels' module was not built: Python's headers are missing (apt-get install python3-dev)")
    loaded: dict[str, Any] = {}

    def load(isa: str) -> Any:
        # Which set runs is decided once in a library's life: a copy of the file is another library.
        if isa not in loaded:
            copy = tmp_path_factory.mktemp(f"kernels-{isa}") / built.name
            shutil.copy(built, copy)
            spec = importlib.util.spec_from_file_location(f"{isa}.edge_sdk_kernels", copy)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            before = os.environ.get("EDGE_SDK_ISA")
            os.environ["EDGE_SDK_ISA"] = isa
            module.current_isa()
            os.environ.pop("EDGE_SDK_ISA") if before is None else os.environ.update(EDGE_SDK_ISA=before)
            loaded[isa] = module
        return loaded[isa]

    return load


@pytest.fixture(scope="session", params=ISAS)
def kernels(request: pytest.FixtureRequest, any_kernels: Any) -> Any:
    """The module under each instruction set that this machine has."""
    isa = str(request.param)
    module = any_kernels(isa)
    assert sorted(module.isas()) == sorted(ISAS)
    assert module.current_isa() == isa
    return module
