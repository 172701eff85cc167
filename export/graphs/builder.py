"""A small builder of ONNX graphs: scoped names, lazy weights, external data written one tensor at a time.

A node's name is its address in the model, `/backbone/layers.3/attn/q_proj/Gemm`, so that a profile or a parity report
names the layer. Weights are promises: their arrays are made while the data file is written and dropped at once, so that
an export never holds more than one large tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.errors import ExportError
from edge_sdk.export.quantize import KINDS, Scheme
from edge_sdk.export.recipe import Policy
from edge_sdk.tensors import TensorSpec

OPSET = 23  # RMSNormalization
IR_VERSION = 11
MICROSOFT = "com.microsoft"
MICROSOFT_OPSET = 1
EDGE_SDK = "edge_sdk"  # ops of our own: csrc/ort
EDGE_SDK_OPSET = 1

INLINE_BYTES = 1024  # smaller weights stay in the .onnx file
LARGE_BYTES = 1 << 16  # larger ones start on a border of 64 KiB, or of `page`, so that they can be mapped
ALIGN_LARGE, ALIGN_SMALL = 1 << 16, 64
_LOOKED_UP = {
    "Gather": (0,),
    "Slice": (0,),
    "GatherBlockQuantized": (0, 2),
    "GroupTokens": (0, 3),
}  # inputs of which a run reads some rows

Array = np.ndarray[Any, Any]
_ONNX_TYPES = {
    np.dtype(n): helper.np_dtype_to_tensor_dtype(np.dtype(n))
    for n in ("float32", "float64", "float16", "int64", "int32", "uint8", "int8", "bool")
}


@dataclass(frozen=True)
class Weight:
    """A tensor that is made when it is written.

    Attributes:
        load: makes the array, or consecutive parts of it, so that it need not be held whole.
        stored: the weight whose bytes it shares under another shape; "" for one with bytes of its own.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], Array | Iterator[Array]]
    stored: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def place(self) -> str:
        """Weights of one place are the same bytes."""
        return self.stored or self.name

    def pieces(self) -> Iterator[Array]:
        """The array, or consecutive parts of it."""
        made = self.load()
        if isinstance(made, Iterator):
            yield from self._count(made)
            return
        found = np.asarray(made, order="C")  # ascontiguousarray would make a scalar a vector
        if found.shape != self.shape or found.dtype != self.dtype:
            raise ExportError(
                f"weight '{self.name}' came out as {found.dtype}{list(found.shape)}, "
                f"expected {self.dtype}{list(self.shape)}"
            )
        yield found

    def _count(self, parts: Iterator[Array]) -> Iterator[Array]:
        size = 0
        for part in parts:
            size += part.nbytes
            yield np.asarray(part, order="C")
        if size != self.nbytes:
            raise ExportError(f"weight '{self.name}' came out as {size} bytes in parts, expected {self.nbytes}")

    def array(self) -> Array:
        parts = list(self.pieces())
        whole = parts[0] if len(parts) == 1 else np.concatenate([p.reshape(-1) for p in parts])
        return whole.reshape(self.shape)

    @classmethod
    def of(cls, name: str, array: Array) -> Weight:
        return cls(name, array.dtype, array.shape, lambda: array)


class GraphBuilder:
    """Builds one graph. Values are named by strings; `op` returns the name of what it computes.

    Args:
        name: of the graph, and the first part of every node's address.
        data: stem of the external data file; graphs that name the same one are written together and share weights.
        policy: how linear layers, tables and convolutions are stored; float32 without one.
    """

    def __init__(self, name: str, *, data: str = "", policy: Policy | None = None) -> None:
        self.name = name
        self.data = data or name
        self.policy = policy or Policy()
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self._scope: list[str] = [name]
        self._nodes: list[onnx.NodeProto] = []
        self._functions: dict[tuple[str, str], onnx.FunctionProto] = {}
        self._names: set[str] = set()
        self._weights: dict[str, Weight] = {}
        self._narrowed: dict[str, tuple[Weight, Scheme]] = {}
        self._widened: dict[str, str] = {}

    # -- naming

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Everything built inside has `name` in its address."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def _unique(self, leaf: str) -> str:
        base = "/" + "/".join((*self._scope, leaf))
        name, n = base, 1
        while name in self._names:
            n += 1
            name = f"{base}_{n}"
        self._names.add(name)
        return name

    # -- values

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        self.inputs.append(TensorSpec(name, dtype, tuple(shape)))
        return name

    def output(self, value: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare an output. A value that a node already writes under this name (`ops(..., names=)`) stays as it is:
        a cache updated in place must leave its node directly."""
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=self._unique(f"{name}/Identity")))
        self.outputs.append(TensorSpec(name, dtype, tuple(shape)))

    def weight(self, weight: Weight) -> str:
        """Use a weight; the same name twice is the same tensor, stored once."""
        known = self._weights.get(weight.name)
        if known is None:
            self._weights[weight.name] = weight
        elif (known.dtype, known.shape) != (weight.dtype, weight.shape):
            raise ExportError(f"graph '{self.name}': two different weights are called '{weight.name}'")
        return weight.name

    def widened(self, weight: Weight) -> str:
        """A float16 weight as float32, cast once."""
        if weight.name not in self._widened:
            self._widened[weight.name] = self.op("Cast", self.weight(weight), to=TensorProto.FLOAT)
        return self._widened[weight.name]

    def const(self, value: Any, dtype: str = "int64", name: str = "const") -> str:
        """A small constant under the current scope."""
        return self.weight(Weight.of(self._unique(name), np.asarray(value, dtype=dtype)))

    def ints(self, *values: int) -> str:
        """An int64 vector constant, shared by value across the graph."""
        return self.weight(Weight.of(f"ints/{'_'.join(map(str, values)) or 'empty'}", np.asarray(values, np.int64)))

    def scalar(self, value: float, dtype: str = "float32") -> str:
        """A scalar constant, shared by value across the graph."""
        return self.weight(Weight.of(f"scalar/{dtype}/{value!r}", np.asarray(value, dtype)))

    # -- nodes

    def op(
        self, op_type: str, *inputs: str, domain: str = "", names: Sequence[str] | None = None, **attributes: Any
    ) -> str:
        """Append a node with one output and return its value's name."""
        return self.ops(op_type, *inputs, domain=domain, names=names, count=1, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: str,
        count: int,
        domain: str = "",
        names: Sequence[str] | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Append a node with `count` outputs, named by address unless `names` gives them."""
        address = self._unique(op_type)
        outputs = list(names) if names else [address if count == 1 else f"{address}:{i}" for i in range(count)]
        self._nodes.append(helper.make_node(op_type, list(inputs), outputs, name=address, domain=domain, **attributes))
        return outputs

    def define(self, function: onnx.FunctionProto) -> None:
        """Say what an op of our own means in others, for runtimes without it. One meaning a graph."""
        known = self._functions.setdefault((function.domain, function.name), function)
        if known != function:
            raise ExportError(f"graph '{self.name}': '{function.domain}::{function.name}' is defined in two ways")

    # -- writing

    @property
    def bytes_read(self) -> int:
        """Bytes of weights, as they are stored, that one run must read whole: tables that are only looked up are not
        counted, of experts the active share. With the cache this sets the physical limit of a decode step."""
        total = 0.0
        counted: set[str] = set()
        widened = {n.output[0]: n.input[0] for n in self._nodes if n.op_type == "Cast" and n.input[0] in self._weights}
        for node in self._nodes:
            if node.op_type == "Cast":
                continue
            looked_up = _LOOKED_UP.get(node.op_type, ())
            share = 1.0
            if node.op_type in ("MoE", "QMoE"):
                active = next(a.i for a in node.attribute if a.name == "k")
                share = active / self._weights[widened.get(node.input[2], node.input[2])].shape[0]
            for position, name in enumerate(node.input):
                weight = self._weights.get(widened.get(name, name))
                if weight and weight.place not in counted and position not in looked_up:
                    counted.add(weight.place)
                    total += weight.nbytes * (share if position >= 2 else 1.0)
        return int(total)

    def narrow(self, source: Weight, scheme: Scheme) -> None:
        """Remember that a weight is stored as something less than the float32 of its source."""
        self._narrowed[source.name] = (source, scheme)

    @property
    def narrowed(self) -> tuple[tuple[Weight, Scheme], ...]:
        """The weights that are stored as less than float32: their source, and how."""
        return tuple(self._narrowed.values())

    @property
    def precision(self) -> str:
        """The narrowest kind of number among the linear layers, tables and convolutions."""
        return max((scheme.kind for _, scheme in self.narrowed), key=KINDS.index, default="fp32")

    @property
    def has_external_data(self) -> bool:
        return any(w.nbytes > INLINE_BYTES for w in self._weights.values())

    @property
    def ops_used(self) -> tuple[str, ...]:
        """Of its nodes, and of the functions it defines."""
        return tuple(sorted({f"{n.domain}::{n.op_type}" for n in self._every_node()}))

    def _every_node(self) -> Iterator[onnx.NodeProto]:
        yield from self._nodes
        for function in self._functions.values():
            yield from function.node

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight the graph uses, in the order in which it came to."""
        return tuple(self._weights.values())

    def model(self, location: str, offsets: Mapping[str, int]) -> onnx.ModelProto:
        """The finished model; weights whose place is in `offsets` lie there in the file `location`, others in it."""
        initializers = [
            _external_proto(w, location, offsets[w.place])
            if w.place in offsets
            else numpy_helper.from_array(w.array(), w.name)
            for w in self.weights
        ]
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value_info(s) for s in self.inputs],
            [_value_info(s) for s in self.outputs],
            initializers,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        for domain, version in ((MICROSOFT, MICROSOFT_OPSET), (EDGE_SDK, EDGE_SDK_OPSET)):
            if any(n.domain == domain for n in self._every_node()):
                opsets.append(helper.make_opsetid(domain, version))
        functions = list(self._functions.values())
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edge_sdk", functions=functions
        )

    def save(self, onnx_path: Path, data_path: Path) -> int:
        """Write the model and its external data; returns the bytes of data (0: there is no data file)."""
        return save_together([(self, onnx_path)], data_path)


def save_together(graphs: Sequence[tuple[GraphBuilder, Path]], data_path: Path, page: int = ALIGN_LARGE) -> int:
    """Write models that share one data file: a weight of the same name in two of them is stored once.

    Args:
        page: large weights begin on borders of so many bytes.

    Returns the bytes of data (0: there is no data file).
    """
    external: dict[str, Weight] = {}
    for g, _ in graphs:
        for weight in g.weights:
            if weight.nbytes <= INLINE_BYTES:
                continue
            known = external.setdefault(weight.place, weight)
            same_shape = known.shape == weight.shape or known.name != weight.name
            if not same_shape or (known.dtype, known.nbytes) != (weight.dtype, weight.nbytes):
                raise ExportError(
                    f"graph '{g.name}': weight '{weight.name}' differs from the one that '{data_path.name}' holds"
                )
    offsets = _layout(external, page)
    if external:
        with data_path.open("wb") as file:
            for place, weight in external.items():
                file.seek(offsets[place])
                for piece in weight.pieces():
                    file.write(piece.data)
                    del piece  # before the next one is made
    for g, onnx_path in graphs:
        onnx_path.write_bytes(g.model(data_path.name, offsets).SerializeToString(deterministic=True))
    return data_path.stat().st_size if external else 0


def _layout(weights: Mapping[str, Weight], page: int) -> dict[str, int]:
    offsets, at = {}, 0
    for place, weight in weights.items():
        align = page if weight.nbytes >= LARGE_BYTES else ALIGN_SMALL
        at = -(-at // align) * align
        offsets[place] = at
        at += weight.nbytes
    return offsets


def _external_proto(weight: Weight, location: str, offset: int) -> TensorProto:
    proto = TensorProto(name=weight.name, data_type=_ONNX_TYPES[weight.dtype], dims=weight.shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(weight.nbytes))):
        proto.external_data.add(key=key, value=value)
    return proto


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _ONNX_TYPES[spec.numpy_dtype], list(spec.shape))
