"""Linear layers, tables, experts and convolutions, each as the policy stores its weight: float32, float16, int8, int4.

A quantized weight NAME becomes `NAME.quantized` (uint8 [rows, row_bytes]) and `NAME.scales` (float16 [rows, blocks]);
the ops want other shapes of the same bytes, which are aliases: a tied embedding lies in the file once. Scales, and
matrices of float16, are cast to float32 in the graph: the CPU's kernels take no other, and ONNX Runtime folds such a
cast when it opens the session. So it does with the nodes that widen a convolution's bytes: no op multiplies with
those, and it would run DequantizeLinear anew each time (docs/NOTES.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import TensorProto

from edge_sdk.errors import ExportError
from edge_sdk.export.graphs.builder import MICROSOFT, GraphBuilder, Weight
from edge_sdk.export.quantize import Scheme, chunks, expert_block, quantize_pieces

Array = np.ndarray[Any, Any]
FLOAT, HALF, BYTE = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint8)
ACCURACY_LEVEL = 4  # activations in int8: level 0 takes four times as long (docs/NOTES.md)


def linear(g: GraphBuilder, x: str, weight: Weight, bias: Weight | None = None) -> str:
    """x [S, in] @ weight [out, in].T (+ bias [out]) -> [S, out]. The checkpoint's layout is used as it is stored."""
    scheme = g.policy.scheme(weight.name)
    if not scheme.quantized:
        inputs = [x, _dense(g, weight, scheme)] + ([g.weight(bias)] if bias else [])
        return g.op("Gemm", *inputs, transB=1)
    rows, cols = weight.shape
    stored = Quantized(g, weight, scheme)
    blob = scheme.block * scheme.bits // 8
    values = stored.values("blocks", (rows, scheme.blocks(cols), blob))
    inputs = [x, g.weight(values), g.widened(stored.scales())]
    return g.op(
        "MatMulNBits",
        *inputs,
        *(("", "", g.weight(bias)) if bias else ()),
        domain=MICROSOFT,
        K=cols,
        N=rows,
        bits=scheme.bits,
        block_size=scheme.block,
        accuracy_level=ACCURACY_LEVEL,
    )


def lookup(g: GraphBuilder, table: Weight, ids: str) -> str:
    """Rows of a table [rows, width]: ids int64 [...] -> float32 [..., width]."""
    scheme = g.policy.scheme(table.name)
    if scheme.kind == "fp16":
        return g.op("Cast", g.op("Gather", g.weight(_halved(g, table)), ids), to=TensorProto.FLOAT)
    if not scheme.quantized:
        return g.op("Gather", g.weight(table), ids)
    rows, width = table.shape
    stored = Quantized(g, table, scheme)
    found = g.op(
        "GatherBlockQuantized",
        g.weight(stored.values("", (rows, scheme.row_bytes(width)))),
        ids,
        g.widened(stored.scales()),
        domain=MICROSOFT,
        bits=scheme.bits,
        block_size=scheme.block,
        gather_axis=0,
        quantize_axis=1,
    )
    if width % scheme.block:  # the zero points that fill the last block
        found = g.op("Slice", found, g.ints(0), g.ints(width), g.ints(-1))
    return found


def packed(g: GraphBuilder, weight: Weight, *, table: bool = False) -> list[str]:
    """A matrix for an op of our own: its values as they are stored and, if it is quantized, its scales. `table`: the
    plain graph looks rows up in it, so its bytes have the shape that `lookup` gives them."""
    scheme = g.policy.scheme(weight.name)
    if scheme.kind == "fp16":
        return [g.weight(_halved(g, weight))]
    if not scheme.quantized:
        return [g.weight(weight)]
    rows, cols = weight.shape
    stored = Quantized(g, weight, scheme)
    if table:
        values = stored.values("", (rows, scheme.row_bytes(cols)))
    else:
        values = stored.values("blocks", (rows, scheme.blocks(cols), scheme.block * scheme.bits // 8))
    return [g.weight(values), g.weight(stored.scales())]


def convolution_weight(g: GraphBuilder, weight: Weight) -> str:
    """The weight [O, ...] of a convolution -> float32 of that shape: what is stored may be float16, or int8 whose
    blocks are cut from the O rows."""
    scheme = g.policy.convolution(weight.name)
    if not scheme.quantized:
        return _dense(g, weight, scheme)
    rows, cols = weight.shape[0], math.prod(weight.shape[1:])
    matrix = Weight(weight.name, FLOAT, (rows, cols), lambda: weight.array().reshape(rows, cols))
    stored = Quantized(g, matrix, scheme)
    values = g.widened(stored.values("", (rows, scheme.blocks(cols), scheme.block)))
    scales = g.op("Unsqueeze", g.widened(stored.scales()), g.ints(-1))
    half = 1 << (scheme.bits - 1)
    wide = g.op("Mul", g.op("Sub", values, g.scalar(float(half))), scales)
    wide = g.op("Reshape", wide, g.ints(rows, -1))
    if cols % scheme.block:  # the zero points that fill the last block
        wide = g.op("Slice", wide, g.ints(0), g.ints(cols), g.ints(1))
    return wide if weight.shape == (rows, cols) else g.op("Reshape", wide, g.ints(*weight.shape))


def experts(g: GraphBuilder, x: str, router: str, first: Weight, second: Weight, **attributes: Any) -> str:
    """Mixture of experts: x [S, width], router [S, E], weights [E, out, in] -> [S, width]."""
    schemes = [g.policy.scheme(w.name) for w in (first, second)]
    if not any(scheme.quantized for scheme in schemes):
        weights = [_dense(g, w, scheme) for w, scheme in zip((first, second), schemes, strict=True)]
        return g.op("MoE", x, router, weights[0], "", weights[1], "", domain=MICROSOFT, **attributes)
    common = _common_scheme(schemes, first, second)
    if isinstance(common, str):
        for weight in (first, second):
            g.policy.keep_wide(weight.name, common)
        return g.op("MoE", x, router, g.weight(first), "", g.weight(second), "", domain=MICROSOFT, **attributes)
    inputs = []
    for weight in (first, second):
        count, rows, cols = weight.shape
        stored = Quantized(g, weight, common)
        inputs += [g.weight(stored.values("", (count, rows, common.row_bytes(cols)))), g.widened(stored.scales()), ""]
    return g.op(
        "QMoE", x, router, *inputs[:5], domain=MICROSOFT,
        expert_weight_bits=common.bits, block_size=common.block, **attributes,
    )  # fmt: skip


def _common_scheme(schemes: list[Scheme], first: Weight, second: Weight) -> Scheme | str:
    """The one scheme that QMoE has for both matrices of its experts, or why there is none."""
    kinds = {scheme.kind for scheme in schemes}
    if len(kinds) > 1:
        return f"the op for experts takes one scheme for both of their matrices, found {' and '.join(sorted(kinds))}"
    block = expert_block(min(schemes, key=lambda s: s.block), first.shape[-1], second.shape[-1])
    if not block:
        return f"widths {first.shape[-1]} and {second.shape[-1]} of the experts are not filled by blocks of 16 or more"
    return Scheme(schemes[0].kind, block)


class Quantized:
    """The weights that a quantized tensor [..., cols] becomes. It is worked out while its values are written; the
    scales, which follow them in the file, are kept until then."""

    def __init__(self, g: GraphBuilder, source: Weight, scheme: Scheme) -> None:
        g.narrow(source, scheme)
        self._source, self._scheme = source, scheme
        self._kept: list[Array] = []

    def values(self, alias: str, shape: tuple[int, ...]) -> Weight:
        """uint8 of this shape; `alias` names it among others of the same bytes, "" is the name of the bytes."""
        name = f"{self._source.name}.quantized"
        return Weight(f"{name}.{alias}" if alias else name, BYTE, shape, self._write, stored=name)

    def scales(self) -> Weight:
        shape = (*self._source.shape[:-1], self._scheme.blocks(self._source.shape[-1]))
        return Weight(f"{self._source.name}.scales", HALF, shape, lambda: self._take_scales().reshape(shape))

    def _write(self) -> Iterator[Array]:
        self._kept = []
        for values, scales in self._pieces():
            self._kept.append(scales)
            yield values

    def _take_scales(self) -> Array:
        kept, self._kept = self._kept or [scales for _, scales in self._pieces()], []
        return np.concatenate(kept)

    def _pieces(self) -> Iterator[tuple[Array, Array]]:
        return quantize_pieces(self._source.pieces(), self._scheme, self._source.name)


def _dense(g: GraphBuilder, weight: Weight, scheme: Scheme) -> str:
    return g.widened(_halved(g, weight)) if scheme.kind == "fp16" else g.weight(weight)


def _halved(g: GraphBuilder, weight: Weight) -> Weight:
    def load() -> Iterator[Array]:
        for piece in chunks(weight.pieces()):
            with np.errstate(over="ignore"):
                half = piece.astype(np.float16)
            if not np.isfinite(half).all():
                raise ExportError(f"tensor '{weight.name}' has values past float16's range: give it fp32 in a recipe")
            yield half

    g.narrow(weight, Scheme("fp16"))
    return Weight(weight.name, HALF, weight.shape, load)
