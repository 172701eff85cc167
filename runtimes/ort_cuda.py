"""ONNX Runtime on an NVIDIA GPU: the bundle's own graphs, fixed addresses, a CUDA graph for repeated steps.

Arrays from `zeros` are seen by host and GPU at one address and are bound as they are; others are copied to the GPU when
a run begins. Graphs whose ops the GPU does not all have (float64, sizes worked out on the host) run without a capture.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk import native
from edge_sdk.errors import BundleError, Error, RuntimeUnavailableError
from edge_sdk.runtime import Array
from edge_sdk.runtimes import cuda, ort
from edge_sdk.tensors import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle

PROVIDER = "CUDAExecutionProvider"
_CAPTURED = ("backbone", "speech_head", "speech_input", "flow")  # graphs that repeat one shape in a loop
# Inputs that our op reads on the host (csrc/ort/speech_head_inputs.h). They are bound as the caller's memory: of one
# bound on the GPU, onnxruntime would copy the values of that moment.
_FUSED = "speech_head_fused"
_HOST_INPUTS = {_FUSED: frozenset({"control", "sampling"})}
_NO_CAPTURE = "-1"  # onnxruntime's word for "run this one as it is"

log = logging.getLogger("edge_sdk.onnxruntime")


def unavailable() -> str:
    """ "" if this runtime can be used here, else the reason."""
    reason = ort.unavailable()
    if reason:
        return reason.replace("edge_sdk[cpu]", "edge_sdk[cuda]")
    if PROVIDER not in ort.library().get_available_providers():
        return (
            "this onnxruntime is built for the CPU alone: pip uninstall onnxruntime, then pip install 'edge_sdk[cuda]' "
            "(onnxruntime-gpu; the two packages exclude each other)"
        )
    return cuda.unavailable()


def open_runtime(bundle: Bundle, *, device_id: int, threads: int | None) -> OrtCudaRuntime:
    reason = unavailable() or cuda.unavailable(device_id)
    if reason:
        raise RuntimeUnavailableError(f"runtime 'onnxruntime-cuda' cannot run here: {reason}")
    ort.check_threads(threads)
    return OrtCudaRuntime(bundle, cuda.Device(device_id), device_id, threads)


class OrtCudaRuntime:
    """Opens each graph of the bundle once, at first use."""

    name = "onnxruntime-cuda"

    def __init__(self, bundle: Bundle, device: cuda.Device, device_id: int, threads: int | None) -> None:
        self.device = f"{device.name} (SM {device.sm})"
        self._bundle, self._device, self._device_id, self._threads = bundle, device, device_id, threads or 1
        self._engines: dict[str, OrtCudaEngine] = {}
        self._lock = threading.Lock()
        self._no_ops = native.ort_cuda_ops_unavailable()
        self._said = False

    def engine(self, graph: str) -> OrtCudaEngine:
        with self._lock:
            if graph not in self._engines:
                self._device.enter()
                self._engines[graph] = self._open(graph)
            return self._engines[graph]

    def fused(self, graph: str) -> OrtCudaEngine | None:
        if graph not in self._bundle.manifest.graphs:
            return None
        if self._no_ops:
            if not self._said:
                log.info("the speech head runs as plain ops: %s", self._no_ops)
                self._said = True
            return None
        return self.engine(graph)

    def _open(self, graph: str) -> OrtCudaEngine:
        if graph in _CAPTURED:
            try:
                return OrtCudaEngine(self._bundle, graph, self._threads, self._device, self._device_id, capture=True)
            except BundleError as e:
                log.info("graph '%s' cannot be captured as a CUDA graph: %s", graph, e)
        ops = native.folder() / native.ORT_LIBRARY if graph == _FUSED else None
        return OrtCudaEngine(self._bundle, graph, self._threads, self._device, self._device_id, capture=False, ops=ops)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory that host and GPU see at one address. The host may touch it while no run that uses it is under way."""
        return self._device.shared(shape, dtype)


class OrtCudaEngine(ort.OrtEngine):
    """One session on the GPU. Calls of several threads take turns."""

    def __init__(
        self,
        bundle: Bundle,
        graph: str,
        threads: int,
        device: cuda.Device,
        device_id: int,
        *,
        capture: bool,
        ops: Path | None = None,
    ) -> None:
        options = {"device_id": str(device_id), "enable_cuda_graph": "1" if capture else "0", "use_tf32": "0"}
        super().__init__(bundle, graph, threads, ops, providers=[(PROVIDER, options), "CPUExecutionProvider"])
        self.place, self.device_id, self.capture = device, device_id, capture
        self.lock = threading.Lock()
        self.stream = device.stream()
        self._next_id = 0

    def call(self) -> OrtCudaCall:  # type: ignore[override]
        with self.lock:
            self._next_id += 1
            return OrtCudaCall(self, str(self._next_id))


class OrtCudaCall:
    """Bindings of one caller. A call whose bindings stay the same is captured under its own id."""

    def __init__(self, engine: OrtCudaEngine, graph_id: str) -> None:
        self._engine, self._graph_id = engine, graph_id
        self._binding = engine.session.io_binding()
        self._options = ort.library().RunOptions()
        self._staged: dict[str, tuple[Array, Array, Any]] = {}  # host array, pinned copy, device memory
        self._returned: dict[str, tuple[Array, Array, Any]] = {}
        self._kept: dict[str, Array] = {}
        self._host: dict[str, tuple[Array, Any]] = {}  # the binding refers to their memory
        self._fetched: tuple[str, ...] = ()
        self._order: list[str] = []  # of outputs, as the binding returns them
        self._runs = 0

    def set(self, name: str, array: Array) -> None:
        if name in _HOST_INPUTS.get(self._engine.name, ()):
            self._set_on_host(name, array)
            return
        known = self._staged.get(name)
        if known is not None and _alike(known[0], array) and not self._engine.place.shares(array):
            self._find(self._engine.inputs, name).check(array)
            self._staged[name] = (array, *known[1:])
            return
        address = self._place(self._staged, self._engine.inputs, name, array)
        self._binding.bind_input(name, "cuda", self._engine.device_id, array.dtype, array.shape, address)

    def _set_on_host(self, name: str, array: Array) -> None:
        self._find(self._engine.inputs, name).check(array, f"graph '{self._engine.name}': ")
        if not array.flags.c_contiguous:
            raise Error(f"graph '{self._engine.name}': the array for '{name}' is not C-contiguous")
        self._host[name] = (array, ort.library().OrtValue.ortvalue_from_numpy(array))  # a view of the array, not a copy
        self._binding.bind_ortvalue_input(name, self._host[name][1])

    def out(self, name: str, array: Array) -> None:
        address = self._place(self._returned, self._engine.outputs, name, array)
        self._note(name)
        self._binding.bind_output(name, "cuda", self._engine.device_id, array.dtype, array.shape, address)

    def fetch(self, *names: str) -> None:
        for name in names:
            self._find(self._engine.outputs, name)
            self._note(name)
        self._fetched = names

    def _note(self, output: str) -> None:
        if output not in self._order:
            self._order.append(output)

    def _place(
        self, kept: dict[str, tuple[Array, Array, Any]], specs: Mapping[str, TensorSpec], name: str, array: Array
    ) -> int:
        """The address on the GPU for an array of the caller."""
        self._find(specs, name).check(array, f"graph '{self._engine.name}': ")
        if not array.flags.c_contiguous:
            raise Error(f"graph '{self._engine.name}': the array for '{name}' is not C-contiguous")
        self._runs, device = 0, self._engine.place
        kept.pop(name, None)
        if device.shares(array):
            self._kept[name] = array
            return int(array.__array_interface__["data"][0])
        memory = device.memory(array.nbytes)
        kept[name] = (array, device.pinned(array.shape, array.dtype), memory)
        return int(memory.address)

    def _find(self, specs: Mapping[str, TensorSpec], name: str) -> TensorSpec:
        if name not in specs:
            raise Error(f"graph '{self._engine.name}' has no '{name}' there; it has {', '.join(specs)}")
        return specs[name]

    def run(self) -> dict[str, Array]:
        engine = self._engine
        with engine.lock:
            engine.place.enter()
            self._copy_in()
            for name in self._fetched:
                self._binding.bind_output(name, "cpu")  # anew each time: the shape may differ
            if engine.capture:
                steady = self._runs > 0 and not self._fetched
                self._options.add_run_config_entry("gpu_graph_id", self._graph_id if steady else _NO_CAPTURE)
            try:
                engine.session.run_with_iobinding(self._binding, self._options)
            except Exception as e:
                raise Error(f"graph '{engine.name}' failed in onnxruntime: {e}") from e
            self._binding.synchronize_outputs()
            self._copy_out()
            self._runs += 1
            if not self._fetched:
                return {}
            values = dict(zip(self._order, self._binding.get_outputs(), strict=True))
            return {name: values[name].numpy() for name in self._fetched}

    def _copy_in(self) -> None:
        stream = self._engine.stream
        for array, pinned, memory in self._staged.values():
            if array.nbytes:
                np.copyto(pinned, array)
                stream.to_device(memory.address, int(pinned.__array_interface__["data"][0]), array.nbytes)
        stream.synchronize()

    def _copy_out(self) -> None:
        stream = self._engine.stream
        for array, pinned, memory in self._returned.values():
            if array.nbytes:
                stream.to_host(int(pinned.__array_interface__["data"][0]), memory.address, array.nbytes)
        stream.synchronize()
        for array, pinned, _ in self._returned.values():
            np.copyto(array, pinned)


def _alike(a: Array, b: Array) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype)
