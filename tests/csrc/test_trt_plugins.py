"""The TensorRT plugins, built through CMake and judged by two hosts: our own harness under sanitizers, which also runs
them over host memory, and the plugin registry of tensorrt_rtx. Slow: both builds compile the CPU kernels."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_sdk import native
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from tests import speech_goldens, tolerances

ROOT = Path(__file__).resolve().parents[2]
EMULATION = ROOT / "tests/csrc/cuda_emulation/fibers.cc"
SANITIZERS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
FUZZ_ROUNDS = 30_000
NO_DEVICE = 77
LIBRARY, HARNESS = "tests/libedge_sdk_trt_on_host.so", "tests/trt_harness"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake"),
]


def run(command: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=3000
    )


def configure(folder: Path, *options: str) -> str:
    made = run(
        ["cmake", "-S", ROOT / "csrc", "-B", folder, "-DTRT=ON", f"-DPython_EXECUTABLE={sys.executable}", *options]
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout + made.stderr


def build(name: str, *options: str, targets: Sequence[str] = ("edge_sdk_trt_on_host", "trt_harness")) -> Path:
    """build/NAME, up to date. One process at a time builds there."""
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = configure(folder, "-DTESTS=ON", *options)
        for line in said.splitlines():
            if "TRT is off" in line or "CUDA is off" in line:
                pytest.skip(line.strip())
        made = run(["cmake", "--build", folder, "--target", *targets])
        assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def plain() -> Path:
    return build("trt")


def test_harness_under_sanitizers() -> None:
    folder = build("trt-sanitized", "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS={SANITIZERS}")
    judged = run([folder / HARNESS, folder / LIBRARY, "--fuzz", FUZZ_ROUNDS])
    assert judged.returncode == 0, judged.stdout[-8000:] + judged.stderr[-8000:]


def test_other_seeds(plain: Path) -> None:
    for seed in (200, 400, 600):
        judged = run([plain / HARNESS, plain / LIBRARY, "--seed", seed])
        assert judged.returncode == 0, judged.stdout[-8000:] + judged.stderr[-8000:]


def exports(library: Path) -> set[str]:
    listed = run(["nm", "-D", "--defined-only", library])
    assert listed.returncode == 0, listed.stderr
    return {line.split()[-1] for line in listed.stdout.splitlines()}


def test_exports_two_functions(plain: Path) -> None:
    assert exports(plain / LIBRARY) == {"getCreators", "setLoggerFinder"}


# A process of its own: the registry keeps what it loaded.
SECOND_HOST = """
import sys
import numpy as np
import tensorrt_rtx as trt

registry = trt.get_plugin_registry()
handle = registry.load_library(sys.argv[1])
ours = sorted(c.name for c in registry.all_creators if (c.plugin_namespace, c.plugin_version) == ("edge_sdk", "1"))
assert ours == ["GroupRows", "GroupTokens", "SpeechHead"], ours
creator = registry.get_creator("GroupRows", "1", "edge_sdk")
assert [field.name for field in creator.field_names] == ["group_size", "width"]

def make(phase, **fields):
    kind = trt.PluginFieldType.INT32
    made = [trt.PluginField(name, np.array([value], np.int32), kind) for name, value in fields.items()]
    return creator.create_plugin("one", trt.PluginFieldCollection(made), phase)

for phase in (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME):
    plugin = make(phase, group_size=5, width=16)
    assert isinstance(plugin.get_capability_interface(trt.PluginCapabilityType.CORE), trt.IPluginV3OneCore)
    assert isinstance(plugin.get_capability_interface(trt.PluginCapabilityType.BUILD), trt.IPluginV3OneBuildV2)
    assert isinstance(plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME), trt.IPluginV3OneRuntime)
    assert make(phase, group_size=0, width=16) is None
    assert make(phase, group_size=5) is None
del plugin, creator
registry.deregister_library(handle)
assert not [c for c in registry.all_creators if c.plugin_namespace == "edge_sdk"]
"""


def listed_by_tensorrt_rtx(library: Path) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("no tensorrt_rtx (pip install tensorrt-rtx-cu13)")
    found = run([sys.executable, "-c", SECOND_HOST, library])
    assert found.returncode == 0, found.stdout + found.stderr
    assert "edge_sdk::GroupRows: missing fields: width" in found.stderr


def test_tensorrt_rtx_lists_the_creators(plain: Path) -> None:
    listed_by_tensorrt_rtx(plain / LIBRARY)


# What build-engine gives the plugins for an exported bundle, made by the library itself.
EXPORTERS_FIELDS = """
import sys
import tensorrt_rtx
from edge_sdk.bundle import Bundle
from edge_sdk.export.engine.build import engine_graph
from edge_sdk.export.engine.profiles import capacities
from edge_sdk.runtimes.trt_library import Library

library = Library("tensorrt", tensorrt_rtx)
assert library.plugins_missing() == "", library.plugins_missing()
with Bundle.open(sys.argv[1]) as bundle:
    sizes = capacities(bundle.manifest, 64, 6.0)
    for precision in ("fp32", "fp16"):
        head = engine_graph(bundle, "speech_head_fused", sizes, 89, precision).plugin
        tokens = engine_graph(bundle, "backbone", sizes, 89, precision, plugins=True).inner
        for layer in (head, tokens):
            made = library.plugin(layer.creator, layer.fields)
            assert isinstance(made, tensorrt_rtx.IPluginV3), layer
            assert library.plugin(layer.creator, {**layer.fields, "codes": 0}) is None
"""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_takes_what_the_exporter_gives(plain: Path, tmp_path: Path, precision: str) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("no tensorrt_rtx (pip install tensorrt-rtx-cu13)")
    shutil.copy(plain / LIBRARY, tmp_path / native.TRT_LIBRARY)
    path = export_bundle(speech_goldens.CHECKPOINT, None, tmp_path / "a.bundle", ExportOptions(precision=precision))
    found = run([sys.executable, "-c", EXPORTERS_FIELDS, path], EDGE_SDK_NATIVE=str(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr


def test_says_why_it_is_off(tmp_path: Path) -> None:
    said = configure(tmp_path / "build", f"-DTENSORRT_INCLUDE_DIR={tmp_path}")
    assert "TRT is off: no TensorRT headers" in said


@pytest.mark.skipif(not EMULATION.exists(), reason="this tree has no emulated CUDA kernels")
def test_with_the_emulated_kernels() -> None:
    """Conversations through plugins and the CUDA kernels' own sources, run on the CPU."""
    folder = build("trt", targets=("edge_sdk_trt_emulated", "trt_harness"))
    judged = run(
        [folder / HARNESS, folder / "tests/libedge_sdk_trt_emulated.so", "--bound", tolerances.PLUGIN_ON_DEVICE]
    )
    assert judged.returncode == 0, judged.stdout[-8000:] + judged.stderr[-8000:]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_with_the_cuda_kernels() -> None:
    """The library that is shipped: its questions everywhere, its kernels where there is a device."""
    folder = build(
        "trt-cuda", "-DCUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=89-real;90-real;90-virtual",
        targets=("edge_sdk_trt", "trt_harness", "trt_harness_gpu"),
    )  # fmt: skip
    library = folder / "trt/libedge_sdk_trt.so"
    assert exports(library) == {"getCreators", "setLoggerFinder"}
    asked = run([folder / HARNESS, library, "--no-launch", "--fuzz", FUZZ_ROUNDS])
    assert asked.returncode == 0, asked.stdout[-8000:] + asked.stderr[-8000:]
    listed_by_tensorrt_rtx(library)
    judged = run([folder / "tests/trt_harness_gpu", library, "--bound", tolerances.PLUGIN_ON_DEVICE])
    if judged.returncode == NO_DEVICE:
        pytest.skip("built and asked, not launched: no CUDA device")
    assert judged.returncode == 0, judged.stdout[-8000:] + judged.stderr[-8000:]
