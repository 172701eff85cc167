"""Token grouping in an exported graph: one node of our op where the library is, the function beside it elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from edge_sdk import native
from edge_sdk.errors import BundleError, ExportError
from edge_sdk.export.engine.graph import read_graph
from edge_sdk.export.graphs.builder import EDGE_SDK, GraphBuilder, Weight
from edge_sdk.export.graphs.grouping import group_tokens
from edge_sdk.export.quantize import Scheme, quantize
from edge_sdk.export.recipe import Policy, Rule
from tests import tolerances

CODES, GROUP, BLOCK = 40, 5, 32
TABLE = np.random.default_rng(3).standard_normal((CODES, 48)).astype(np.float32)
SCHEMES = {"fp32": Scheme(), "fp16": Scheme("fp16"), "int8": Scheme("int8", BLOCK), "int4": Scheme("int4", BLOCK)}
WIDTHS = (48, 32)  # of which the first does not fill its last block
needs_ops = pytest.mark.skipif(bool(native.ort_ops_unavailable()), reason=native.ort_ops_unavailable())


def model(kind: str, width: int) -> onnx.ModelProto:
    g = GraphBuilder("g", policy=Policy((Rule("*", SCHEMES[kind]),)))
    table = Weight.of("table", np.ascontiguousarray(TABLE[:, :width]))
    ids, text = g.input("ids", "int64", ("M", GROUP)), g.input("text", "float32", ("M", width))
    g.output(group_tokens(g, table, ids, text), "rows", "float32", ("M", width))
    return g.model("", {})


def run(made: onnx.ModelProto, feed: dict[str, Any], *, library: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(native.folder() / native.ORT_LIBRARY))
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def feed(width: int, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    text = rng.standard_normal((count, width)).astype(np.float32)
    return {"ids": rng.integers(0, CODES, (count, GROUP)), "text": text}


def expected(kind: str, width: int, given: dict[str, Any]) -> Any:
    table = TABLE[:, :width]
    if kind == "fp16":
        table = table.astype(np.float16).astype(np.float32)
    elif SCHEMES[kind].quantized:
        table = quantize(table, SCHEMES[kind]).dequantize()
    return (table[given["ids"]].sum(axis=1) + given["text"]) / 2


@pytest.mark.parametrize("library", [pytest.param(True, marks=needs_ops), False])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", SCHEMES)
def test_with_the_library_and_without(kind: str, width: int, library: bool) -> None:
    made = model(kind, width)
    for count in (0, 1, 3):
        given = feed(width, count)
        found, rows = run(made, given, library=library), expected(kind, width, given)
        assert found.shape == rows.shape
        assert not count or tolerances.relative(found, rows) < tolerances.KERNEL_RELATIVE


@needs_ops
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_the_library_runs_its_kernel_and_not_the_function(kind: str) -> None:
    made = model(kind, 32)
    for function in made.functions:  # were it run, it would show
        function.node.append(helper.make_node("Neg", ["both"], ["wrong"]))
        del function.output[:]
        function.output.append("wrong")
    given = feed(32, 2)
    found = run(made, given, library=True)
    assert tolerances.relative(found, expected(kind, 32, given)) < tolerances.KERNEL_RELATIVE
    assert tolerances.relative(run(made, given, library=False), -found * 2) < tolerances.KERNEL_RELATIVE


def test_the_op_has_no_table_of_int4() -> None:
    assert not model("int4", 32).functions


def test_the_table_is_not_counted_as_read() -> None:
    g = GraphBuilder("g", policy=Policy((Rule("*", SCHEMES["int8"]),)))
    rows = group_tokens(
        g, Weight.of("table", TABLE), g.input("ids", "int64", ("M", GROUP)), g.input("t", "float32", ("M", 48))
    )
    g.output(rows, "rows", "float32", ("M", 48))
    assert g.bytes_read == 0


def test_a_function_that_calls_itself_is_refused() -> None:
    made = model("fp32", 32)
    made.functions[0].node.append(helper.make_node("GroupTokens", ["table", "ids", "text"], ["x"], domain=EDGE_SDK))
    with pytest.raises(BundleError, match=r"graph 'g': its functions cannot be opened: .* must not be recursive"):
        read_graph("g", made.SerializeToString(), memoryview(b""), {}, {}, "graph 'g'")


def test_one_meaning_a_graph() -> None:
    g = GraphBuilder("g", policy=Policy((Rule("b", SCHEMES["int8"]),)))
    ids, text = g.input("ids", "int64", ("M", GROUP)), g.input("text", "float32", ("M", 48))
    group_tokens(g, Weight.of("a", TABLE), ids, text)
    group_tokens(g, Weight.of("c", TABLE), ids, text)
    with pytest.raises(ExportError, match="graph 'g': 'edge_sdk::GroupTokens' is defined in two ways"):
        group_tokens(g, Weight.of("b", TABLE), ids, text)
