"""A TensorRT without a GPU: the engine's own graph run by ONNX Runtime on the processor, behind TensorRT's interface.

A plan is the ONNX model in standard ops that TensorRT would be given. Addresses are real: what the runtime under test
binds, copies and captures is what is read and written. Memory of the "device" is memory of the host.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import numpy_helper

from edge_sdk import native
from edge_sdk.bundle import Bundle
from edge_sdk.engines import (
    FORMAT,
    FORMAT_VERSION,
    STAMP_NAME,
    EngineEntry,
    EngineStamp,
    engines_root,
    find_engines,
    folder_name,
    stamp_bytes,
)
from edge_sdk.errors import RuntimeUnavailableError
from edge_sdk.export.engine.build import engine_graph
from edge_sdk.export.engine.graph import Graph
from edge_sdk.export.engine.profiles import capacities, profiles_of
from edge_sdk.manifest import FUSED_GRAPH
from edge_sdk.runtimes.trt_runtime import TrtRuntime

Array = np.ndarray[Any, Any]
NAME, VERSION, SM = "tensorrt_rtx", "0.pretended", 89
HOST_INPUTS = {"encoder": ("pairs", "groups"), "waveform": ("first",)}  # test_engine.py holds the parser to it
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}


def make_engines(
    bundle: Bundle, precision: str = "fp32", context_tokens: int = 256, changes: dict[str, Any] | None = None
) -> Path:
    """Write a folder of pretended engines for `bundle`; `changes` are of the stamp."""
    sizes = capacities(bundle.manifest, context_tokens, 6.0)
    folder = engines_root(bundle) / folder_name(NAME, VERSION, SM)
    folder.mkdir(parents=True)
    entries, host = {}, []
    for key, entry in bundle.manifest.graphs.items():
        if key == FUSED_GRAPH:
            continue
        if any(s["dtype"] == "float64" for s in (*entry.inputs, *entry.outputs)):
            host.append(key)
            continue
        graph = engine_graph(bundle, key, sizes, SM, precision)
        data = model_bytes(graph)
        (folder / f"{key}.plan").write_bytes(data)
        entries[key] = EngineEntry(
            file=f"{key}.plan",
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            inputs=tuple(s.to_json() for s in graph.inputs.values()),
            outputs=tuple(s.to_json() for s in graph.outputs.values()),
            host_inputs=HOST_INPUTS.get(key, ()),
            profiles=tuple(p.to_json() for p in profiles_of(key, bundle.manifest, sizes)),
        )
    stamp = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "runtime": NAME, "runtime_version": VERSION, "sm": SM,
        "bundle": bundle.digest, "precision": precision, "context_tokens": context_tokens,
        "vocoder_frames": sizes.vocoder_frames, "one_profile": False, "graphs": entries,
        "host_graphs": tuple(host), **(changes or {}),
    }  # fmt: skip
    (folder / STAMP_NAME).write_bytes(stamp_bytes(EngineStamp(**stamp)))
    return folder


def model_bytes(graph: Graph) -> bytes:
    model, large = graph.model()
    for proto in model.graph.initializer:
        if proto.name in large:
            proto.CopyFrom(numpy_helper.from_array(large[proto.name], proto.name))
    return bytes(model.SerializeToString())


def open_runtime(bundle: Bundle, *, device_id: int = 0, threads: int | None = None) -> TrtRuntime:
    return TrtRuntime(bundle, Library(), Device(), threads)


def unavailable() -> str:
    return ""


def unfit(bundle: Bundle, device_id: int) -> str:
    try:
        find_engines(bundle, NAME, VERSION, SM)
    except RuntimeUnavailableError as e:
        return str(e)
    return ""


# -- the GPU


class Device:
    name, sm = "pretended GPU", SM

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def enter(self) -> None:
        """There is no context."""

    def shared(self, shape: tuple[int, ...], dtype: Any) -> Array:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return np.asarray(_Shared(nbytes))[:nbytes].view(dtype).reshape(shape)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def shares(self, array: Array) -> bool:
        owner: Any = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        return isinstance(owner, _Shared)

    def memory(self, nbytes: int) -> Any:
        held = np.full(max(nbytes, 1), 0xA5, np.uint8)  # what was not written is not zero
        return SimpleNamespace(address=address(held), nbytes=nbytes, held=held)

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]


class _Shared:
    def __init__(self, nbytes: int) -> None:
        self._held = np.zeros(max(nbytes, 1), np.uint8)
        self.__array_interface__ = self._held.__array_interface__


class Stream:
    """Work is done at once, or written down while a capture is under way."""

    def __init__(self) -> None:
        self.handle = 7 + len(_STREAMS)
        self.recorded: list[Any] | None = None
        self.captures = self.launches = 0
        _STREAMS[self.handle] = self

    def do(self, work: Any) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def to_device(self, target: int, source: int, nbytes: int) -> None:
        self.do(lambda: ctypes.memmove(target, source, nbytes))

    to_host = to_device

    def synchronize(self) -> None:
        """Everything is done already."""

    def begin_capture(self) -> None:
        self.recorded = []

    def end_capture(self) -> Any:
        work, self.recorded = self.recorded or [], None
        self.captures += 1

        def launch(stream: Stream) -> None:
            stream.launches += 1
            for step in work:
                step()

        return SimpleNamespace(launch=launch)


_STREAMS: dict[int, Stream] = {}


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def at(place: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """The array that lies at an address."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    buffer = (ctypes.c_char * (count * kind.itemsize)).from_address(place)
    return np.frombuffer(buffer, kind, count).reshape(shape)


# -- the library


class Library:
    name, version = NAME, VERSION

    def __init__(self) -> None:
        self.module = SimpleNamespace(
            Runtime=_Runtime,
            TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        )

    def logger(self) -> Any:
        return SimpleNamespace(errors=[], log=logging.getLogger("pretended"))

    def runtime_config(self, engine: Any, cache: bytes) -> tuple[Any, Any]:
        return None, None


class _Runtime:
    def __init__(self, log: Any) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: memoryview) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not native.ort_ops_unavailable():  # for the plugins that pretended_builder.py puts among standard ops
            options.register_custom_ops_library(str(native.folder() / native.ORT_LIBRARY))
        try:
            return _Engine(ort.InferenceSession(bytes(plan), options, providers=["CPUExecutionProvider"]))
        except Exception as e:
            self._log.errors.append(str(e))
            return None


class _Engine:
    device_memory_size_v2 = 64

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = {n.name: n for n in session.get_inputs()}
        self.outputs = {n.name: n for n in session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, i: int) -> str:
        return self._names[i]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("_cache_out.", "_cache.") if name.startswith(("key_cache_out", "value_cache_out")) else None

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "user"
        return _Context(self)


def _numpy_type(node: Any) -> str:
    return _DTYPES.get(node.type) or {"tensor(float16)": "float16"}.get(node.type) or node.type[len("tensor(") : -1]


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.profile = -1

    def set_device_memory(self, place: int, size: int) -> None:
        assert place % 256 == 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_tensor_address(self, name: str, place: int) -> bool:
        assert place
        self._addresses[name] = place
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        declared = self._engine.outputs[name].shape
        if all(isinstance(d, int) for d in declared):
            return tuple(declared)
        # Sizes follow from shapes and from what stands in the host inputs; other values are of no effect on them.
        return tuple(dict(zip(self._engine.outputs, self._compute(copy=True), strict=True))[name].shape)

    def _compute(self, *, copy: bool = False) -> list[Array]:
        feeds = {}
        for name, node in self._engine.inputs.items():
            array = at(self._addresses[name], self._shapes[name], _numpy_type(node))
            host = any(name in names for names in HOST_INPUTS.values())
            feeds[name] = (array.copy() if host else np.zeros_like(array)) if copy else array
        if copy and "total_positions" in feeds:  # as many as fit
            rows = self._shapes.get("rope_cos", self._shapes["key_cache.0"][2:])[0]
            feeds["total_positions"] = np.array(rows, np.int32)
        found: list[Array] = self._engine.session.run(None, feeds)
        return found

    def execute_async_v3(self, stream: int) -> bool:
        places = dict(self._addresses)

        def work() -> None:
            for name, array in zip(self._engine.outputs, self._compute(), strict=True):
                at(places[name], array.shape, array.dtype)[...] = array

        _STREAMS[stream].do(work)
        return True
