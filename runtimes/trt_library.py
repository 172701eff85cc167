"""TensorRT and TensorRT-RTX behind one face. The two share one API; all that differs between them stands in this file.

| | tensorrt | tensorrt_rtx |
|---|---|---|
| builds for | the GPU in this machine | any of the architectures it lists, with no GPU at hand |
| at first run | nothing | compiles kernels for the GPU it finds; a runtime cache keeps them |
| timing cache | kept beside the engines | of no use: nothing is timed when it builds |
| speech head, grouping | plugins of ours (docs/plugins.md) | standard ops: it has no plugin layers |
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk import native
from edge_sdk.errors import Error, RuntimeUnavailableError

NAMES = ("tensorrt", "tensorrt_rtx")
_INSTALL = {
    "tensorrt": "pip install tensorrt (JetPack brings it)",
    "tensorrt_rtx": "pip install 'edge_sdk[tensorrt-rtx]'",
}
_MIN_VERSION = {"tensorrt": (10, 15), "tensorrt_rtx": (1, 4)}  # KV cache updates
_PLUGINS, _PLUGIN_VERSION, _PLUGIN_NAMESPACE = ("GroupTokens", "GroupRows", "SpeechHead"), "1", "edge_sdk"
_NEEDED = ("IKVCacheUpdateLayer", "OnnxParser", "Runtime")

log = logging.getLogger("edge_sdk.tensorrt")


@dataclass(frozen=True)
class Library:
    """One of the two, imported."""

    name: str
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def targets(self) -> tuple[int, ...]:
        """Architectures it can build for without having one, as 89 for SM 8.9. Empty: only for the GPU at hand."""
        known = getattr(self.module, "ComputeCapability", None)
        names = known.__members__ if known is not None else {}
        return tuple(sorted(int(n[2:]) for n in names if n.startswith("SM") and n[2:].isdigit()))

    def set_target(self, config: Any, sm: int, present: int | None) -> None:
        """Have `config` build for architecture `sm`. `present`: that of the GPU at hand, None without one.

        Raises:
            Error: this library cannot build for it here.
        """
        if self.targets:
            if sm not in self.targets:
                listed = ", ".join(map(str, self.targets))
                raise Error(f"{self.name} {self.version} builds for SM {listed}; asked for {sm}")
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(self.module.ComputeCapability, f"SM{sm}"), 0)
        elif present is None:
            raise Error(f"{self.name} builds on the GPU it builds for, and there is none here; tensorrt_rtx needs none")
        elif sm != present:
            raise Error(f"{self.name} builds for the GPU in this machine, which is SM {present}; asked for {sm}")

    @property
    def times_kernels(self) -> bool:
        return self.name == "tensorrt"

    def network(self, builder: Any) -> Any:
        """A strongly typed network: what is float16 in the graph is float16 in the engine, and nothing else is."""
        flags = getattr(self.module, "NetworkDefinitionCreationFlag", None)
        typed = getattr(flags, "STRONGLY_TYPED", None)  # the only kind there is from TensorRT 11 on
        return builder.create_network(1 << int(typed) if typed is not None else 0)

    def logger(self) -> Any:
        """A logger of its own that writes to ours and keeps what went wrong."""
        return _logger_class(self.module)()

    def progress(self, report: Callable[[str, int, int], None]) -> Any:
        """A monitor that calls `report(phase, steps done, steps in all)` from the library's threads."""
        return _monitor_class(self.module)(report)

    def plugins_missing(self) -> str:
        """ "" if engines may hold our plugins here, which are loaded by asking; else why they may not."""
        if self.name != "tensorrt":
            return f"{self.name} has no plugin layers"
        return native.trt_plugins_unavailable() or _load_plugins(self.module, native.folder() / native.TRT_LIBRARY)

    def plugin(self, creator: str, fields: Mapping[str, int | float | Sequence[int]]) -> Any:
        """One of our plugins for a network, by docs/plugins.md's fields; None, with words in the log, if it refuses."""
        trt = self.module
        found = trt.get_plugin_registry().get_creator(creator, _PLUGIN_VERSION, _PLUGIN_NAMESPACE)
        made = []
        for name, value in fields.items():
            kind = np.float32 if isinstance(value, float) else np.int32
            known = trt.PluginFieldType.FLOAT32 if isinstance(value, float) else trt.PluginFieldType.INT32
            made.append(trt.PluginField(name, np.atleast_1d(np.asarray(value, kind)), known))
        return found.create_plugin(creator, trt.PluginFieldCollection(made), trt.TensorRTPhase.BUILD)

    def allow_plugins(self, config: Any) -> None:
        """Have `config` build a network whose plugins update their inputs in place."""
        config.set_preview_feature(self.module.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)

    def runtime_config(self, engine: Any, cache: bytes) -> tuple[Any, Any]:
        """(configuration, runtime cache) for execution contexts; (None, None) where there is nothing to configure."""
        if self.name != "tensorrt_rtx":
            return None, None
        config = engine.create_runtime_config()
        made = config.create_runtime_cache()
        if cache and not made.deserialize(cache):
            log.info("the runtime cache was made by another version or GPU: kernels are compiled again")
        config.set_runtime_cache(made)
        return config, made


@lru_cache
def _load_plugins(module: Any, path: Path) -> str:
    """Give the library's registry our plugins, once; "" or why it does not take them."""
    registry = module.get_plugin_registry()
    try:
        registry.load_library(str(path))
        lacking = [n for n in _PLUGINS if registry.get_creator(n, _PLUGIN_VERSION, _PLUGIN_NAMESPACE) is None]
    except Exception as e:  # the binding turns what the loader says into whatever exception it has
        return f"'{path}' cannot be loaded ({type(e).__name__}: {_first_line(e)}); build it again"
    return f"'{path}' has no {', '.join(lacking)}; build it again" if lacking else ""


@lru_cache
def _logger_class(module: Any) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR, severity.ERROR: logging.ERROR, severity.WARNING: logging.INFO,
        severity.INFO: logging.DEBUG, severity.VERBOSE: logging.NOTSET,
    }  # fmt: skip

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            rank = levels.get(level, logging.DEBUG)
            if rank == logging.ERROR:
                self.errors.append(" ".join(message.split()))
                rank = logging.DEBUG  # an error is raised with these words, by who asked
            if rank:
                log.log(rank, "%s", message)

    return Logger


@lru_cache
def _monitor_class(module: Any) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, report: Callable[[str, int, int], None]) -> None:
            module.IProgressMonitor.__init__(self)
            self._report, self._steps, self._lock = report, dict[str, int](), threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                steps = self._steps.get(name, 0)
            self._report(name, step, steps)
            return True

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._steps.pop(name, None)

    return Monitor


def unavailable(name: str) -> str:
    """ "" if the library can be imported here and is new enough, else the reason."""
    try:
        module = importlib.import_module(name)
        version = str(module.__version__)
        lacking = [n for n in _NEEDED if not hasattr(module, n)]
    except Exception as e:  # placeholders, half installed wheels and foreign builds fail in many ways
        return f"the package {name} cannot be imported ({type(e).__name__}: {_first_line(e)}); {_INSTALL[name]}"
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if lacking or numbers < _MIN_VERSION[name]:
        wanted = ".".join(map(str, _MIN_VERSION[name]))
        return f"{name} {version} is older than {wanted}, the first with KV cache updates; {_INSTALL[name]}"
    return ""


def load(name: str) -> Library:
    """Import the library.

    Raises:
        RuntimeUnavailableError: it is not installed or too old.
    """
    if name not in NAMES:
        raise RuntimeUnavailableError(f"unknown engine library '{name}'; choose {' or '.join(NAMES)}")
    reason = unavailable(name)
    if reason:
        raise RuntimeUnavailableError(f"'{name}' is not usable here: {reason}")
    return Library(name, importlib.import_module(name))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
