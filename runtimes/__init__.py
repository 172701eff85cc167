"""The backends: a registry that says, for each, whether it is ready here or why it is not.

Opened by name, and only when asked for; importing this costs nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle
    from edge_sdk.runtime import Runtime

# Name -> module; the order is the order in which "auto" tries them. A module says `unavailable()` of the machine and,
# where a bundle may lack something, `unfit(bundle, device_id)`; and has `open_runtime`.
MODULES = {
    "tensorrt": "edge_sdk.runtimes.trt",
    "tensorrt_rtx": "edge_sdk.runtimes.trt_rtx",
    "onnxruntime-cuda": "edge_sdk.runtimes.ort_cuda",
    "onnxruntime": "edge_sdk.runtimes.ort",
}
# What each is for: shown by `edge-sdk doctor` beside what it lacks.
BRINGS = {
    "tensorrt": "engines built for this GPU (Jetson, data centre)",
    "tensorrt_rtx": "engines built anywhere, for desktop GPUs",
    "onnxruntime-cuda": "the bundle as it is on an NVIDIA GPU, nothing to build",
    "onnxruntime": "the bundle as it is on any CPU",
}

log = logging.getLogger("edge_sdk.runtimes")


def available() -> dict[str, str]:
    """Every runtime by name, with "" if it is ready here and the reason if it is not."""
    return {name: str(_module(name).unavailable()) for name in MODULES}


def resolve(name: str, bundle: Bundle | None = None, device_id: int = 0) -> str:
    """The runtime that `name` means here: itself, or for "auto" the first that is ready, for `bundle` if one is given.

    Raises:
        RuntimeUnavailableError: it is unknown, or cannot run here.
    """
    if name != "auto":
        if name not in MODULES:
            raise RuntimeUnavailableError(f"unknown runtime '{name}'; choose auto, {', '.join(MODULES)}")
        reason = _lacks(name, bundle, device_id)
        if reason:
            raise RuntimeUnavailableError(f"runtime '{name}' cannot run here: {reason}")
        return name
    passed: dict[str, str] = {}
    for candidate in MODULES:
        reason = _lacks(candidate, bundle, device_id)
        if not reason:
            log.info("runtime auto: chose %s%s", candidate, "".join(f"; {n}: {r}" for n, r in passed.items()))
            return candidate
        passed[candidate] = reason
    raise RuntimeUnavailableError("no runtime can run here. " + "; ".join(f"{n}: {r}" for n, r in passed.items()))


def _lacks(name: str, bundle: Bundle | None, device_id: int) -> str:
    module = _module(name)
    reason = str(module.unavailable())
    if reason or bundle is None or not hasattr(module, "unfit"):
        return reason
    return str(module.unfit(bundle, device_id))


def _module(name: str) -> Any:
    return importlib.import_module(MODULES[name])


def create(name: str, bundle: Bundle, *, device_id: int, threads: int | None) -> Runtime:
    """Open a runtime on a bundle. `name` comes from `resolve`."""
    runtime: Runtime = _module(name).open_runtime(bundle, device_id=device_id, threads=threads)
    return runtime
