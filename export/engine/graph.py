"""A bundle's graph opened for rewriting. Weights stay in the bundle's mapped files until a parser wants them.

The bundle's own graphs are the source, not the checkpoint and not the code that once wrote them: what was exported,
checked and recorded in the self-test is what is built, also by a later version of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, ExportError
from edge_sdk.tensors import TensorSpec

OPSET = 24  # TensorScatter
IR_VERSION = 11
INLINE_BYTES = 1024

Array = np.ndarray[Any, Any]
_BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4}


@dataclass(frozen=True)
class Tensor:
    """A weight: what it is, and how to get its bytes. `dtype` is an onnx.TensorProto type; 4-bit values are packed."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _bits(self.dtype) // 8

    @classmethod
    def of(cls, name: str, array: Array) -> Tensor:
        return cls(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, lambda: array)


@dataclass(frozen=True)
class PluginLayer:
    """One of our plugins (docs/plugins.md): its creator, its fields, and inputs and outputs in its order.

    `inputs` are of the graph's border and weights, `outputs` of the border.
    """

    creator: str
    fields: Mapping[str, int | float | Sequence[int]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """Nodes in order, the border, the weights by name. Rewrites change it in place.

    Attributes:
        plugin: a layer that is the whole graph; then there are no nodes.
        inner: a layer among the nodes. In the network its output takes the place of the value of the same name; its
            inputs may be what nodes make.
    """

    name: str
    nodes: list[onnx.NodeProto]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    weights: dict[str, Tensor]
    opsets: dict[str, int] = field(default_factory=dict)
    plugin: PluginLayer | None = None
    inner: PluginLayer | None = None

    def fix(self, sizes: Mapping[str, int]) -> None:
        """Give named dimensions of inputs and outputs a size."""
        for border in (self.inputs, self.outputs):
            for name, spec in border.items():
                border[name] = replace(
                    spec, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in spec.shape)
                )

    def retype(self, name: str, dtype: str) -> None:
        for border in (self.inputs, self.outputs):
            if name in border:
                border[name] = replace(border[name], dtype=dtype)

    def model(self) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The ONNX model, and apart from it the weights that are too large to lie inside.

        A protobuf message ends at 2 GB, so a parser is handed those by address.
        """
        used = {name for node in self.nodes for name in node.input}
        large: dict[str, Array] = {}
        protos = []
        for tensor in self.weights.values():
            if tensor.name not in used:
                continue
            array = np.ascontiguousarray(tensor.load())
            if array.nbytes != tensor.nbytes:
                raise ExportError(f"weight '{tensor.name}' has {array.nbytes} bytes, its shape needs {tensor.nbytes}")
            if tensor.nbytes <= INLINE_BYTES:
                protos.append(_proto(tensor, array.tobytes()))
            else:
                protos.append(_external(tensor))
                large[tensor.name] = array
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [_info(s) for s in self.inputs.values()],
            [_info(s) for s in self.outputs.values()],
            protos,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edge_sdk")
        return made, large


def open_graph(bundle: Bundle, key: str) -> Graph:
    """Read a graph of the bundle. Its large weights stay mapped."""
    entry = bundle.manifest.graphs[key]
    data = bundle.read(entry.data) if entry.data else memoryview(b"")
    where = f"bundle '{bundle.path}': graph '{key}'"
    return read_graph(key, bytes(bundle.read(entry.file)), data, entry.input_specs(), entry.output_specs(), where)


def read_graph(
    key: str, model: bytes, data: memoryview, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], where: str
) -> Graph:
    """A graph from its ONNX file and its external data; the border is what the manifest says.

    An op of ours that is given as a function as well is opened as that: engines have plain ops, or plugins in the place
    of some.
    """
    try:
        parsed = inliner.inline_local_functions(onnx.ModelProto.FromString(model))
    except Exception as e:  # onnx has several kinds
        raise BundleError(f"{where}: its functions cannot be opened: {e}") from e
    weights = [_weight(proto, data, where) for proto in parsed.graph.initializer]
    opsets = {o.domain: o.version for o in parsed.opset_import}
    return Graph(
        name=key,
        nodes=list(parsed.graph.node),
        inputs=dict(inputs),
        outputs=dict(outputs),
        weights={w.name: w for w in weights},
        opsets={**opsets, "": OPSET},
    )


def _weight(proto: TensorProto, data: memoryview, where: str) -> Tensor:
    shape = tuple(proto.dims)
    if proto.data_location != TensorProto.EXTERNAL:
        return Tensor(proto.name, proto.data_type, shape, lambda: _array(numpy_helper.to_array(proto)))
    at = {e.key: e.value for e in proto.external_data}
    offset = int(at.get("offset", 0))
    nbytes = math.prod(shape) * _bits(proto.data_type) // 8
    if offset < 0 or offset + nbytes > len(data):
        raise BundleError(f"{where}: weight '{proto.name}' lies past the end of its file; export the bundle again")
    dtype = np.dtype(np.uint8) if proto.data_type in _BITS else helper.tensor_dtype_to_np_dtype(proto.data_type)

    def load() -> Array:
        flat = np.frombuffer(data[offset : offset + nbytes], dtype)
        return flat if proto.data_type in _BITS else flat.reshape(shape)

    return Tensor(proto.name, proto.data_type, shape, load)


def _array(array: Any) -> Array:
    return np.asarray(array)


def _bits(dtype: int) -> int:
    return _BITS.get(dtype) or 8 * helper.tensor_dtype_to_np_dtype(dtype).itemsize


def _proto(tensor: Tensor, data: bytes) -> TensorProto:
    return TensorProto(name=tensor.name, data_type=tensor.dtype, dims=tensor.shape, raw_data=data)


def _external(tensor: Tensor) -> TensorProto:
    proto = TensorProto(name=tensor.name, data_type=tensor.dtype, dims=tensor.shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(tensor.nbytes))):
        proto.external_data.add(key=key, value=value)
    return proto


def _info(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(spec.numpy_dtype)
    return helper.make_tensor_value_info(spec.name, dtype, list(spec.shape))


class Rewriter:
    """Takes a graph's nodes one by one and puts others in their place, named by the address they replace."""

    def __init__(self, graph: Graph, packed: tuple[int, ...] = (4, 8)) -> None:
        """`packed`: widths of quantized weights that stay as they are."""
        self.graph, self.packed = graph, packed
        self.nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()

    def keep(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)

    def op(self, at: str, op_type: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Append a node at address `at`; returns the name of its output."""
        name = self._unique(f"{at}/{op_type}")
        self.nodes.append(helper.make_node(op_type, list(inputs), [out or name], name=name, **attributes))
        return out or name

    def constant(self, name: str, value: Any) -> str:
        """A weight shared by name across the graph."""
        self.graph.weights.setdefault(name, Tensor.of(name, np.asarray(value)))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(f"engine/ints/{'_'.join(map(str, values)) or 'empty'}", np.array(values, np.int64))

    def _unique(self, base: str) -> str:
        name, n = base, 1
        while name in self._names:
            n += 1
            name = f"{base}_{n}"
        self._names.add(name)
        return name

    def finish(self) -> None:
        self.graph.nodes = self.nodes


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def sizes_of(spec: TensorSpec, what: str) -> Sequence[int]:
    """A shape that must be fixed by now."""
    if any(isinstance(d, str) for d in spec.shape):
        raise ExportError(f"{what} '{spec.name}' must have a fixed shape in an engine, found {list(spec.shape)}")
    return [int(d) for d in spec.shape]
