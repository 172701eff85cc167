"""What this machine has: the report behind `edge-sdk doctor`. Asks, changes nothing, needs nothing but NumPy."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from edge_sdk import __version__
from edge_sdk.errors import Error
from edge_sdk.runtime import no_telemetry, usable_cores

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tokenizers",
    "soxr",
    "soundfile",
    "jinja2",
    "pyaudio",
    "onnx",
)
# Instruction sets that decide how fast weights are read and multiplied, as the kernel names them.
CPU_FEATURES = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def doctor() -> dict[str, Any]:
    """Versions, runtimes (name -> "" or why not), audio devices, CPU, memory. Never raises."""
    from edge_sdk.runtimes import BRINGS, available

    no_telemetry()
    return {
        "edge_sdk": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "runtimes": available(),
        "native": _native(),
        "runtimes_bring": dict(BRINGS),
        "audio": _audio(),
        "machine": _machine(),
        "default_bundle": _default_bundle(),
    }


def _native() -> dict[str, Any]:
    """The native core: its instruction set, and what of it is missing."""
    from edge_sdk import native

    problem = native.unavailable()
    return {
        "problem": problem,
        "isa": "" if problem else native.load().isa,
        "onnxruntime_ops": native.ort_ops_unavailable(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _audio() -> dict[str, Any]:
    from edge_sdk.audio_devices import list_devices

    try:
        return {"problem": "", "devices": list_devices()}
    except Error as e:
        return {"problem": str(e), "devices": []}


def _machine() -> dict[str, Any]:
    cpu = _cpuinfo()
    memory = _meminfo()
    return {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "board": _read("/proc/device-tree/model").strip("\0 \n"),  # a Jetson says what it is here
        "cpu": cpu.get("model name", ""),
        "cpu_features": [f for f in CPU_FEATURES if f in (cpu.get("flags") or cpu.get("Features") or "").split()],
        "cores": usable_cores(),
        "memory_total": memory.get("MemTotal", 0),
        "memory_free": memory.get("MemAvailable", 0),
        "gpu": _gpu(),
    }


def _cpuinfo() -> dict[str, str]:
    first = _read("/proc/cpuinfo").split("\n\n")[0]
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}


def _meminfo() -> dict[str, int]:
    found = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if value.strip().endswith("kB"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _gpu() -> str:
    version = _read("/proc/driver/nvidia/version").splitlines()
    return version[0] if version else ""


def _default_bundle() -> str:
    from edge_sdk.bundle import Bundle

    try:
        with Bundle.open() as bundle:
            return f"{bundle.name} ({'; '.join(bundle.manifest.notes) or 'no notes'})"
    except Error as e:
        return str(e)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
