"""Reads just enough of an ONNX file to say which ops and which external files it names, and refuses what no bundle has.

The device has no `onnx` package, and a bundle is checked before a runtime parses it. This walks the protobuf wire
format of ModelProto (onnx.proto, IR version 3 and later) and skips every field it does not need.

A runtime copies a function's body into the graph wherever it is called, so a file of 2 KB whose functions call each
other can stand for 2^30 nodes, and one of 1 MB for gigabytes. Ours is called once and calls nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from edge_sdk.errors import BundleError

# What a file may define as functions in plain ops: our own ops, which a runtime without our library reads so.
FUNCTIONS = frozenset({"edge_sdk::GroupTokens"})
# Weights lie in files of their own: the tests' random bundle, of two layers, has graphs of up to 171 KB, 674 nodes and
# 9,300 fields. 65,000 plain nodes onnxruntime opened in 4 s and 0.4 GB.
MAX_BYTES = 16 << 20
MAX_NODES = 1 << 16
MAX_FIELDS = 1 << 20  # 1.4 s of walking

# field numbers of onnx.proto
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN, _FUNCTION_DEFAULT = 1, 7, 10, 11
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
# A parser in C++ drops the bits of a field's key past 32 and then sees another field than the one written here.
_MAX_KEY = 2**32 - 1


@dataclass(frozen=True)
class GraphScan:
    """Ops as "domain::name" ("::name" for the ONNX domain), functions the model defines, external file names."""

    ops: frozenset[str]
    functions: frozenset[str]
    external_files: frozenset[str]


def scan(model: bytes | memoryview, where: str) -> GraphScan:
    """Walk a serialized ModelProto.

    Raises:
        BundleError: it is not one, or it has what no bundle has: training graphs, graphs inside of nodes (If, Loop,
            Scan), other functions than `FUNCTIONS`, functions that call functions, or more of anything than fits.
    """
    if len(model) > MAX_BYTES:
        raise BundleError(f"'{where}' has {len(model)} bytes, more than any graph of a bundle ({MAX_BYTES})")
    return _Scanner(where).model(memoryview(model))


@dataclass
class _Body:
    """What a graph or a function calls, and what a runtime would copy of it."""

    size: int  # bytes
    nodes: int = 0
    attributes: int = 0
    calls: dict[str, list[int]] = field(default_factory=dict)  # op -> bytes of each node that calls it


class _Scanner:
    def __init__(self, where: str) -> None:
        self._where = where
        self._left = MAX_FIELDS
        self._files: set[str] = set()

    def model(self, data: memoryview) -> GraphScan:
        graphs: list[_Body] = []
        functions: dict[str, _Body] = {}
        for number, value in self._fields(data):
            if number == _MODEL_GRAPH:
                graphs.append(self._graph(self._message(value)))
            elif number == _MODEL_FUNCTIONS:
                name, body = self._function(self._message(value))
                if name in functions:
                    raise BundleError(f"'{self._where}' defines the function '{name[:80]}' twice")
                functions[name] = body
            elif number == _MODEL_TRAINING:
                raise BundleError(f"'{self._where}' carries training graphs, which a bundle never has")
        if len(graphs) != 1:
            raise BundleError(f"'{self._where}' is not an ONNX model: it holds {len(graphs)} graphs, expected 1")
        self._check_functions(functions)
        self._check_opened(len(data), graphs[0], functions)
        ops = {op for body in (*graphs, *functions.values()) for op in body.calls}
        return GraphScan(frozenset(ops), frozenset(functions), frozenset(self._files))

    def _check_functions(self, functions: dict[str, _Body]) -> None:
        for name, body in functions.items():
            if name not in FUNCTIONS:
                raise BundleError(
                    f"'{self._where}' defines the function '{name[:80]}'; a bundle's may define {', '.join(FUNCTIONS)}"
                )
            inner = sorted(FUNCTIONS & set(body.calls))
            if inner:
                raise BundleError(
                    f"'{self._where}': function '{name}' calls '{inner[0]}', and functions call none here"
                )

    def _check_opened(self, size: int, graph: _Body, functions: dict[str, _Body]) -> None:
        """How large it is with every call replaced by the function's body. An attribute of the call may stand in any
        attribute of the body, so each counts with the whole node."""
        nodes = graph.nodes
        for name, body in functions.items():
            calls = graph.calls.get(name, [])
            nodes += len(calls) * body.nodes + body.nodes
            size += len(calls) * body.size + sum(calls) * body.attributes
        if nodes > MAX_NODES or size > MAX_BYTES:
            raise BundleError(
                f"'{self._where}' has, with its functions opened, {nodes} nodes and {size} bytes, "
                f"more than any graph of a bundle ({MAX_NODES} and {MAX_BYTES})"
            )

    def _graph(self, data: memoryview) -> _Body:
        body = _Body(len(data))
        for number, value in self._fields(data):
            if number == _GRAPH_NODE:
                self._node(self._message(value), body)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(self._message(value))
            elif number == _GRAPH_SPARSE:
                self._sparse(self._message(value))
        return body

    def _function(self, data: memoryview) -> tuple[str, _Body]:
        name = domain = ""
        body = _Body(len(data))
        for number, value in self._fields(data):
            if number == _FUNCTION_NAME:
                name = self._text(value)
            elif number == _FUNCTION_DOMAIN:
                domain = self._text(value)
            elif number == _FUNCTION_NODE:
                self._node(self._message(value), body)
            elif number == _FUNCTION_DEFAULT:
                self._attribute(self._message(value))
        return f"{domain}::{name}", body

    def _node(self, data: memoryview, body: _Body) -> None:
        op = domain = ""
        for number, value in self._fields(data):
            if number == _NODE_OP_TYPE:
                op = self._text(value)
            elif number == _NODE_DOMAIN:
                domain = self._text(value)
            elif number == _NODE_ATTRIBUTE:
                self._attribute(self._message(value))
                body.attributes += 1
        body.nodes += 1
        body.calls.setdefault(f"{'' if domain == 'ai.onnx' else domain}::{op}", []).append(len(data))

    def _attribute(self, data: memoryview) -> None:
        for number, value in self._fields(data):
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self._tensor(self._message(value))
            elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                self._sparse(self._message(value))
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                raise BundleError(
                    f"'{self._where}' has graphs inside of nodes (If, Loop, Scan), which a bundle never has"
                )

    def _sparse(self, data: memoryview) -> None:
        for number, value in self._fields(data):
            if number in (_SPARSE_VALUES, _SPARSE_INDICES):
                self._tensor(self._message(value))

    def _tensor(self, data: memoryview) -> None:
        for number, value in self._fields(data):
            if number != _TENSOR_EXTERNAL:
                continue
            entry = dict(self._fields(self._message(value)))
            if self._text(entry.get(_ENTRY_KEY, b"")) == "location":
                self._files.add(self._text(entry.get(_ENTRY_VALUE, b"")))

    def _message(self, value: memoryview | int | bytes) -> memoryview:
        if not isinstance(value, memoryview):
            raise BundleError(f"'{self._where}' is not an ONNX model: a number stands where a message belongs")
        return value

    def _text(self, value: memoryview | int | bytes) -> str:
        if isinstance(value, int):  # a parser skips it and keeps the text before: what we would report is not what runs
            raise BundleError(f"'{self._where}' is not an ONNX model: a number stands where a name belongs")
        try:
            return bytes(value).decode()
        except UnicodeDecodeError as e:
            raise BundleError(f"'{self._where}' is not an ONNX model: a name is not UTF-8") from e

    def _fields(self, data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
        """Yield (field number, value) of one message: bytes for length-delimited fields, an int for the others."""
        at, end = 0, len(data)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise BundleError(f"'{self._where}' has more than {MAX_FIELDS} fields, more than any graph of a bundle")
            key, at = _varint(data, at, self._where)
            number, wire = key >> 3, key & 7
            if key > _MAX_KEY or not number:
                raise BundleError(f"'{self._where}' is not an ONNX model: a field key {key:#x}")
            if wire == 0:
                value, at = _varint(data, at, self._where)
                yield number, value
            elif wire == 2:
                length, at = _varint(data, at, self._where)
                if at + length > end:
                    raise BundleError(f"'{self._where}' is cut short or not an ONNX model")
                yield number, data[at : at + length]
                at += length
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
                if at > end:
                    raise BundleError(f"'{self._where}' is cut short or not an ONNX model")
            else:
                raise BundleError(f"'{self._where}' is not an ONNX model: wire type {wire} at byte {at}")


def _varint(data: memoryview, at: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise BundleError(f"'{where}' is cut short or not an ONNX model")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
