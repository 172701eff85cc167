"""Our ops for ONNX Runtime by themselves: edge_sdk::GroupTokens, with the library and as the function it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edge_sdk import native
from tests import tolerances

CODES, WIDTH, GROUP = 30, 24, 5
BLOCK = 16  # of an int8 table: the last block of a row is half empty
TABLES = ("float32", "float16", "int8, float32 scales", "int8, float16 scales")
needs_ops = pytest.mark.skipif(bool(native.ort_ops_unavailable()), reason=native.ort_ops_unavailable())


def model(*, function: bool) -> bytes:
    """One GroupTokens node; with `function`, also what it means in plain ops, for runtimes without the library."""
    border = [
        helper.make_tensor_value_info("table", TensorProto.FLOAT, ["C", "W"]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["M", "G"]),
        helper.make_tensor_value_info("text", TensorProto.FLOAT, ["M", "W2"]),
    ]
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["M", "W2"])
    names = [info.name for info in border]
    node = helper.make_node("GroupTokens", names, ["rows"], domain="edge_sdk")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edge_sdk", 1)]
    plain = [
        helper.make_node("Gather", ["table", "ids"], ["found"]),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("ReduceSum", ["found", "axis"], ["grouped"], keepdims=0),
        helper.make_node("Add", ["grouped", "text"], ["both"]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Mul", ["both", "half"], ["rows"]),
    ]
    functions = [helper.make_function("edge_sdk", "GroupTokens", names, ["rows"], plain, opsets)] if function else []
    graph = helper.make_graph([node], "g", border, [rows])
    made: bytes = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10).SerializeToString()
    onnx.load_from_string(made)
    return made


def session(data: bytes, *, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(native.folder() / native.ORT_LIBRARY))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def arrays(count: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    return {
        "table": rng.standard_normal((CODES, WIDTH)).astype(np.float32),
        "ids": rng.integers(0, CODES, (count, GROUP)),
        "text": rng.standard_normal((count, WIDTH)).astype(np.float32),
    }


@needs_ops
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("function", [True, False])
def test_with_the_library(count: int, function: bool) -> None:
    feed = arrays(count)
    found = session(model(function=function), library=True).run(None, feed)[0]
    expected = (feed["table"][feed["ids"]].sum(axis=1) + feed["text"]) / 2
    assert found.shape == expected.shape
    assert not count or tolerances.relative(found, expected) < tolerances.KERNEL_RELATIVE


def test_without_it_the_function_runs() -> None:
    feed = arrays()
    found = session(model(function=True), library=False).run(None, feed)[0]
    expected = (feed["table"][feed["ids"]].sum(axis=1) + feed["text"]) / 2
    assert tolerances.relative(found, expected) < tolerances.KERNEL_RELATIVE


@needs_ops
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.full((3, GROUP), CODES)}, "speech id 30 is outside the table of 30"),
        ({"ids": np.full((3, GROUP), -1)}, "speech id -1 is outside"),
        ({"text": np.zeros((3, WIDTH + 1), np.float32)}, "do not fit"),
        ({"text": np.zeros((2, WIDTH), np.float32)}, "do not fit|dimension"),
    ],
)
def test_wrong_input(change: dict[str, Any], message: str) -> None:
    opened = session(model(function=False), library=True)
    with pytest.raises(Exception, match=message):
        opened.run(None, {**arrays(), **change})
    assert opened.run(None, arrays())[0].shape == (3, WIDTH)


def grouping(table: str) -> tuple[dict[str, Any], bytes, Any]:
    """Inputs, a model of one GroupTokens node over a table of that kind, and what must come out."""
    feed = arrays()
    values, attributes = feed["table"], {}
    if table == "float16":
        feed["table"] = values.astype(np.float16)
    elif table != "float32":
        padded = np.zeros((CODES, 2 * BLOCK), np.float32)
        padded[:, :WIDTH] = values
        blocks = padded.reshape(CODES, 2, BLOCK)
        scales = (np.abs(blocks).max(axis=2) / 127).astype(np.float16 if "float16" in table else np.float32)
        stored = np.rint(blocks / scales[..., None].astype(np.float32)).clip(-127, 127)
        feed |= {"table": (stored + 128).astype(np.uint8).reshape(CODES, -1), "scales": scales}
        values = (stored * scales[..., None].astype(np.float32)).reshape(CODES, -1)[:, :WIDTH]
        attributes["block"] = BLOCK
    values = values if table != "float16" else feed["table"].astype(np.float32)
    border = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    node = helper.make_node("GroupTokens", list(feed), ["rows"], domain="edge_sdk", **attributes)
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, WIDTH])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edge_sdk", 1)]
    made = helper.make_model(helper.make_graph([node], "g", border, [rows]), opset_imports=opsets, ir_version=10)
    return feed, made.SerializeToString(), (values[feed["ids"]].sum(axis=1) + feed["text"]) / 2


@needs_ops
@pytest.mark.parametrize("table", TABLES)
def test_tables(table: str) -> None:
    feed, made, expected = grouping(table)
    found = session(made, library=True).run(None, feed)[0]
    assert tolerances.relative(found, expected) < tolerances.KERNEL_RELATIVE


@needs_ops
def test_a_table_that_does_not_fit_is_refused() -> None:
    feed, made, _ = grouping("int8, float32 scales")
    opened = session(made, library=True)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        opened.run(None, feed | {"scales": feed["scales"][:, :1].copy()})
