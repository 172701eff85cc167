"""The speech head as a layer of our own: docs/plugins.md's SpeechHead over the bundle's bytes of weights.

For libraries that have plugin layers. The source is the bundle's fused graph, whose one node names the same weights in
another order (csrc/ort/speech_head_op.cc).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import TensorProto

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ExportError
from edge_sdk.export.engine.graph import Graph, PluginLayer, Tensor, attributes, open_graph
from edge_sdk.export.engine.precision import half_weight
from edge_sdk.manifest import FUSED_GRAPH
from edge_sdk.tensors import TensorSpec

CREATOR = "SpeechHead"
STATE_WORDS, SAMPLING_WORDS = 6, 7  # SpeechHeadCudaState and SpeechHeadCudaSampling as int32
_OP_WEIGHTS = 9  # the node's first input that is a weight
_LAYER_VECTORS, _LAYER_MATRICES = 4, 7
_SIZES = (
    "group_size", "hidden", "width", "layers", "heads", "kv_heads", "head_dim", "cache_head_dim", "intermediate",
    "codes", "bos",
)  # fmt: skip
_CACHE = {0: "float32", 1: "float16", 2: "int8"}  # by edge_sdk_dtype
_HALF = 1
_QUANTIZED = {8: 2, 4: 3}


@dataclass(frozen=True)
class _Matrix:
    """One matrix: its tensors (values, then scales if it is quantized) and how the plugin's fields name it."""

    tensors: tuple[Tensor, ...]
    dtype: int
    block: int
    scale_dtype: int


def head_graph(bundle: Bundle, capacity: int, precision: str) -> Graph:
    """A graph of one plugin layer, for caches of `capacity` positions of the head.

    In "fp16" what the bundle has in float32 of matrices and caches becomes float16.

    Raises:
        ExportError: the bundle's fused graph is not one of a SpeechHead.
    """
    source = open_graph(bundle, FUSED_GRAPH)
    if [n.op_type for n in source.nodes] != [CREATOR]:
        raise ExportError(f"graph '{FUSED_GRAPH}' is not one SpeechHead op: this build-engine is older than the bundle")
    node = source.nodes[0]
    given = attributes(node)
    cache_dtype = int(given["cache_dtype"]) or int(precision == "fp16")
    vectors, matrices = _weights(source, node, given, precision)
    inputs = _inputs(given, cache_dtype, capacity)
    outputs = _outputs(given, inputs)
    weights = list(_in_order(int(given["layers"]), vectors, matrices))
    fields: dict[str, int | float | list[int]] = {
        "logits": 1, **{name: int(given[name]) for name in _SIZES}, "eps": float(given["eps"]),
        "cache_dtype": cache_dtype, "matrix_dtypes": [m.dtype for m in matrices],
        "matrix_blocks": [m.block for m in matrices], "matrix_scale_dtypes": [m.scale_dtype for m in matrices],
    }  # fmt: skip
    layer = PluginLayer(CREATOR, fields, (*inputs, *(w.name for w in weights)), tuple(outputs))
    return Graph(FUSED_GRAPH, [], inputs, outputs, {w.name: w for w in weights}, plugin=layer)


def _inputs(given: dict[str, Any], cache_dtype: int, capacity: int) -> dict[str, TensorSpec]:
    rope = (capacity, given["head_dim"] // 2)
    rows = (given["kv_heads"], capacity, given["cache_head_dim"])
    specs = [
        TensorSpec("head_input", "float32", ("S", given["hidden"])),
        TensorSpec("kind", "int32", ("kind",)),
        TensorSpec("state", "int32", (STATE_WORDS,)),
        TensorSpec("sampling", "int32", (SAMPLING_WORDS,)),
        TensorSpec("seen", "int8", (given["codes"],)),
        TensorSpec("forced", "int64", (given["group_size"],)),
        TensorSpec("rope_cos", "float32", rope),
        TensorSpec("rope_sin", "float32", rope),
    ]
    for i in range(given["layers"]):
        specs += [TensorSpec(f"{name}_cache.{i}", _CACHE[cache_dtype], rows) for name in ("key", "value")]
        if _CACHE[cache_dtype] == "int8":
            specs += [TensorSpec(f"{name}_scales.{i}", "float32", rows[:2]) for name in ("key", "value")]
    return {s.name: s for s in specs}


def _outputs(given: dict[str, Any], inputs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    made = [
        TensorSpec("ids", "int64", (given["group_size"],)),
        TensorSpec("logits", "float32", (given["group_size"], given["codes"])),
    ]
    for name, spec in inputs.items():
        kind, dot, layer = name.partition(".")
        if dot or name == "state":
            made.append(replace(spec, name=f"{kind}_out{dot}{layer}"))
    return {s.name: s for s in made}


def _weights(
    source: Graph, node: onnx.NodeProto, given: dict[str, Any], precision: str
) -> tuple[list[Tensor], list[_Matrix]]:
    names = iter(node.input[_OP_WEIGHTS:])
    vectors = [source.weights[next(names)] for _ in range(2 + _LAYER_VECTORS * given["layers"])]
    matrices = []
    for bits, block in zip(given["bits"], given["blocks"], strict=True):
        values = source.weights[next(names)]
        if bits:
            scales = source.weights[next(names)]
            tensors = (_bytes(values), _rows(scales, values.shape[0]))
            matrices.append(_Matrix(tensors, _QUANTIZED[bits], block, int(scales.dtype == TensorProto.FLOAT16)))
        else:
            if precision == "fp16" and values.dtype == TensorProto.FLOAT:
                values = half_weight(values)
            matrices.append(_Matrix((values,), _HALF if values.dtype == TensorProto.FLOAT16 else 0, 0, 0))
    return vectors, matrices


def _bytes(values: Tensor) -> Tensor:
    """Packed values [rows, ...] uint8 -> [rows, bytes of a row] INT8: the plugin's type for bytes."""
    shape = (values.shape[0], math.prod(values.shape[1:]))
    return replace(values, dtype=TensorProto.INT8, shape=shape, load=lambda: values.load().view("int8").reshape(shape))


def _rows(scales: Tensor, rows: int) -> Tensor:
    shape = (rows, math.prod(scales.shape) // rows)
    return replace(scales, shape=shape, load=lambda: scales.load().reshape(shape))


def _in_order(layers: int, vectors: list[Tensor], matrices: list[_Matrix]) -> Iterator[Tensor]:
    """The op has vectors first; the plugin has every layer together."""
    input_bias, final_norm, *norms = vectors
    first, *tables = matrices[:3]
    yield from first.tensors
    yield input_bias
    for table in tables:
        yield from table.tensors
    yield final_norm
    for i in range(layers):
        yield from norms[_LAYER_VECTORS * i : _LAYER_VECTORS * (i + 1)]
        for matrix in matrices[3 + _LAYER_MATRICES * i : 3 + _LAYER_MATRICES * (i + 1)]:
            yield from matrix.tensors
