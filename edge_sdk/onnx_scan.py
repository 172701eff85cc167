"""Reads just enough of an ONNX file to say which ops and which external files it names.

The device has no `onnx` package, and a bundle is checked before a runtime parses it. This walks the protobuf wire
format of ModelProto (onnx.proto, IR version 3 and later) and skips every field it does not need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge_sdk.errors import BundleError

MAX_DEPTH = 32  # nested subgraphs; ours have none, a hostile file may have thousands

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
    """Walk a serialized ModelProto. Raises BundleError if it is not one."""
    found, graphs = _Found(), 0
    for number, value in _fields(memoryview(model), where):
        if number == _MODEL_GRAPH:
            graphs += 1
            found.graph(_message(value, where), where, 0)
        elif number == _MODEL_FUNCTIONS:
            found.function(_message(value, where), where)
        elif number == _MODEL_TRAINING:
            raise BundleError(f"'{where}' carries training graphs, which a bundle never has")
    if graphs != 1:
        raise BundleError(f"'{where}' is not an ONNX model: it holds {graphs} graphs, expected 1")
    return GraphScan(frozenset(found.ops), frozenset(found.functions), frozenset(found.files))


class _Found:
    def __init__(self) -> None:
        self.ops: set[str] = set()
        self.functions: set[str] = set()
        self.files: set[str] = set()

    def graph(self, data: memoryview, where: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise BundleError(f"'{where}' nests graphs more than {MAX_DEPTH} deep")
        for number, value in _fields(data, where):
            if number == _GRAPH_NODE:
                self.node(_message(value, where), where, depth)
            elif number == _GRAPH_INITIALIZER:
                self.tensor(_message(value, where), where)
            elif number == _GRAPH_SPARSE:
                self.sparse(_message(value, where), where)

    def function(self, data: memoryview, where: str) -> None:
        name = domain = ""
        for number, value in _fields(data, where):
            if number == _FUNCTION_NAME:
                name = _text(value, where)
            elif number == _FUNCTION_DOMAIN:
                domain = _text(value, where)
            elif number == _FUNCTION_NODE:
                self.node(_message(value, where), where, 0)
            elif number == _FUNCTION_DEFAULT:
                self.attribute(_message(value, where), where, 0)
        self.functions.add(f"{domain}::{name}")

    def node(self, data: memoryview, where: str, depth: int) -> None:
        op = domain = ""
        for number, value in _fields(data, where):
            if number == _NODE_OP_TYPE:
                op = _text(value, where)
            elif number == _NODE_DOMAIN:
                domain = _text(value, where)
            elif number == _NODE_ATTRIBUTE:
                self.attribute(_message(value, where), where, depth)
        self.ops.add(f"{'' if domain == 'ai.onnx' else domain}::{op}")

    def attribute(self, data: memoryview, where: str, depth: int) -> None:
        for number, value in _fields(data, where):
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self.tensor(_message(value, where), where)
            elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                self.sparse(_message(value, where), where)
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                self.graph(_message(value, where), where, depth + 1)

    def sparse(self, data: memoryview, where: str) -> None:
        for number, value in _fields(data, where):
            if number in (_SPARSE_VALUES, _SPARSE_INDICES):
                self.tensor(_message(value, where), where)

    def tensor(self, data: memoryview, where: str) -> None:
        for number, value in _fields(data, where):
            if number != _TENSOR_EXTERNAL:
                continue
            entry = dict(_fields(_message(value, where), where))
            if _text(entry.get(_ENTRY_KEY, b""), where) == "location":
                self.files.add(_text(entry.get(_ENTRY_VALUE, b""), where))


def _message(value: memoryview | int | bytes, where: str) -> memoryview:
    if not isinstance(value, memoryview):
        raise BundleError(f"'{where}' is not an ONNX model: a number stands where a message belongs")
    return value


def _text(value: memoryview | int | bytes, where: str) -> str:
    if isinstance(value, int):  # a parser skips it and keeps the text before: what we would report is not what runs
        raise BundleError(f"'{where}' is not an ONNX model: a number stands where a name belongs")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as e:
        raise BundleError(f"'{where}' is not an ONNX model: a name is not UTF-8") from e


def _fields(data: memoryview, where: str) -> Iterator[tuple[int, memoryview | int]]:
    """Yield (field number, value) of one message: bytes for length-delimited fields, an int for the others."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at, where)
        number, wire = key >> 3, key & 7
        if key > _MAX_KEY or not number:
            raise BundleError(f"'{where}' is not an ONNX model: a field key {key:#x}")
        if wire == 0:
            value, at = _varint(data, at, where)
            yield number, value
        elif wire == 2:
            length, at = _varint(data, at, where)
            if at + length > end:
                raise BundleError(f"'{where}' is cut short or not an ONNX model")
            yield number, data[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise BundleError(f"'{where}' is cut short or not an ONNX model")
        else:
            raise BundleError(f"'{where}' is not an ONNX model: wire type {wire} at byte {at}")


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
