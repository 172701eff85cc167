"""The scanner sees what ONNX's own parser sees, or refuses the file."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, onnx_ml_pb2

from edge_sdk import onnx_scan
from edge_sdk.errors import BundleError
from edge_sdk.onnx_scan import FUNCTIONS, MAX_BYTES, MAX_FIELDS, MAX_NODES, GraphScan, scan

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


ATTRIBUTES = st.one_of(
    st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.TENSOR, t=t), TENSORS),
    st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.TENSORS, tensors=[t, t]), TENSORS),
    st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=t), SPARSE),
    st.builds(lambda t: AttributeProto(name="a", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[t]), SPARSE),
    st.just(AttributeProto(name="i", type=AttributeProto.INT, i=-1)),
    st.just(AttributeProto(name="f", type=AttributeProto.FLOATS, floats=[1.0, 2.0])),
)
NODES = st.builds(
    lambda op, domain, attribute: NodeProto(op_type=op, domain=domain, input=["x"], attribute=attribute),
    st.sampled_from(("Add", "If", "F", "ß", "GroupTokens")),
    st.sampled_from(DOMAINS),
    st.lists(ATTRIBUTES, max_size=2),
)
GRAPHS = st.builds(
    lambda n, t, s: GraphProto(name="g", node=n, initializer=t, sparse_initializer=s),
    st.lists(NODES, max_size=3),
    st.lists(TENSORS, max_size=2),
    st.lists(SPARSE, max_size=1),
)
DEFINED = st.builds(
    lambda n, a: onnx.FunctionProto(name="GroupTokens", domain="edge_sdk", node=n, attribute_proto=a),
    st.lists(NODES, max_size=2),
    st.lists(ATTRIBUTES, max_size=1),
)
MODELS = st.builds(
    lambda g, f: ModelProto(ir_version=11, producer_name="p", graph=g, functions=f),
    GRAPHS,
    st.lists(DEFINED, max_size=1),
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
    function = onnx.FunctionProto(name="GroupTokens", domain="edge_sdk", attribute_proto=[attribute])
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


@pytest.mark.parametrize("depth", [1, 2, 5000])
def test_graphs_inside_of_nodes_are_refused(depth: int) -> None:
    with pytest.raises(BundleError, match=r"'m' has graphs inside of nodes \(If, Loop, Scan\)"):
        scan(nested(depth), "m")


@pytest.mark.parametrize("where", ["graph", "function", "default"])
@pytest.mark.parametrize("how", ["g", "graphs"])
def test_wherever_they_stand(where: str, how: str) -> None:
    attribute = helper.make_attribute("body", GraphProto() if how == "g" else [GraphProto()])
    node = NodeProto(op_type="If", attribute=[attribute])
    function = onnx.FunctionProto(
        name="GroupTokens",
        domain="edge_sdk",
        node=[node] if where == "function" else [],
        attribute_proto=[attribute] if where == "default" else [],
    )
    model = ModelProto(
        graph=GraphProto(node=[node] if where == "graph" else []), functions=[] if where == "graph" else [function]
    )
    with pytest.raises(BundleError, match="graphs inside of nodes"):
        scan(model.SerializeToString(), "m")


# -- functions, which a runtime opens into the graph


def group_tokens(*nodes: NodeProto) -> onnx.FunctionProto:
    return onnx.FunctionProto(name="GroupTokens", domain="edge_sdk", node=nodes)


CALL = NodeProto(op_type="GroupTokens", domain="edge_sdk")


@pytest.mark.parametrize(
    ("domain", "name"),
    [("", "Neg"), ("ai.onnx", "Neg"), ("edge_sdk", "SpeechHead"), ("edge_sdk", ""), ("", "edge_sdk::GroupTokens"),
     ("com.microsoft", "GroupTokens"), ("EDGE_SDK", "GroupTokens"), ("edge_sdk", "G" * 10_000)],
)  # fmt: skip
def test_other_functions_are_refused(domain: str, name: str) -> None:
    function = onnx.FunctionProto(domain=domain, name=name)
    with pytest.raises(BundleError, match=r"'m' defines the function '.*'; .* may define edge_sdk::GroupTokens") as e:
        scan(ModelProto(graph=GraphProto(), functions=[function]).SerializeToString(), "m")
    assert len(str(e.value)) < 200


def test_a_function_that_calls_a_function_is_refused() -> None:
    model = ModelProto(graph=GraphProto(node=[CALL]), functions=[group_tokens(NodeProto(op_type="Neg"), CALL)])
    with pytest.raises(BundleError, match=r"function 'edge_sdk::GroupTokens' calls 'edge_sdk::GroupTokens'"):
        scan(model.SerializeToString(), "m")


def test_a_function_has_one_meaning() -> None:
    """Also where their "overload" differs: nodes tell them apart by that, we by the name."""
    first, second = group_tokens(), group_tokens(NodeProto(op_type="Neg"))
    second.overload = "other"
    with pytest.raises(BundleError, match="defines the function 'edge_sdk::GroupTokens' twice"):
        scan(ModelProto(graph=GraphProto(), functions=[first, second]).SerializeToString(), "m")


def test_nodes_are_counted_as_a_runtime_opens_them() -> None:
    body = group_tokens(*[NodeProto(op_type="Neg")] * 1000)
    calls = (MAX_NODES - 1000) // 1001
    for n in (calls, calls + 1):
        data = ModelProto(graph=GraphProto(node=[CALL] * n), functions=[body]).SerializeToString()
        assert len(data) < 32_000
        if n == calls:
            assert scan(data, "m").functions == FUNCTIONS
        else:
            with pytest.raises(BundleError, match=f"with its functions opened, {1000 + n * 1001} nodes"):
                scan(data, "m")


def test_bytes_are_counted_as_a_runtime_opens_them() -> None:
    """A constant of the body is copied for each call, and an attribute of the call for each node that asks for it."""
    large = helper.make_attribute("value", TensorProto(raw_data=bytes(1 << 20)))
    body = group_tokens(NodeProto(op_type="Constant", attribute=[large]))
    model = ModelProto(graph=GraphProto(node=[CALL] * 20), functions=[body])
    with pytest.raises(BundleError, match="with its functions opened, 41 nodes and 22"):
        scan(model.SerializeToString(), "m")

    asks = AttributeProto(name="value", type=AttributeProto.TENSOR, ref_attr_name="value")
    body = group_tokens(*[NodeProto(op_type="Constant", attribute=[asks])] * 20)
    call = NodeProto(op_type="GroupTokens", domain="edge_sdk", attribute=[large])
    model = ModelProto(graph=GraphProto(node=[call]), functions=[body])
    with pytest.raises(BundleError, match="with its functions opened, 41 nodes and 22"):
        scan(model.SerializeToString(), "m")


# -- more than any graph needs


def test_a_file_of_any_size_is_refused_unread() -> None:
    with pytest.raises(BundleError, match=f"'m' has {MAX_BYTES + 1} bytes, more than any graph of a bundle"):
        scan(bytes(MAX_BYTES + 1), "m")


@pytest.mark.parametrize(
    "many",
    [
        lambda n: field(7, b"\x0a\0" * n),  # nodes
        lambda n: field(7, field(1, b"\x2a\0" * n)),  # attributes of one node
        lambda n: field(7, field(1, b"\x0a\0" * n)),  # its inputs
        lambda n: field(7, b"\x2a\0" * n),  # initializers
        lambda n: field(7, field(5, b"\x6a\0" * n)),  # external data of one
        lambda n: field(7, b"\x5a\0" * n),  # inputs of the graph, which are not walked further
        lambda n: b"\xca\1\0" * n,  # functions
        lambda n: field(25, b"\x3a\0" * n),  # their nodes
    ],
)
def test_any_number_of_anything_is_refused_in_a_second_or_two(many: Callable[[int], bytes]) -> None:
    begin = time.process_time()
    with pytest.raises(BundleError, match=r"more than|twice"):
        scan(many(MAX_FIELDS), "m")
    assert time.process_time() - begin < 20


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
