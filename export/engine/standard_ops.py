"""ONNX Runtime's own ops -> standard ones (opset 24), which TensorRT's parser turns into its native layers.

Attention over a cache becomes TensorScatter (written in place) and Attention under an explicit mask. Neither
`is_causal` nor `nonpad_kv_seqlen` is used: TensorRT-RTX 1.7's parser ignores the second and anchors the first at the
wrong corner of the cache (docs/NOTES.md), while a mask means the same to every reader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edge_sdk.errors import ExportError
from edge_sdk.export.engine.graph import Graph, Rewriter, attributes, sizes_of
from edge_sdk.export.engine.quantized import convolution, gather_block_quantized, matmul_nbits

_HEAD_AXIS, _ROW_AXIS = 1, 2  # of [1, heads, rows, head]


def to_standard_ops(graph: Graph, packed: tuple[int, ...] = (4, 8)) -> None:
    """Rewrite every node that is not of the standard; cache capacities must be fixed before.

    Args:
        packed: bits of quantized weights that the target multiplies as they are (`quantized.packed_bits`).
    Raises:
        ExportError: the ops that have no standard form here, with the addresses of their nodes.
    """
    r = Rewriter(graph, packed)
    strange: dict[str, str] = {}
    shared = _CachePositions(r)
    for node in graph.nodes:
        if node.op_type == "GroupQueryAttention":
            _grouped_query_attention(r, node, shared)
        elif node.op_type in _SIMPLE:
            _SIMPLE[node.op_type](r, node)
        else:
            if node.domain not in ("", "ai.onnx"):
                strange.setdefault(f"{node.domain}::{node.op_type}", node.name)
            r.keep(node)
    if strange:
        listed = "; ".join(f"{op} (first at {at})" for op, at in strange.items())
        advice = " Mixture-of-experts backbones run on the onnxruntime runtimes only." if _has_experts(strange) else ""
        raise ExportError(f"graph '{graph.name}' cannot become an engine yet: no standard form of {listed}.{advice}")
    _drop_folded(r)
    r.finish()
    graph.opsets = {"": graph.opsets[""]}


def _drop_folded(r: Rewriter) -> None:
    """Nodes that make something of weights alone and that nobody reads any more: casts of scales, a kernel's."""
    constant: set[str] = set(r.graph.weights)
    for node in r.nodes:
        if all(name in constant for name in node.input):
            constant.update(node.output)
    read = set(r.graph.outputs) | set(r.graph.inner.inputs if r.graph.inner else ())
    kept = []
    for node in reversed(r.nodes):
        if not constant.issuperset(node.output) or read & set(node.output):
            kept.append(node)
            read.update(node.input)
    r.nodes = kept[::-1]


def _has_experts(ops: dict[str, str]) -> bool:
    return any(op.rpartition("::")[2] in ("MoE", "QMoE") for op in ops)


class _CachePositions:
    """What all layers of a graph share: where new rows go, and which keys each of them sees. Made once."""

    def __init__(self, r: Rewriter) -> None:
        self._r = r
        self._made: dict[tuple[str, int, bool], tuple[str, str, str]] = {}

    def of(self, q: str, total: str, capacity: int, causal: bool) -> tuple[str, str, str]:
        """q [1, S, *], total int32 [] with the new rows -> start int64 [1], positions int64 [1, S], mask bool
        [1, 1, S, capacity]."""
        key = (total, capacity, causal)
        if key not in self._made:
            self._made[key] = self._make(q, total, capacity, causal)
        return self._made[key]

    def _make(self, q: str, total: str, capacity: int, causal: bool) -> tuple[str, str, str]:
        r, at = self._r, f"/{self._r.graph.name}/cache"
        rows = r.op(at, "Shape", q, start=1, end=2)
        end = r.op(at, "Unsqueeze", r.op(at, "Cast", total, to=TensorProto.INT64), r.ints(0))
        start = r.op(at, "Sub", end, rows)
        zero, one = (r.constant(f"engine/int/{v}", np.array(v, np.int64)) for v in (0, 1))
        offsets = r.op(at, "Range", zero, r.op(at, "Squeeze", rows, r.ints(0)), one)
        positions = r.op(at, "Add", offsets, start)
        keys = r.constant(f"engine/keys/{capacity}", np.arange(capacity, dtype=np.int64))
        last = positions if causal else r.op(at, "Expand", r.op(at, "Sub", end, r.ints(1)), rows)
        seen = r.op(at, "LessOrEqual", keys, r.op(at, "Unsqueeze", last, r.ints(1)))
        mask = r.op(at, "Unsqueeze", seen, r.ints(0, 1))
        return start, r.op(at, "Unsqueeze", positions, r.ints(0)), mask


def _grouped_query_attention(r: Rewriter, node: onnx.NodeProto, shared: _CachePositions) -> None:
    q, k, v, key_cache, value_cache, _, total, *tables = node.input
    given = attributes(node)
    heads, kv_heads, at = given["num_heads"], given["kv_num_heads"], node.name
    _, _, capacity, head = sizes_of(r.graph.inputs[key_cache], f"graph '{r.graph.name}': the cache")
    start, positions, mask = shared.of(q, total, capacity, bool(given.get("causal", 1)))
    q4, k4, v4 = _split(r, at, q, heads, head), _split(r, at, k, kv_heads, head), _split(r, at, v, kv_heads, head)
    if given.get("do_rotary"):
        turn = {"interleaved": given["rotary_interleaved"]} if given.get("rotary_interleaved") else {}
        q4, k4 = (r.op(at, "RotaryEmbedding", x, tables[0], tables[1], positions, **turn) for x in (q4, k4))
    attended, key_out, value_out = node.output
    r.op(at, "TensorScatter", key_cache, k4, start, out=key_out, axis=_ROW_AXIS)
    r.op(at, "TensorScatter", value_cache, v4, start, out=value_out, axis=_ROW_AXIS)
    _attend(r, at, (q4, key_out, value_out), mask, given.get("scale") or head**-0.5, attended, heads * head)


def _multi_head_attention(r: Rewriter, node: onnx.NodeProto) -> None:
    """Full attention without a cache; batch 1."""
    given = attributes(node)
    heads, at = given["num_heads"], node.name
    if any(node.input[3:]) or len(node.output) != 1:
        raise ExportError(f"{at}: MultiHeadAttention with bias, mask or past has no standard form here")
    q, k, v = (_split(r, at, x, heads, -1) for x in node.input[:3])
    scale = {"scale": given["scale"]} if given.get("scale") else {}
    _join(r, at, r.op(at, "Attention", q, k, v, **scale), node.output[0], 0)


def _split(r: Rewriter, at: str, x: str, heads: int, head: int) -> str:
    """[1, S, heads*head] -> [1, heads, S, head]. `head` -1: whatever it is."""
    shape = (1, -1, heads, head) if head > 0 else (0, 0, heads, -1)
    return r.op(at, "Transpose", r.op(at, "Reshape", x, r.ints(*shape)), perm=[0, 2, 1, 3])


def _attend(r: Rewriter, at: str, qkv: tuple[str, str, str], mask: str, scale: float, out: str, width: int) -> None:
    """The scale goes into q and nowhere else: a parser that multiplies the keys by its root walks the whole cache."""
    q, k, v = qkv
    q = r.op(at, "Mul", q, r.constant(f"engine/scale/{scale!r}", np.array(scale, np.float32)))
    inputs = (q, k, v, mask) if mask else (q, k, v)
    _join(r, at, r.op(at, "Attention", *inputs, scale=1.0), out, width)


def _join(r: Rewriter, at: str, x: str, out: str, width: int) -> None:
    """[1, heads, S, head] -> [1, S, heads*head]."""
    rows_first = r.op(at, "Transpose", x, perm=[0, 2, 1, 3])
    shape = (1, -1, width) if width else (0, 0, -1)
    r.op(at, "Reshape", rows_first, r.ints(*shape), out=out)


def _arg_max(r: Rewriter, node: onnx.NodeProto) -> None:
    """TensorRT's top-k wants two dimensions: a vector gets another in front."""
    given, at = attributes(node), node.name
    axis = given.get("axis", 0)
    if axis < 0 or given.get("keepdims", 1):
        r.keep(node)
        return
    rows = r.op(at, "Unsqueeze", node.input[0], r.ints(0))
    picked = r.op(at, "ArgMax", rows, **{**given, "axis": axis + 1})
    r.op(at, "Squeeze", picked, r.ints(0), out=node.output[0])


def _range(r: Rewriter, node: onnx.NodeProto) -> None:
    """Range(end - n, end) -> Range(0, n) + end - n. A range's borders are sizes to TensorRT, known on the host before
    a run; here only n is one, and `end` stays an ordinary value."""
    made = {name: n for n in r.nodes for name in n.output}
    start, end, step = node.input
    difference, last = _before_squeeze(made, start), _before_squeeze(made, end)
    counted = difference in made and made[difference].op_type == "Sub" and made[difference].input[0] == last
    if not counted:
        r.keep(node)
        return
    at, rows = node.name, made[difference].input[1]
    zero = r.constant("engine/int/0", np.array(0, np.int64))
    offsets = r.op(at, "Range", zero, r.op(at, "Squeeze", rows, r.ints(0)), step)
    r.op(at, "Add", offsets, difference, out=node.output[0])


def _before_squeeze(made: dict[str, onnx.NodeProto], name: str) -> str:
    return str(made[name].input[0]) if name in made and made[name].op_type == "Squeeze" else name


_SIMPLE: dict[str, Callable[[Rewriter, onnx.NodeProto], Any]] = {
    "MultiHeadAttention": _multi_head_attention,
    "ArgMax": _arg_max,
    "Range": _range,
    "Conv": convolution,
    "MatMulNBits": matmul_nbits,
    "GatherBlockQuantized": gather_block_quantized,
}
