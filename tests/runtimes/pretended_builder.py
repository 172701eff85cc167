"""The building half of the pretended TensorRT, and its plugins: a module that `trt_library.Library` takes for tensorrt.

A parsed network becomes the ONNX model that was parsed. A network of one plugin layer becomes its fields, its constants
as they lie at the addresses that were given, and its profiles; it is run by the CPU kernels (csrc/ort's op), over the
memory that the runtime under test bound. What plugins demand of a host is held: fields by their documented names and
types, inputs in the documented order, updated tensors in place, shapes inside the profile.
"""

from __future__ import annotations

import ctypes
import pickle
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edge_sdk import native
from edge_sdk.export.engine.quantized import dequantize
from tests.runtimes import pretended

Array = np.ndarray[Any, Any]
VERSION = "10.15.pretended"
MARK = b"PLUGIN"
LIBRARY = b"pretended plugins"  # what a plugin library holds here
HEAD_FIELDS = (
    "logits", "group_size", "hidden", "width", "layers", "heads", "kv_heads", "head_dim", "cache_head_dim",
    "intermediate", "codes", "bos", "eps", "cache_dtype", "matrix_dtypes", "matrix_blocks", "matrix_scale_dtypes",
)  # fmt: skip


TOKEN_FIELDS = ("group_size", "width", "codes", "text", "table_dtype", "table_block", "table_scale_dtype")


class Severity:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger:
    Severity = Severity


class Monitor:
    """Base of progress monitors."""


class Registry:
    def __init__(self) -> None:
        self.creators: dict[str, Any] = {}
        self.loaded: list[str] = []

    def load_library(self, path: str) -> Any:
        if Path(path).read_bytes() != LIBRARY:
            raise RuntimeError(f"dlopen: {path}: invalid ELF header")
        self.loaded.append(path)
        for name in ("GroupTokens", "GroupRows", "SpeechHead"):
            self.creators[name] = SimpleNamespace(create_plugin=_create)

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        assert (version, namespace) == ("1", "edge_sdk")
        return self.creators.get(name)


def _create(name: str, fields: list[Any], phase: str) -> Any:
    assert phase == "build"
    found = {f.name: f for f in fields}
    if set(found) != set({"SpeechHead": HEAD_FIELDS, "GroupTokens": TOKEN_FIELDS}[name]) or len(found) != len(fields):
        return None
    for field in fields:
        assert field.data.dtype == (np.float32 if field.name == "eps" else np.int32), field.name
        assert field.type == ("f32" if field.name == "eps" else "i32"), field.name
    return SimpleNamespace(fields={n: f.data.tolist() if f.data.size > 1 else f.data.item() for n, f in found.items()})


def module() -> types.ModuleType:
    """A fresh module with a registry of its own."""
    registry, made = Registry(), types.ModuleType("tensorrt")
    vars(made).update(
        __version__=VERSION, ILogger=Logger, IProgressMonitor=Monitor, Builder=Builder, OnnxParser=Parser,
        Runtime=Runtime, Weights=record("dtype", "address", "count"),
        PluginField=record("name", "data", "type"), PluginFieldCollection=list,
        PluginFieldType=SimpleNamespace(INT32="i32", FLOAT32="f32"), TensorRTPhase=SimpleNamespace(BUILD="build"),
        PreviewFeature=SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased"), BuilderFlag=SimpleNamespace(TF32="tf32"),
        LayerType=SimpleNamespace(ATTENTION_INPUT="attention", KV_CACHE_UPDATE="kv", MATRIX_MULTIPLY="product"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0),
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        get_plugin_registry=lambda: registry, registry=registry,
        **{name: name for name in ("float32", "float16", "int8", "int32", "int64")},
    )  # fmt: skip
    return made


def record(*names: str) -> Any:
    return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))


# -- building


class Builder:
    def __init__(self, log: Any) -> None:
        self._log = log

    def create_network(self, flags: int) -> Network:
        assert flags == 1, "strongly typed"
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=shapes, set_shape=lambda name, *range_: shapes.update({name: range_}),
            set_shape_input=lambda name, *range_: None,
        )  # fmt: skip

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if network.plugin is None:
            return bytes(network.model.SerializeToString())
        if "aliased" not in config.features:
            self._log.errors.append("a plugin aliases its inputs without kALIASED_PLUGIN_IO_10_03")
            return None
        return MARK + pickle.dumps({**network.plugin, "profiles": config.profiles})


class Config:
    def __init__(self) -> None:
        self.features: set[str] = set()
        self.profiles: list[Any] = []

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.features |= {feature} if on else set()

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile.shapes)

    def clear_flag(self, flag: str) -> None:
        """Nothing here computes in TF32."""

    def create_timing_cache(self, saved: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: saved + b"timed")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
        """Nothing is timed."""


class Network:
    def __init__(self) -> None:
        self.model = onnx.ModelProto()
        self.plugin: dict[str, Any] | None = None
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._layers: list[Any] = []

    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    num_layers = property(lambda self: len(self._layers))

    def get_input(self, i: int) -> Any:
        return self._inputs[i]

    def get_output(self, i: int) -> Any:
        return self._outputs[i]

    def get_layer(self, i: int) -> Any:
        return self._layers[i]

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        self._inputs.append(SimpleNamespace(name=name, dtype=dtype, shape=shape, is_shape_tensor=False, array=None))
        return self._inputs[-1]

    def add_constant(self, shape: tuple[int, ...], weights: Any) -> Any:
        assert weights.count == np.prod(shape)
        array = pretended.at(weights.address, shape, weights.dtype)
        tensor = SimpleNamespace(name="", dtype=weights.dtype, shape=shape, array=array)
        return SimpleNamespace(get_output=lambda i: tensor)

    def add_plugin_v3(self, inputs: list[Any], shape_inputs: list[Any], plugin: Any) -> Any:
        assert not shape_inputs
        fields = plugin.fields
        if "table_dtype" in fields:
            return self._add_tokens(inputs, fields)
        shapes = {"ids": ("int64", (fields["group_size"],))}
        shapes["logits"] = ("float32", (fields["group_size"], fields["codes"]))
        updated = [t for t in inputs if t.array is None and (t.name == "state" or "." in t.name)]
        made = [SimpleNamespace(name="", dtype=dtype, shape=shape) for dtype, shape in shapes.values()]
        made += [SimpleNamespace(name="", dtype=t.dtype, shape=t.shape) for t in updated]
        border = [t for t in inputs if t.array is None]
        assert inputs[: len(border)] == border, "weights come last"
        self.plugin = {
            "fields": fields,
            "inputs": [(t.name, t.dtype) for t in border],
            "constants": [t.array.copy() for t in inputs if t.array is not None],
            "outputs": made,
            "aliases": [None, None, *(t.name for t in updated)],
        }
        return SimpleNamespace(get_output=lambda i: made[i])

    def _add_tokens(self, inputs: list[Any], fields: dict[str, Any]) -> Any:
        """GroupTokens as csrc/ort's op, behind the node that makes its text rows; that op has float32 tables."""
        ids, text, table, *scales = inputs
        values = table.array.copy()
        if scales:
            shape = (fields["codes"], fields["width"])
            values = dequantize(values.view(np.uint8), scales[0].array, shape, 8, fields["table_block"])
        graph = self.model.graph
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), "plugin/table"))
        node = helper.make_node(
            "GroupTokens", ["plugin/table", ids.name, text.name], ["plugin/rows"], domain="edge_sdk"
        )
        at = next(i for i, n in enumerate(graph.node) if text.name in n.output)
        graph.node.insert(at + 1, node)
        self.model.opset_import.append(helper.make_opsetid("edge_sdk", 1))
        rows = SimpleNamespace(name="plugin/rows", dtype="float32", shape=(-1, fields["width"]))
        return SimpleNamespace(get_output=lambda i: rows)

    def mark_output(self, tensor: Any) -> None:
        self._outputs.append(tensor)


class Parser:
    num_errors = 0

    def __init__(self, network: Network, log: Any) -> None:
        self._network, self._large = network, dict[str, tuple[int, int]]()

    def load_model_proto(self, data: bytes) -> bool:
        self._network.model.ParseFromString(data)
        return True

    def load_initializer(self, name: str, address: int, nbytes: int) -> bool:
        self._large[name] = (address, nbytes)
        return True

    def parse_model_proto(self) -> bool:
        graph, network = self._network.model.graph, self._network
        for proto in graph.initializer:
            if proto.name in self._large:
                address, nbytes = self._large[proto.name]
                proto.ClearField("external_data")
                proto.data_location = TensorProto.DEFAULT
                proto.raw_data = ctypes.string_at(address, nbytes)
        for value in graph.input:
            shape = tuple(-1 if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim)
            network.add_input(value.name, "", shape)
            host = value.name in pretended.HOST_INPUTS.get(graph.name, ())
            network.get_input(network.num_inputs - 1).is_shape_tensor = host
        outputs = {v.name for v in graph.output}
        network._layers = [_Layer(node, outputs) for node in graph.node]
        return True


class _Layer:
    """One node, as a layer is asked about."""

    def __init__(self, node: Any, outputs: set[str]) -> None:
        self._node, self._outputs = node, outputs
        self.type, self.name = "kv" if node.op_type == "TensorScatter" else "other", node.name
        self.num_inputs, self.num_outputs = len(node.input), len(node.output)

    def get_input(self, i: int) -> Any:
        return SimpleNamespace(name=self._node.input[i], dtype="") if self._node.input[i] else None

    def get_output(self, i: int) -> Any:
        name = self._node.output[i]
        return SimpleNamespace(name=name, dtype="", is_network_output=name in self._outputs)

    def set_input(self, i: int, tensor: Any) -> None:
        self._node.input[i] = tensor.name


# -- running


class Runtime:
    def __init__(self, log: Any) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: memoryview) -> Any:
        data = bytes(plan)
        if data.startswith(MARK):
            return PluginEngine(pickle.loads(data[len(MARK) :]), self._log)
        return pretended._Runtime(self._log).deserialize_cuda_engine(plan)


class PluginEngine:
    device_memory_size_v2 = 64

    def __init__(self, plan: dict[str, Any], log: Any) -> None:
        self.plan, self.log = plan, log
        self.inputs = dict(plan["inputs"])
        self.outputs = {t.name: t for t in plan["outputs"]}
        self.aliases = dict(zip(self.outputs, plan["aliases"], strict=True))
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)
        self.session = _cpu_op(plan)

    def get_tensor_name(self, i: int) -> str:
        return self._names[i]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_aliased_input_tensor(self, name: str) -> None:
        """What TensorRT says of plugins' aliases is not documented: nothing may rest on it."""

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "user"
        return PluginContext(self)


class PluginContext(pretended._Context):
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        range_ = self._engine.plan["profiles"][self.profile].get(name)
        if range_ and not all(low <= n <= high for low, n, high in zip(range_[0], shape, range_[2], strict=True)):
            return False
        return super().set_input_shape(name, shape)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._engine.outputs[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        places, shapes = dict(self._addresses), dict(self._shapes)
        for name, source in self._engine.aliases.items():
            if source and places[name] != places[source]:
                self._engine.log.errors.append(f"edge_sdk::SpeechHead: {name} does not share the memory of {source}")
                return False
        pretended._STREAMS[stream].do(lambda: _enqueue(self._engine, places, shapes))
        return True


_STATE = np.dtype([("last_id", "<i8"), ("length", "<i4"), ("turn", "<u4"), ("step", "<u4"), ("error", "<i4")])


def _enqueue(engine: PluginEngine, places: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    """One call over the bound memory, as csrc/trt/speech_head_plugin.cc makes it."""
    given = {n: pretended.at(places[n], shapes[n], dtype) for n, dtype in engine.inputs.items()}
    made = {n: pretended.at(places[n], t.shape, t.dtype) for n, t in engine.outputs.items()}
    group, state, words = shapes["kind"] == (2,), given["state"].view(_STATE)[0], given["sampling"]
    made["ids"][:], made["logits"][:] = -1, 0
    if state["error"]:
        return
    seed = int.from_bytes(words[5:].tobytes(), "little")
    control = [group, state["length"], state["last_id"], words[0], words[1], np.uint64(seed).astype(np.int64)]
    scaled, layers = "key_scales.0" in given, engine.plan["fields"]["layers"]
    names = [(f"key_{{}}.{i}", f"value_{{}}.{i}") for i in range(layers)]
    caches = np.stack([[given[n.format("cache")] for n in pair] for pair in names])
    scales = np.stack([[given[n.format("scales")] for n in pair] for pair in names]) if scaled else _NO_SCALES
    feeds = {
        "head_input": given["head_input"], "control": np.array([*control, state["turn"], state["step"], 1], np.int64),
        "sampling": words[2:5].view(np.float32), "seen": given["seen"].view(np.uint8), "forced": given["forced"],
        "rope_cos": given["rope_cos"], "rope_sin": given["rope_sin"],
        "cache": np.ascontiguousarray(caches).view(np.uint8), "cache_scales": scales,
    }  # fmt: skip
    try:
        ids, logits, cache, cache_scales = engine.session.run(None, feeds)
    except Exception as e:  # a kernel cannot refuse: the state says it
        state["error"] = 2 if "NaN" in str(e) else 3 if "cannot take" in str(e) or "full" in str(e) else 1
        return
    for i, pair in enumerate(names):
        for j, name in enumerate(pair):
            given[name.format("cache")][...] = cache.view(caches.dtype)[i, j]
            if scaled:
                given[name.format("scales")][...] = cache_scales[i, j]
    rows = shapes["head_input"][0] * len(ids)
    state["length"] += rows
    if group:
        made["ids"][:], made["logits"][:] = ids, logits
        state["last_id"] = ids[-1]
        state["step"] += 1


_NO_SCALES = np.zeros((1, 1, 1, 1), np.float32)
_SIZES = HEAD_FIELDS[1:12]


def _cpu_op(plan: dict[str, Any]) -> Any:
    """The op over the CPU kernels with the plan's fields and constants, which stand in the plugin's order."""
    fields, left = plan["fields"], iter(plan["constants"])
    inits: list[Any] = []

    def take(matrix: int | None = None) -> list[Array]:
        quantized = matrix is not None and fields["matrix_dtypes"][matrix] >= 2
        found = [next(left) for _ in range(1 + quantized)]
        return [found[0].view(np.uint8), found[1]] if quantized else found

    first, bias, tables, norm = take(0), take(), take(1) + take(2), take()
    vectors, matrices = [*bias, *norm], [*first, *tables]
    for i in range(fields["layers"]):
        for _ in range(4):
            vectors += take()
        for k in range(7):
            matrices += take(3 + 7 * i + k)
    assert next(left, None) is None, "every constant has its place"
    inits = [numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(vectors + matrices)]
    border = ("head_input", "control", "sampling", "seen", "forced", "rope_cos", "rope_sin", "cache", "cache_scales")
    types_ = dict.fromkeys(border, TensorProto.FLOAT) | {"control": TensorProto.INT64, "forced": TensorProto.INT64}
    types_ |= {"seen": TensorProto.UINT8, "cache": TensorProto.UINT8}
    results = {"ids": TensorProto.INT64, "logits": TensorProto.FLOAT, "cache_out": TensorProto.UINT8}
    results["cache_scales_out"] = TensorProto.FLOAT
    node = helper.make_node(
        "SpeechHead", [*border, *(t.name for t in inits)], list(results), domain="edge_sdk",
        **{name: fields[name] for name in _SIZES}, eps=fields["eps"], cache_dtype=fields["cache_dtype"],
        bits=[{2: 8, 3: 4}.get(d, 0) for d in fields["matrix_dtypes"]], blocks=fields["matrix_blocks"],
    )  # fmt: skip
    values = [[helper.make_tensor_value_info(n, t, None) for n, t in side.items()] for side in (types_, results)]
    graph = helper.make_graph([node], "plugin", *values, inits)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edge_sdk", 1)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(native.FOLDER / native.ORT_LIBRARY))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
