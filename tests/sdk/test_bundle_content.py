"""Graphs and arrays of a bundle that are not what the manifest says, or do harm."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError
from tests.sdk.small_bundle import VOICE, change, npy, refuses, rewrite

SLOW_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


# -- graphs


def graph_with(node: onnx.NodeProto, initializers: Any = (), functions: Any = ()) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 32])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", 1, [32, 32])], initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=list(functions))
    return bytes(model.SerializeToString())


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[32, 32])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_an_op_that_the_manifest_does_not_name(folder: Path) -> None:
    rewrite(folder, "adder.onnx", graph_with(helper.make_node("Neg", ["x"], ["y"])))
    refuses(folder, r"graph 'adder' uses ops its manifest does not name: \['::Neg'\]")
    change(folder, lambda m: m["graphs"]["adder"].update(ops=["::Neg"]))
    Bundle.open(folder).close()


def test_a_function_excuses_no_op(folder: Path) -> None:
    """A runtime that has an op of that name runs it and not the function."""
    identity = helper.make_node("Identity", ["a"], ["b"])
    function = helper.make_function("edge_sdk", "GroupTokens", ["a"], ["b"], [identity], [helper.make_opsetid("", 23)])
    node = helper.make_node("GroupTokens", ["x"], ["y"], domain="edge_sdk")
    rewrite(folder, "adder.onnx", graph_with(node, functions=[function]))
    change(folder, lambda m: m["graphs"]["adder"].update(ops=["::Identity"]))
    refuses(folder, r"graph 'adder' uses ops its manifest does not name: \['edge_sdk::GroupTokens'\]")
    change(folder, lambda m: m["graphs"]["adder"].update(ops=["::Identity", "edge_sdk::GroupTokens"]))
    Bundle.open(folder).close()


def test_an_op_that_the_runtime_has_is_not_defined_anew(folder: Path) -> None:
    """onnxruntime runs its own Neg, or the function's: nobody needs to find out."""
    identity = helper.make_node("Identity", ["a"], ["b"])
    function = helper.make_function("", "Neg", ["a"], ["b"], [identity], [helper.make_opsetid("", 23)])
    rewrite(folder, "adder.onnx", graph_with(helper.make_node("Neg", ["x"], ["y"]), functions=[function]))
    change(folder, lambda m: m["graphs"]["adder"].update(ops=["::Identity", "::Neg"]))
    refuses(folder, r"'adder\.onnx' defines the function '::Neg'; a bundle's may define edge_sdk::GroupTokens")


def test_a_message_shows_some_of_many_names(folder: Path) -> None:
    graph = GraphProto(node=[NodeProto(op_type=f"{n:04}" + "a" * 1000) for n in range(1000)])
    rewrite(folder, "adder.onnx", ModelProto(graph=graph).SerializeToString())
    with pytest.raises(BundleError, match=r"\['::0000a+\.\.\.', .*\] and 995 more") as caught:
        Bundle.open(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("location", ["/etc/passwd", "../x", "doubler.onnx", "noise.npy", ""])
@pytest.mark.parametrize("name", ["adder", "doubler"])
def test_external_data_elsewhere(folder: Path, name: str, location: str) -> None:
    """For a graph with a data file of its own, and for one without."""
    node = helper.make_node("Add" if name == "adder" else "Mul", ["x", "w"], ["y"])
    rewrite(folder, f"{name}.onnx", graph_with(node, [external(location)]))
    refuses(folder, f"graph '{name}' reads files its manifest does not name")


def test_external_data_hidden_in_an_attribute(folder: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"], value=external("../x")),
        helper.make_node("Add", ["x", "x"], ["y"], values=[external("../x")]),
    ]
    for node in nodes:
        rewrite(folder, "adder.onnx", graph_with(node))
        refuses(folder, r"reads files its manifest does not name: \['\.\./x'\]")


def test_a_cut_graph_with_its_hash_put_right(folder: Path) -> None:
    data = (folder / "adder.onnx").read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        rewrite(folder, "adder.onnx", data[:length])
        refuses(folder, r"'adder\.onnx' is (cut short or )?not an ONNX model")


def test_a_graph_in_the_runtimes_own_format_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime opens its own format from the same bytes unless told otherwise, and its ops were never checked."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession((folder / "doubler.onnx").read_bytes(), options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "m.ort").read_bytes()
    assert onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).get_inputs()[0].name == "x"
    rewrite(folder, "doubler.onnx", data)
    refuses(folder, "not an ONNX model")
    monkeypatch.setattr(Bundle, "_check_graphs", lambda self: None)
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="cannot open graph 'doubler'"):
        bundle.runtime().engine("doubler")


# -- arrays


class Harm:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/edge_sdk-test-pickle-was-run"),))


def bare_header(text: str, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (8,), }"
BAD_ARRAYS = {
    "a pickle": __import__("pickle").dumps(VOICE),
    "a pickle that does something": __import__("pickle").dumps(Harm()),
    "an object array": npy(np.array([Harm()] * 8, object)),
    "structured objects": npy(np.zeros(8, [("a", "O")])),
    "text": npy(np.array(["a"] * 8)),
    "complex": npy(np.zeros(8, complex)),
    "an archive": npz(a=VOICE),
    "nothing": b"",
    "magic only": b"\x93NUMPY\1\0",
    "cut": npy(VOICE)[:-1],
    "a tail": npy(VOICE) + b"\0",
    "another version": bare_header(HEADER, b"\2\0"),
    "no source": bare_header("((((((((("),
    "an open string": bare_header("{'descr': '''"),
    "deep": bare_header("(" * 9000),
    "long": bare_header(" " * 20000 + HEADER),
    "too many": bare_header(HEADER.replace("(8,)", "(1 << 62,)")),
    "huge": bare_header(HEADER.replace("(8,)", f"({2**62},)")),
    "negative": bare_header(HEADER.replace("(8,)", "(-8,)")),
    "a call": bare_header("__import__('os').getcwd()"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_are_not_plain(folder: Path, kind: str) -> None:
    rewrite(folder, "voices/alto.npy", BAD_ARRAYS[kind])
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match=r"'voices/alto\.npy' is not a plain \.npy"):
        bundle.voice()
    assert not Path("/tmp/edge_sdk-test-pickle-was-run").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (VOICE[:7], r"voice 'alto' must be float32 \[8\], found float32\[7\]"),
        (VOICE[None], r"found float32\[1, 8\]"),
        (VOICE.astype(np.float64), r"found float64\[8\]"),
        (VOICE.astype(">f4"), r"found >f4\[8\]"),
        (np.full(8, np.nan, np.float32), "voice 'alto' holds NaN"),
    ],
)
def test_voices_that_do_not_fit(folder: Path, array: Any, message: str) -> None:
    rewrite(folder, "voices/alto.npy", npy(array))
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match=message):
        bundle.voice()


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW_FIXTURE)
@given(data=st.data())
def test_any_plain_array_comes_back(data: Any, folder: Path) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = data.draw(st.sampled_from(["<f4", "<f2", "<i8", "u1", "?", ">i2"]))
    array = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    rewrite(folder, "noise.npy", npy(array))
    with Bundle.open(folder) as bundle:
        found = bundle.read_array("noise.npy")
    assert np.array_equal(found, array)
    assert found.dtype == array.dtype
    assert found.flags.c_contiguous
