"""Token grouping as one node of our own op, edge_sdk::GroupTokens, and in plain ops the function that it stands for.

A runtime with our library runs the kernel; any other reads the function and runs that.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from edge_sdk.export.graphs.builder import (
    EDGE_SDK,
    MICROSOFT,
    MICROSOFT_OPSET,
    OPSET,
    GraphBuilder,
    Weight,
)
from edge_sdk.export.graphs.linear import lookup, packed
from edge_sdk.export.quantize import Scheme

GROUP_TOKENS = "GroupTokens"


def group_tokens(g: GraphBuilder, table: Weight, ids: str, text: str) -> str:
    """Rows (text + sum of G table rows) / 2: table [codes, W], ids int64 [M, G], text [M, W] -> float32 [M, W].

    A table of int4, which the op does not read, is grouped by plain ops.
    """
    scheme = g.policy.scheme(table.name)
    if scheme.kind == "int4":
        grouped = g.op("ReduceSum", lookup(g, table, ids), g.ints(1), keepdims=0)
        return g.op("Mul", g.op("Add", text, grouped), g.scalar(0.5))
    values, *scales = packed(g, table, table=True)
    g.define(_function(scheme, table.shape[1]))
    block: dict[str, Any] = {"block": scheme.block} if scheme.quantized else {}
    return g.op(GROUP_TOKENS, values, ids, text, *scales, domain=EDGE_SDK, **block)


def _function(scheme: Scheme, width: int) -> onnx.FunctionProto:
    """What the node means over a table that is stored so (csrc/ort/group_tokens_inputs.h)."""
    quantized = ["scales"] if scheme.quantized else []
    nodes = [
        *_rows(scheme, width),
        helper.make_node("Constant", [], ["group_axis"], value_ints=[1]),
        helper.make_node("ReduceSum", ["rows_of_ids", "group_axis"], ["grouped"], keepdims=0),
        helper.make_node("Add", ["text", "grouped"], ["both"]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Mul", ["both", "half"], ["rows"]),
    ]
    opsets = [helper.make_opsetid("", OPSET)]
    if quantized:
        opsets.append(helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET))
    inputs = ["table", "ids", "text", *quantized]
    attributes = ["block"] if quantized else []
    return helper.make_function(EDGE_SDK, GROUP_TOKENS, inputs, ["rows"], nodes, opsets, attributes)


def _rows(scheme: Scheme, width: int) -> list[onnx.NodeProto]:
    """The nodes that look `rows_of_ids` [M, G, width] up, as linear.lookup does in a graph."""
    if scheme.kind == "fp16":
        return [
            helper.make_node("Gather", ["table", "ids"], ["halves"], axis=0),
            helper.make_node("Cast", ["halves"], ["rows_of_ids"], to=TensorProto.FLOAT),
        ]
    if not scheme.quantized:
        return [helper.make_node("Gather", ["table", "ids"], ["rows_of_ids"], axis=0)]
    padded = width % scheme.block != 0  # the zero points that fill the last block are cut off
    found = helper.make_node(
        "GatherBlockQuantized",
        ["table", "ids", "wide_scales"],
        ["filled_rows" if padded else "rows_of_ids"],
        domain=MICROSOFT,
        bits=scheme.bits,
        gather_axis=0,
        quantize_axis=1,
    )
    found.attribute.append(AttributeProto(name="block_size", type=AttributeProto.INT, ref_attr_name="block"))
    nodes = [helper.make_node("Cast", ["scales"], ["wide_scales"], to=TensorProto.FLOAT), found]
    if padded:
        nodes += [
            helper.make_node("Constant", [], ["first"], value_ints=[0]),
            helper.make_node("Constant", [], ["width"], value_ints=[width]),
            helper.make_node("Constant", [], ["last_axis"], value_ints=[-1]),
            helper.make_node("Slice", ["filled_rows", "first", "width", "last_axis"], ["rows_of_ids"]),
        ]
    return nodes
