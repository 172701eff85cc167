"""Token grouping in the backbone's graph as a layer of our own: docs/plugins.md's GroupTokens.

The nodes that it replaces are taken out before the graph is parsed, and one node stands in their place; in the parsed
network whoever reads that is given the layer's output instead (network.py), and nothing is left to compute it for. (An
input in their place will not do: TensorRT-RTX 1.7 loses every shape behind one that is removed.) Over a table of int4,
which the plugin does not read, standard ops stay.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from edge_sdk.export.engine.graph import Graph, PluginLayer, Tensor, attributes
from edge_sdk.export.engine.precision import half_weight

CREATOR = "GroupTokens"
IDS = "speech"  # the backbone's input [M, G]
_PACKED = "engine/group_tokens"
_LOOKUPS = ("Gather", "GatherBlockQuantized")
_BETWEEN = ("Cast", "Slice")  # of a float16 table, of padded rows
_DTYPES: dict[int, int] = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 1, TensorProto.INT8: 2}  # as edge_sdk_dtype


def group_by_plugin(graph: Graph, precision: str) -> None:
    """Let GroupTokens look up, sum and mix the speech ids of `graph`, if it does that; before its ops are rewritten."""
    readers = {name: node for node in graph.nodes for name in node.input}
    lookup = readers.get(IDS)
    if lookup is None or lookup.op_type not in _LOOKUPS:
        return
    chain = [lookup]
    while readers[chain[-1].output[0]].op_type in _BETWEEN:
        chain.append(readers[chain[-1].output[0]])
    for op_type in ("ReduceSum", "Add", "Mul"):
        node = readers.get(chain[-1].output[0])
        if node is None or node.op_type != op_type:
            return
        chain.append(node)
    table = _table(graph, lookup, precision)
    if table is None:
        return
    tensors, block, scale_dtype = table
    total, add, out = chain[-3].output[0], chain[-2], chain[-1].output[0]
    text = next(name for name in add.input if name != total)
    width = int(graph.outputs["hidden"].shape[1])
    dtype = _DTYPES[tensors[0].dtype]
    ids = graph.inputs[IDS]
    fields = {
        "group_size": int(ids.shape[1]), "width": width, "codes": tensors[0].shape[0], "text": 1,
        "table_dtype": dtype, "table_block": block, "table_scale_dtype": scale_dtype,
    }  # fmt: skip
    stand_in = helper.make_node("Neg", [text], [out], name=f"{chain[-1].name}/stand-in")
    graph.nodes = [stand_in if node is chain[-1] else node for node in graph.nodes if node not in chain[:-1]]
    graph.weights |= {t.name: t for t in tensors}
    graph.inner = PluginLayer(CREATOR, fields, (IDS, text, *(t.name for t in tensors)), (out,))


def _table(graph: Graph, lookup: onnx.NodeProto, precision: str) -> tuple[list[Tensor], int, int] | None:
    """The table's tensors, its block and its scales' dtype; None for one that the plugin does not take."""
    found = graph.weights.get(lookup.input[0])
    if found is None:
        return None
    if lookup.op_type == "Gather":
        half = precision == "fp16" and found.dtype == TensorProto.FLOAT
        return [half_weight(found) if half else found], 0, 0
    given = attributes(lookup)
    scales = graph.weights.get(lookup.input[2])
    if scales is None:  # stored in float16, read through a Cast
        maker = next(n for n in graph.nodes if lookup.input[2] in n.output)
        scales = graph.weights.get(maker.input[0])
    if given.get("bits", 4) != 8 or scales is None:
        return None
    shape = (found.shape[0], math.prod(found.shape[1:]))
    blocks = (found.shape[0], math.prod(scales.shape) // found.shape[0])
    values = replace(
        found, name=f"{_PACKED}/table", dtype=TensorProto.INT8, shape=shape,
        load=lambda: found.load().view("int8").reshape(shape),
    )  # fmt: skip
    kept = scales
    flat = replace(kept, name=f"{_PACKED}/scales", shape=blocks, load=lambda: kept.load().reshape(blocks))
    return [values, flat], int(given["block_size"]), int(kept.dtype == TensorProto.FLOAT16)
