"""Narrow weights for a builder: blocks (csrc/kernels/matrix.h) -> DequantizeLinear, which it fuses into the product;
those of convolutions and tables widened.

The bytes stay as they are but for the zero point: the bundle's 4-bit values are q in 0..15 with value (q - 8) * scale,
ONNX's INT4 is q - 8 in two's complement, so flipping the top bit of each value is all; likewise for 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_sdk.errors import ExportError
from edge_sdk.export.engine.graph import Array, Rewriter, Tensor, attributes

_FLIP = {4: np.uint8(0x88), 8: np.uint8(0x80)}
_ONNX = {4: TensorProto.INT4, 8: TensorProto.INT8}


def packed_bits(sm: int) -> tuple[int, ...]:
    """Which of the bundle's quantized widths a GPU multiplies as they are; others are widened when it is built."""
    return (4, 8) if sm >= 80 else (8,)


def matmul_nbits(r: Rewriter, node: onnx.NodeProto) -> None:
    """A [S, K], B [N, blocks, bytes], scales [N, blocks] -> DequantizeLinear and Gemm."""
    given, at = attributes(node), node.name
    a, packed, scales, *rest = node.input
    bits, block, rows, cols = given["bits"], given["block_size"], given["N"], given["K"]
    bias = rest[2] if len(rest) > 2 else ""
    if any(rest[:2]) or bits not in _FLIP:
        raise ExportError(f"{at}: MatMulNBits with zero points or {bits} bits has no form here; symmetric 4 and 8 have")
    weight = _dequantized(r, at, (packed, scales), (rows, cols), bits, block)
    r.op(at, "Gemm", a, weight, *((bias,) if bias else ()), out=node.output[0], transB=1)


def gather_block_quantized(r: Rewriter, node: onnx.NodeProto) -> None:
    """A table whose rows are looked up is widened when the engine is built: no layer dequantizes single rows."""
    given, at = attributes(node), node.name
    table, ids, scales, *rest = node.input
    bits, block = given.get("bits", 4), given["block_size"]
    if any(rest) or bits not in _FLIP:
        raise ExportError(f"{at}: GatherBlockQuantized with zero points or {bits} bits has no form here")
    found = r.graph.weights[table]
    rows, cols = found.shape[0], found.shape[-1] * (8 // bits if found.dtype == TensorProto.UINT8 else 1)
    r.op(at, "Gather", _widened(r, at, (table, scales), (rows, cols), bits, block), ids, out=node.output[0], axis=0)


def convolution(r: Rewriter, node: onnx.NodeProto) -> None:
    """A kernel that nodes make of narrow weights becomes one weight, which is widened when the engine is built."""
    kernel = node.input[1]
    made = [] if kernel in r.graph.weights else _made_of_weights(r, kernel)
    if made:
        name = f"engine/{kernel}/widened"

        def load() -> Array:
            return _computed(r, made, kernel)

        r.graph.weights[name] = Tensor(name, TensorProto.FLOAT, load().shape, load)
        node.input[1] = name
    r.keep(node)


def _made_of_weights(r: Rewriter, value: str) -> list[onnx.NodeProto]:
    """The nodes behind a value, in order; none if it is made of anything but weights."""
    wanted, nodes = {value}, []
    for node in reversed(r.nodes):
        if wanted & set(node.output):
            nodes.append(node)
            wanted = (wanted - set(node.output)) | {n for n in node.input if n and n not in r.graph.weights}
    return [] if wanted else nodes[::-1]


def _computed(r: Rewriter, nodes: list[onnx.NodeProto], value: str) -> Array:
    """What nodes make of weights, float32."""
    names = dict.fromkeys(n for node in nodes for n in node.input if n in r.graph.weights)
    weights = [numpy_helper.from_array(np.ascontiguousarray(r.graph.weights[n].load()), n) for n in names]
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
    opset = helper.make_opsetid("", r.graph.opsets[""])
    graph = helper.make_graph(nodes, "kernel", [], [output], weights)
    values: Any = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset])).run(None, {})
    return np.asarray(values[0])


def _dequantized(r: Rewriter, at: str, names: tuple[str, str], shape: tuple[int, int], bits: int, block: int) -> str:
    """The float32 matrix `shape`, dequantized in the graph where the builder keeps it packed."""
    rows, cols = shape
    if bits not in r.packed or cols % block:
        return _widened(r, at, names, shape, bits, block)
    packed, scales = (_weight(r, at, n) for n in names)
    name = f"engine/{packed.name}/int{bits}"
    r.graph.weights[name] = Tensor(name, _ONNX[bits], shape, lambda: packed.load().reshape(rows, -1) ^ _FLIP[bits])
    scale_name = f"engine/{scales.name}"
    r.graph.weights[scale_name] = Tensor(
        scale_name, TensorProto.FLOAT, (rows, cols // block),
        lambda: scales.load().reshape(rows, -1).astype(np.float32),
    )  # fmt: skip
    return r.op(at, "DequantizeLinear", name, scale_name, axis=1, block_size=block)


def _weight(r: Rewriter, at: str, name: str) -> Tensor:
    """A weight, as it is stored: scales in float16 are read through a Cast, for ONNX Runtime's sake."""
    if name not in r.graph.weights:
        maker = next((n for n in r.nodes if name in n.output), None)
        if maker is None or maker.op_type != "Cast" or maker.input[0] not in r.graph.weights:
            raise ExportError(
                f"{at}: '{name}' is no weight: quantized matrices whose scales are computed have no form here"
            )
        name = maker.input[0]
    return r.graph.weights[name]


def _widened(r: Rewriter, at: str, names: tuple[str, str], shape: tuple[int, int], bits: int, block: int) -> str:
    packed, scales = (_weight(r, at, n) for n in names)
    name = f"engine/{packed.name}/widened"
    r.graph.weights[name] = Tensor(
        name, TensorProto.FLOAT, shape, lambda: dequantize(packed.load(), scales.load(), shape, bits, block)
    )
    return name


def dequantize(packed: Array, scales: Array, shape: tuple[int, int], bits: int, block: int) -> Array:
    """The matrix [rows, cols] that the packed bytes stand for, float32."""
    rows, cols = shape
    values = np.ascontiguousarray(packed).view(np.uint8).reshape(rows, -1)
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(rows, -1)
    centred = values.astype(np.float32) - np.float32(1 << (bits - 1))
    scale = np.repeat(scales.reshape(rows, -1).astype(np.float32), block, axis=1)
    return np.ascontiguousarray((centred * scale[:, : centred.shape[1]])[:, :cols])
