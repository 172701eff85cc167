"""What TensorRT and TensorRT-RTX share as runtimes of a bundle: whether they are ready, and opening engines."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.engines import EngineFolder, find_engines
from edge_sdk.errors import BundleError, RuntimeUnavailableError
from edge_sdk.runtime import Array, Engine
from edge_sdk.runtimes import cuda, trt_library
from edge_sdk.runtimes.trt_engine import Device, Place, TrtEngine

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle

log = logging.getLogger("edge_sdk.tensorrt")


def unavailable(name: str) -> str:
    """ "" if the library and a GPU are here, else what is missing."""
    return trt_library.unavailable(name) or cuda.unavailable()


def unfit(name: str, bundle: Bundle, device_id: int) -> str:
    """ "" if `bundle` has engines for this library and GPU, else why not and how to make them."""
    try:
        library, device = trt_library.load(name), cuda.Device(device_id)
        check_plugins(library, find_engines(bundle, name, library.version, device.sm))
    except (RuntimeUnavailableError, MemoryError) as e:
        return str(e)
    return ""


def open_runtime(name: str, bundle: Bundle, *, device_id: int, threads: int | None) -> TrtRuntime:
    reason = trt_library.unavailable(name) or cuda.unavailable(device_id)
    if reason:
        raise RuntimeUnavailableError(f"runtime '{name}' cannot run here: {reason}")
    library, device = trt_library.load(name), cuda.Device(device_id)
    if not device.managed and not device.integrated:
        log.warning("this system cannot share memory between host and GPU: KV caches lie in the host's, which is slow")
    return TrtRuntime(bundle, library, device, threads)


class TrtRuntime:
    """Opens each engine once, at first use. Graphs in float64 run on the CPU: TensorRT has no such type."""

    def __init__(self, bundle: Bundle, library: Any, device: Device, threads: int | None = None) -> None:
        """
        Raises:
            RuntimeUnavailableError: the bundle has no engines that fit this library and GPU, or they hold plugins that
                cannot be loaded.
        """
        self.name = library.name
        self.device = f"{device.name} (SM {device.sm})"
        self._bundle, self._threads = bundle, threads
        self._place = Place(library, device)
        self._folder: EngineFolder = find_engines(bundle, library.name, library.version, device.sm)
        check_plugins(library, self._folder)
        self._engines: dict[str, Engine] = {}
        self._said = False
        self._lock = threading.Lock()

    def engine(self, graph: str) -> Engine:
        with self._lock:
            if graph not in self._engines:
                self._engines[graph] = self._open(graph)
            return self._engines[graph]

    def fused(self, graph: str) -> Engine | None:
        stamp = self._folder.stamp
        if graph in stamp.graphs:
            return self.engine(graph)
        if stamp.no_plugins and not self._said:
            log.info("the speech head's engine is of standard ops: %s", stamp.no_plugins)
            self._said = True
        return None

    def _open(self, graph: str) -> Engine:
        stamp, entry = self._folder.stamp, self._bundle.manifest.graphs.get(graph)
        if entry is None:
            known = ", ".join(self._bundle.manifest.graphs)
            raise BundleError(f"bundle '{self._bundle.path}' has no graph '{graph}'; it has {known}")
        if graph in stamp.host_graphs:
            return self._bundle.runtime("onnxruntime", threads=self._threads).engine(graph)
        if graph not in stamp.graphs:
            raise RuntimeUnavailableError(
                f"'{self._folder.path}' has no engine for graph '{graph}'; build it again with `edge-sdk build-engine`"
            )
        plan = self._folder.plan(graph)
        border = entry.input_specs(), entry.output_specs()
        cache = KernelCache(stamp.graphs[graph].sha256, f"{self._place.library.version}-{self.device}")
        where = f"bundle '{self._bundle.path}'"
        return TrtEngine(self._place, graph, stamp.graphs[graph], plan, border, cache, where)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory that host and GPU see at one address. The host may touch it while no run that uses it is under way."""
        return self._place.device.shared(shape, dtype)


def check_plugins(library: Any, folder: EngineFolder) -> None:
    """Load what the engines need of ours beside the library.

    Raises:
        RuntimeUnavailableError: it is not here.
    """
    held = [name for name, entry in folder.stamp.graphs.items() if entry.plugins]
    reason = library.plugins_missing() if held else ""
    if reason:
        raise RuntimeUnavailableError(
            f"engines in '{folder.path}' have layers of our own ({', '.join(held)}): {reason}. Install or build the "
            "plugins (docs/plugins.md), or build the engines again with `edge-sdk build-engine`, without them"
        )


class KernelCache:
    """Compiled kernels of one plan on one GPU, in the user's cache folder. Where it cannot be written, time is lost."""

    def __init__(self, plan: str, machine: str) -> None:
        place = hashlib.sha256(machine.encode()).hexdigest()[:8]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge_sdk" / "kernels"
        self._file = folder / f"{plan[:24]}-{place}.bin"
        self._size = -1

    def read(self) -> bytes:
        try:
            data = self._file.read_bytes()
        except OSError:
            return b""
        self._size = len(data)
        return data

    def write(self, data: bytes) -> None:
        if len(data) == self._size:
            return
        temporary = self._file.with_suffix(f".{secrets.token_hex(8)}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(self._file)
            self._size = len(data)
        except OSError as e:
            log.info("compiled kernels are not kept: %s", e)
