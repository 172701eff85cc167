"""The scanner sees what ONNX's own parser sees, or refuses the file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, onnx_ml_pb2

from edge_sdk import onnx_scan
from edge_sdk.errors import BundleError
from edge_sdk.onnx_scan import MAX_DEPTH, GraphScan, scan

DOMAINS = ("", "ai.onnx", "com.microsoft", "x")
LOCATIONS = ("a.bin", "../b", "/c", "ö")


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, payload: bytes, *, key_bits: int = 0) -> bytes:
    """A length-delimited field; `key_bits` are put into its key above the 32 that a parser in C++ keeps."""
    return varint(number << 3 | 2 | key_bits << 32) + varint(len(payload)) + payload


# -- models of every kind, and what is in them by a walk over the parsed message


def tensors(location: str | None) -> TensorProto:
    tensor = TensorProto(name="t", data_type=1, dims=[1], raw_data=b"" if location else b"\0\0\0\0")
    if location:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", location), ("length", "4")):
            tensor.external_data.add(key=key, value=value)
    return tensor


TENSORS = st.builds(tensors, st.sampled_from((None, *LOCATIONS)))
SPARSE = st.builds(lambda v, i: onnx.SparseTensorProto(values=v, indices=i, dims=[1]), TENSORS, TENSORS)


def attributes(graphs: st.SearchStrategy[GraphProto]) -> st.SearchStrategy[AttributeProto]:
    return st.one_of(
        st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.TENSOR, t=t), TENSORS),
        st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.TENSORS, tensors=[t, t]), TENSORS),
        st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=t), SPARSE),
        st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[t]), SPARSE),
        st.builds(lambda g: AttributeProto(name="a", type=AttributeProto.GRAPH, g=g), graphs),
        st.builds(lambda g: AttributeProto(name="a", type=AttributeProto.GRAPHS, graphs=[g]), graphs),
        st.just(AttributeProto(name="i", type=AttributeProto.INT, i=-1)),
        st.just(AttributeProto(name="f", type=AttributeProto.FLOATS, floats=[1.0, 2.0])),
    )  # fmt: skip


def nodes(graphs: st.SearchStrategy[GraphProto]) -> st.SearchStrategy[NodeProto]:
    return st.builds(
        lambda op, domain, attribute: NodeProto(op_type=op, domain=domain, input=["x"], attribute=attribute),
        st.sampled_from(("Add", "If", "F", "ß")),
        st.sampled_from(DOMAINS),
        st.lists(attributes(graphs), max_size=2),
    )


def graphs_of(inner: st.SearchStrategy[GraphProto]) -> st.SearchStrategy[GraphProto]:
    return st.builds(
        lambda n, t, s: GraphProto(name="g", node=n, initializer=t, sparse_initializer=s),
        st.lists(nodes(inner), max_size=2),
        st.lists(TENSORS, max_size=2),
        st.lists(SPARSE, max_size=1),
    )


GRAPHS = st.recursive(st.builds(GraphProto), graphs_of, max_leaves=4)
FUNCTIONS = st.builds(
    lambda name, domain, n, a: onnx.FunctionProto(name=name, domain=domain, node=n, attribute_proto=a),
    st.sampled_from(("F", "Add")),
    st.sampled_from(DOMAINS),
    st.lists(nodes(GRAPHS), max_size=2),
    st.lists(attributes(GRAPHS), max_size=1),
)
MODELS = st.builds(
    lambda g, f: ModelProto(ir_version=11, producer_name="p", graph=g, functions=f),
    GRAPHS,
    st.lists(FUNCTIONS, max_size=2),
)


def expected(model: ModelProto) -> GraphScan:
    """What the scan should find, by walking every field of the parsed message."""
    ops, functions, files = set(), set(), set()

    def walk(message: object) -> None:
        if isinstance(message, NodeProto):
            ops.add(f"{'' if message.domain == 'ai.onnx' else message.domain}::{message.op_type}")
        if isinstance(message, onnx.FunctionProto):
            functions.add(f"{message.domain}::{message.name}")
        if isinstance(message, TensorProto):
            files.update(e.value for e in message.external_data if e.key == "location")
        for descriptor, value in message.ListFields():  # type: ignore[attr-defined]
            if descriptor.message_type is not None:
                for item in value if hasattr(value, "add") else [value]:
                    walk(item)

    walk(model)
    return GraphScan(frozenset(ops), frozenset(functions), frozenset(files))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MODELS)
def test_the_scan_is_the_walk(model: ModelProto) -> None:
    assert scan(model.SerializeToString(), "m") == expected(model)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MODELS, st.data())
def test_damage_is_seen_or_the_scan_is_still_the_walk(model: ModelProto, data: st.DataObject) -> None:
    """Whatever is done to the bytes: if ONNX's parser accepts them, the scan finds the same or refuses."""
    raw = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.sampled_from((0, 0xFF, raw[place] ^ 1, raw[place] ^ 8, raw[place] ^ 0x80)))
    parsed = ModelProto()
    try:
        parsed.ParseFromString(bytes(raw))
    except Exception:
        parsed = None
    try:
        found = scan(bytes(raw), "m")
    except BundleError:
        return
    if parsed is not None:
        assert found == expected(parsed)


# -- what the format allows and we must not overlook


def test_every_place_where_a_tensor_or_a_node_can_stand_is_walked() -> None:
    """A new field of ONNX that can carry one must be added to the scanner before its format is raised."""
    numbers = {
        name: value for name, value in vars(onnx_scan).items() if name.startswith("_") and isinstance(value, int)
    }
    walked = {
        "ModelProto": ["_MODEL_GRAPH", "_MODEL_TRAINING", "_MODEL_FUNCTIONS"],
        "GraphProto": ["_GRAPH_NODE", "_GRAPH_INITIALIZER", "_GRAPH_SPARSE"],
        "NodeProto": ["_NODE_ATTRIBUTE"],
        "AttributeProto": [f"_ATTRIBUTE_{n}" for n in ("TENSOR", "GRAPH", "TENSORS", "GRAPHS", "SPARSE", "SPARSES")],
        "SparseTensorProto": ["_SPARSE_VALUES", "_SPARSE_INDICES"],
        "FunctionProto": ["_FUNCTION_NODE", "_FUNCTION_DEFAULT"],
        "TensorProto": ["_TENSOR_EXTERNAL"],
    }
    for message, names in walked.items():
        leads = {
            f.number
            for f in getattr(onnx_ml_pb2, message).DESCRIPTOR.fields
            if f.message_type is not None and (f.name == "external_data" or f.message_type.name in walked)
        }
        if message == "ModelProto":
            leads.add(20)  # training graphs, refused as a whole
        assert leads == {numbers[name] for name in names}, message


@pytest.mark.parametrize("bits", [1, 7, 8, 2**30])
def test_a_field_that_hides_behind_the_bits_a_parser_drops(bits: int) -> None:
    """onnxruntime reads such a graph: its parser keeps 32 bits of a key. So this is refused, not skipped."""
    hidden = GraphProto(name="g", node=[NodeProto(op_type="Evil", domain="x", output=["y"])]).SerializeToString()
    visible = field(7, GraphProto(name="g").SerializeToString())
    with pytest.raises(BundleError, match="not an ONNX model"):
        scan(visible + field(7, hidden, key_bits=bits), "m")


def test_a_function_may_bring_attributes_with_defaults() -> None:
    attribute = helper.make_attribute("a", tensors("../x"))
    function = onnx.FunctionProto(name="F", domain="x", attribute_proto=[attribute])
    assert scan(ModelProto(graph=GraphProto(), functions=[function]).SerializeToString(), "m").external_files == {
        "../x"
    }


def test_graphs_are_merged_as_a_parser_merges_them() -> None:
    """Two graph fields are one graph to a parser. We write one, and take no other."""
    one = field(7, GraphProto(node=[NodeProto(op_type="Add")]).SerializeToString())
    assert scan(one, "m").ops == {"::Add"}
    with pytest.raises(BundleError, match="2 graphs"):
        scan(one + one, "m")


@pytest.mark.parametrize("data", [b"", ModelProto(ir_version=11).SerializeToString()])
def test_a_model_without_a_graph(data: bytes) -> None:
    with pytest.raises(BundleError, match="'m' is not an ONNX model: it holds 0 graphs"):
        scan(data, "m")


def test_training_graphs_are_refused() -> None:
    model = ModelProto(graph=GraphProto())
    model.training_info.add()
    with pytest.raises(BundleError, match="training graphs"):
        scan(model.SerializeToString(), "m")


def nested(depth: int) -> bytes:
    graph = GraphProto().SerializeToString()
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # a node with an attribute that is a graph
    return field(7, graph)


def test_depth_has_a_limit() -> None:
    assert scan(nested(MAX_DEPTH), "m").ops == {"::"}
    for depth in (MAX_DEPTH + 1, 5000):
        with pytest.raises(BundleError, match=f"more than {MAX_DEPTH} deep"):
            scan(nested(depth), "m")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (varint(7 << 3 | 0) + b"\1", "a number stands where a message belongs"),
        (field(7, varint(1 << 3 | 0) + b"\1"), "a number stands where a message belongs"),
        (field(7, field(1, field(4, b"\xff"))), "not UTF-8"),
        (field(7, field(1, field(4, b"Add") + varint(4 << 3 | 0) + b"\1")), "a number stands where a name belongs"),
        (varint(7 << 3 | 2) + varint(100) + b"\0", "cut short"),
        (varint(7 << 3 | 2) + b"\xff" * 10, "cut short"),
        (b"\x80" * 11, "cut short"),
        (b"\x80", "cut short"),
        (varint(9 << 3 | 1) + b"\0" * 7, "cut short"),
        (varint(9 << 3 | 5) + b"\0" * 3, "cut short"),
        (varint(7 << 3 | 3), "wire type 3"),
        (varint(7 << 3 | 7), "wire type 7"),
        (b"\2\0", "field key"),
        (b"\x93NUMPY\1\0", "ONNX"),
        (b"<html></html>", "ONNX"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_model(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        scan(data, "m")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_scanned_or_refused(data: bytes) -> None:
    with contextlib.suppress(BundleError):
        scan(data, "m")


def test_the_graphs_of_a_bundle_name_exactly_their_ops(speech_bundle_path: Path) -> None:
    graphs = json.loads((speech_bundle_path / "manifest.json").read_text())["graphs"]
    assert set(graphs) == {"encoder", "backbone", "speech_input", "speech_head", "speech_head_fused"}
    for key, entry in graphs.items():
        model = onnx.load(str(speech_bundle_path / entry["file"]), load_external_data=False)
        found = scan((speech_bundle_path / entry["file"]).read_bytes(), entry["file"])
        assert found == expected(model)
        assert sorted(found.ops) == entry["ops"]
        assert found.external_files == {entry["data"]}
        assert found.functions == ({"edge_sdk::GroupTokens"} if key == "backbone" else set())
