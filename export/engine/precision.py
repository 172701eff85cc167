"""float32 graph -> a graph whose heavy ops run in float16, by casts a strongly typed builder cannot undo.

Products, convolutions, attention and KV caches become float16, and so do the weights they read; norms, activations,
rotations and the residual sum stay float32. That is where upstream's bfloat16 range matters and where float16 would
lose it, and at batch 1 none of it reads memory worth mentioning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from edge_sdk.errors import ExportError
from edge_sdk.export.engine.graph import Array, Graph, Rewriter, Tensor

PRECISIONS = ("fp16", "fp32")
# Input positions that become float16, by op; outputs follow, except where the op itself stays typed by its inputs.
HEAVY = {
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Conv": (0, 1, 2),
    "ConvTranspose": (0, 1, 2),
    "Attention": (0, 1, 2),
    "TensorScatter": (0, 1),
}
# silu(gate) * up grows past float16's 65504 in the speech head: a power of two goes out before the product and comes
# back behind it, which is exact but for values that are nothing beside the others.
_WIDE_INPUT, _DOWN = "down_proj", 2.0**-6


def to_half(graph: Graph) -> None:
    """Make the heavy ops of `graph` float16. Float64 and integer values are left alone."""
    _Half(graph).run()


class _Half:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.r = graph, Rewriter(graph)
        self._halves: dict[str, str] = {}  # float32 value -> its float16 one
        self._wide = _float64_values(graph)

    def run(self) -> None:
        for node in self.graph.nodes:
            if any(name in self._wide for name in (*node.input, *node.output)):
                self.r.keep(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif node.op_type == "Gather" and self._is_table(node.input[0]):
                self._gather(node)
            elif node.op_type in HEAVY:
                self._heavy(node)
            else:
                self.r.keep(node)
        self.r.finish()

    def _is_table(self, name: str) -> bool:
        weight = self.graph.weights.get(name)
        return weight is not None and weight.dtype == TensorProto.FLOAT and len(weight.shape) == 2

    def _gather(self, node: onnx.NodeProto) -> None:
        """Tables that are looked up are stored half as wide."""
        out = f"{node.output[0]}/half"
        self._copy(node, [self._half(node.input[0], node.name), node.input[1]], [out])
        self.r.op(node.name, "Cast", out, out=node.output[0], to=TensorProto.FLOAT)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        self._copy(node, [node.input[0], self._half(node.input[1], node.name)], [f"{node.output[0]}/half"])
        self._halves[node.output[0]] = f"{node.output[0]}/half"

    def _heavy(self, node: onnx.NodeProto) -> None:
        wide = node.op_type == "Gemm" and f"/{_WIDE_INPUT}/" in node.name
        inputs = list(node.input)
        if wide:
            down = self.r.constant("engine/down", np.array(_DOWN, np.float32))
            inputs[0] = self.r.op(node.name, "Mul", inputs[0], down)
        for i in HEAVY[node.op_type]:
            if i < len(inputs) and inputs[i]:
                inputs[i] = self._half(inputs[i], node.name)
        if node.op_type == "TensorScatter":  # a cache, in and out: nobody else reads it but attention
            self._copy(node, inputs, list(node.output))
            self.graph.retype(node.output[0], "float16")
            self._halves[node.output[0]] = node.output[0]
            return
        out = f"{node.output[0]}/half"
        self._copy(node, inputs, [out])
        if wide:
            wider = self.r.op(node.name, "Cast", out, to=TensorProto.FLOAT)
            up = self.r.constant("engine/up", np.array(1 / _DOWN, np.float32))
            self.r.op(node.name, "Mul", wider, up, out=node.output[0])
        else:
            self.r.op(node.name, "Cast", out, out=node.output[0], to=TensorProto.FLOAT)

    def _copy(self, node: onnx.NodeProto, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        del made.input[:], made.output[:]
        made.input.extend(inputs)
        made.output.extend(outputs)
        self.r.keep(made)

    def _half(self, name: str, at: str) -> str:
        if name in self._halves:
            return self._halves[name]
        weight, spec = self.graph.weights.get(name), self.graph.inputs.get(name)
        if weight is not None:
            half = half_weight(weight)
            self.graph.weights[half.name] = half
            made = half.name
        elif spec is not None and name.startswith(("key_cache", "value_cache")):
            self.graph.retype(name, "float16")
            made = name
        else:
            made = self.r.op(at, "Cast", name, to=TensorProto.FLOAT16)
        self._halves[name] = made
        return made


def half_weight(weight: Tensor) -> Tensor:
    """The same weight as float16, under a name of its own."""
    return replace(
        weight, name=f"{weight.name}/half", dtype=TensorProto.FLOAT16, load=lambda: _to_half(weight.load(), weight.name)
    )


def _to_half(array: Array, name: str) -> Array:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"weight '{name}' holds values float16 cannot take (up to {np.abs(array).max():g})")
    return half


def _float64_values(graph: Graph) -> set[str]:
    found = {n for n, w in graph.weights.items() if w.dtype == TensorProto.DOUBLE}
    found |= {n for n, s in (*graph.inputs.items(), *graph.outputs.items()) if s.dtype == "float64"}
    return found
