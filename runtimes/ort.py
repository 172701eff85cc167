"""ONNX Runtime on the CPU: sessions over mapped weights, IO binding, caches updated in place."""

from __future__ import annotations

import logging
import math
import mmap
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk import native
from edge_sdk.errors import BundleError, Error, RuntimeUnavailableError
from edge_sdk.runtime import Array, no_telemetry, usable_cores
from edge_sdk.tensors import DTYPES, TensorSpec

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle

log = logging.getLogger("edge_sdk.runtimes")

MIN_VERSION = (1, 32)  # GroupQueryAttention's `causal` attribute, CPU MoE
MAX_THREADS = 1024
_TYPE_NAMES = {name: f"tensor({name})" for name in DTYPES} | {"float32": "tensor(float)", "float64": "tensor(double)"}
_OWN_PAGES_BYTES = 1 << 15  # arrays from this size on are mapped, and not taken from the allocator
LOG_FATAL_ONLY = 4  # errors are raised, with what onnxruntime says of them


def library() -> Any:
    """The package onnxruntime. Imported here and nowhere else, since it must not be without `no_telemetry`."""
    no_telemetry()
    import onnxruntime

    return onnxruntime


def unavailable() -> str:
    """ "" if this runtime can be used here, else the reason."""
    try:
        found = str(library().__version__)
    except Exception as e:  # one that is half installed or built for another NumPy fails in many ways
        return f"the package onnxruntime cannot be imported ({type(e).__name__}: {e}); install edge_sdk[cpu]"
    version = re.match(r"(\d+)\.(\d+)", found)
    if version is None or tuple(map(int, version.groups())) < MIN_VERSION:
        return f"onnxruntime {found} is older than {'.'.join(map(str, MIN_VERSION))}; upgrade it"
    return ""


def open_runtime(bundle: Bundle, *, device_id: int, threads: int | None) -> OrtRuntime:
    reason = unavailable()
    if reason:
        raise RuntimeUnavailableError(f"runtime 'onnxruntime' cannot run here: {reason}")
    check_threads(threads)
    return OrtRuntime(bundle, threads)


def check_threads(threads: int | None) -> None:
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS):
        raise Error(f"threads must be None or an integer from 1 to {MAX_THREADS}, got {threads!r}")


class OrtRuntime:
    """Opens each graph of the bundle once, at first use."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.threads = threads or usable_cores()
        self._bundle = bundle
        self._engines: dict[str, OrtEngine] = {}
        self._lock = threading.Lock()
        self._no_ops = native.ort_ops_unavailable()
        self._said = False

    def engine(self, graph: str) -> OrtEngine:
        with self._lock:
            if graph not in self._engines:
                ops = None if self._no_ops else native.folder() / native.ORT_LIBRARY
                self._engines[graph] = OrtEngine(self._bundle, graph, self.threads, ops)
            return self._engines[graph]

    def fused(self, graph: str) -> OrtEngine | None:
        if graph not in self._bundle.manifest.graphs:
            return None
        if self._no_ops:
            if not self._said:
                log.info("the speech head and token grouping run as plain ops: %s", self._no_ops)
                self._said = True
            return None
        return self.engine(graph)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Caches get pages of their own, which go back to the system with the array. From the allocator they would come
        out of the arena of whichever thread asks, and each arena keeps what it once had (docs/NOTES.md)."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _OWN_PAGES_BYTES:
            return np.zeros(shape, dtype)
        try:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as e:
            raise MemoryError(f"no memory for an array of {size} bytes: {e.strerror}") from e
        return np.frombuffer(pages, dtype).reshape(shape)


class OrtEngine:
    """One session. ONNX Runtime keeps large initializers mapped; matrices it repacks become private memory."""

    def __init__(
        self,
        bundle: Bundle,
        graph: str,
        threads: int,
        ops: Path | None = None,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
    ) -> None:
        ort = library()
        entry = bundle.manifest.graphs.get(graph)
        if entry is None:
            raise BundleError(
                f"bundle '{bundle.path}' has no graph '{graph}'; it has {', '.join(bundle.manifest.graphs)}"
            )
        self.name = graph
        self.inputs: Mapping[str, TensorSpec] = entry.input_specs()
        self.outputs: Mapping[str, TensorSpec] = entry.output_specs()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = LOG_FATAL_ONLY
        # The language half and the vocoder run side by side: a pool that spins between two of its ops takes the
        # other's core (measured, docs/NOTES.md).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Else the bytes may also be of onnxruntime's own format, which the bundle's check of ops does not read.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        if ops is not None:
            options.register_custom_ops_library(str(ops))
        self._data = bundle.read(entry.data) if entry.data else None  # the session refers to it as long as it lives
        if self._data is not None:
            options.add_external_initializers_from_files_in_memory([entry.data], [self._data], [len(self._data)])
        try:
            self.session = ort.InferenceSession(bytes(bundle.read(entry.file)), options, providers=list(providers))
        except Exception as e:
            raise BundleError(f"bundle '{bundle.path}': onnxruntime cannot open graph '{graph}': {e}") from e
        self._check_border(bundle)

    def _check_border(self, bundle: Bundle) -> None:
        for kind, specs, found in (
            ("inputs", self.inputs, self.session.get_inputs()),
            ("outputs", self.outputs, self.session.get_outputs()),
        ):
            if {node.name for node in found} != set(specs):
                raise BundleError(
                    f"bundle '{bundle.path}': graph '{self.name}' has {kind} {sorted(n.name for n in found)}, "
                    f"its manifest says {sorted(specs)}"
                )
            for node in found:
                if not _fits(node, specs[node.name]):
                    raise BundleError(
                        f"bundle '{bundle.path}': '{node.name}' of graph '{self.name}' is {node.type}{node.shape}, its "
                        f"manifest says {specs[node.name].dtype}{list(specs[node.name].shape)}"
                    )

    def call(self) -> OrtCall:
        return OrtCall(self)


class OrtCall:
    def __init__(self, engine: OrtEngine) -> None:
        self._engine = engine
        self._wrap = library().OrtValue.ortvalue_from_numpy  # on the CPU: a view of the array, not a copy
        self._binding = engine.session.io_binding()
        self._kept: dict[str, tuple[Array, Any]] = {}  # the binding refers to their memory
        self._outputs: list[str] = []  # in the order the binding returns them
        self._fetched: tuple[str, ...] = ()

    def set(self, name: str, array: Array) -> None:
        self._find(self._engine.inputs, name).check(array, f"graph '{self._engine.name}': ")
        self._binding.bind_ortvalue_input(name, self._view(name, array))

    def out(self, name: str, array: Array) -> None:
        self._find(self._engine.outputs, name).check(array, f"graph '{self._engine.name}': ")
        self._binding.bind_ortvalue_output(name, self._view(f"{name} (output)", array))
        self._note_output(name)

    def fetch(self, *names: str) -> None:
        for name in names:
            self._find(self._engine.outputs, name)
        self._fetched = names
        for name in names:
            self._note_output(name)

    def run(self) -> dict[str, Array]:
        for name in self._fetched:
            self._binding.bind_output(name)  # anew each time: the shape may differ
        try:
            self._engine.session.run_with_iobinding(self._binding)
        except Exception as e:
            raise Error(f"graph '{self._engine.name}' failed in onnxruntime: {e}") from e
        if not self._fetched:
            return {}
        values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        return {name: values[name].numpy() for name in self._fetched}

    def _find(self, specs: Mapping[str, TensorSpec], name: str) -> TensorSpec:
        if name not in specs:
            raise Error(f"graph '{self._engine.name}' has no '{name}' there; it has {', '.join(specs)}")
        return specs[name]

    def _note_output(self, name: str) -> None:
        if name not in self._outputs:
            self._outputs.append(name)

    def _view(self, key: str, array: Array) -> Any:
        if not array.flags.c_contiguous:
            raise Error(f"graph '{self._engine.name}': the array for '{key}' is not C-contiguous")
        value = self._wrap(array)
        self._kept[key] = (array, value)
        return value


def _fits(node: Any, spec: TensorSpec) -> bool:
    """Whether a session's input or output is what the manifest says; dimensions with a name fit any size."""
    return (
        node.type == _TYPE_NAMES[spec.dtype]
        and len(node.shape) == len(spec.shape)
        and all(
            found == want or not isinstance(found, int) or not isinstance(want, int)
            for found, want in zip(node.shape, spec.shape, strict=True)
        )
    )
