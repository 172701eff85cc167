"""Graphs that are small as files and beyond any memory as a runtime opens them are refused before one sees them."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError
from tests.sdk.small_bundle import change

EDGE_SDK = "edge_sdk"
OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid(EDGE_SDK, 1)]
LEVELS = 30


def function(name: str, nodes: Iterable[NodeProto]) -> FunctionProto:
    """From "a" to "z"."""
    return helper.make_function(EDGE_SDK, name, ["a"], ["z"], list(nodes), OPSETS)


def call(name: str, source: str, target: str) -> NodeProto:
    return helper.make_node(name, [source], [target], domain=EDGE_SDK)


def chosen(name: str) -> list[NodeProto]:
    """If this then call it, else call it: each branch a graph inside of the node."""
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branches = [helper.make_graph([call(name, "a", "b")], "g", [], [value]) for _ in range(2)]
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("v", TensorProto.BOOL, [], [True]))
    return [yes, helper.make_node("If", ["yes"], ["z"], then_branch=branches[0], else_branch=branches[1])]


def twice(levels: int) -> list[FunctionProto]:
    """Each calls the next one twice: 2^levels nodes, opened."""
    inner = [[call(f"f{n + 1}", "a", "b"), call(f"f{n + 1}", "b", "z")] for n in range(levels)]
    return [function(f"f{n}", nodes) for n, nodes in enumerate([*inner, [helper.make_node("Neg", ["a"], ["z"])]])]


def in_branches(levels: int) -> list[FunctionProto]:
    last = [helper.make_node("Neg", ["a"], ["z"])]
    return [function(f"f{n}", chosen(f"f{n + 1}") if n < levels else last) for n in range(levels + 1)]


def of_itself(_: int) -> list[FunctionProto]:
    return [function("GroupTokens", [call("GroupTokens", "a", "z")])]


def of_each_other(_: int) -> list[FunctionProto]:
    return [function("f0", [call("f1", "a", "z")]), function("f1", [call("f0", "a", "z")])]


def own_op_by_steps(levels: int) -> list[FunctionProto]:
    """Under the one name that a file may define, with helpers below it."""
    return [function("GroupTokens", [call("f0", "a", "z")]), *twice(levels)]


def model(functions: list[FunctionProto], calls: int = 1) -> ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("v0", f"v{calls}")]
    nodes = [call(functions[0].name, f"v{n}", f"v{n + 1}") for n in range(calls)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=11, functions=functions)


def grafted(folder: Path, functions: list[FunctionProto], calls: int = 1) -> None:
    """The backbone with these functions and calls of the first; the manifest names all ops they use."""
    path = folder / "backbone.onnx"
    backbone = onnx.load(str(path), load_external_data=False)
    row = backbone.graph.input[0].name
    backbone.graph.node.extend(call(functions[0].name, row, f"unused_{n}") for n in range(calls))
    if functions[0].name == "GroupTokens":
        del backbone.functions[:]
    backbone.functions.extend(functions)
    path.write_bytes(backbone.SerializeToString())
    used = {f"{EDGE_SDK}::{f.name}" for f in functions} | {"::Neg", "::If", "::Constant"}

    def name_ops(manifest: dict) -> None:  # type: ignore[type-arg]
        ops = manifest["graphs"]["backbone"]["ops"]
        ops.extend(sorted(used - set(ops)))

    change(folder, name_ops, rehash=True)


@pytest.fixture
def hostile(speech_bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(speech_bundle_path, tmp_path / "hostile.bundle"))


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime may get as far as to be given a file."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a runtime was asked to open it")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (twice, r"defines the function 'edge_sdk::f0'; a bundle's may define edge_sdk::GroupTokens"),
        (in_branches, "graphs inside of nodes"),
        (of_itself, r"function 'edge_sdk::GroupTokens' calls 'edge_sdk::GroupTokens'"),
        (of_each_other, r"defines the function 'edge_sdk::f0'"),
        (own_op_by_steps, r"defines the function 'edge_sdk::f0'"),
    ],
)
def test_functions_that_open_without_end(
    hostile: Path, make: Callable[[int], list[FunctionProto]], message: str
) -> None:
    grafted(hostile, make(LEVELS))
    assert (hostile / "backbone.onnx").stat().st_size < 40_000
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BundleError, match=rf"'backbone\.onnx'.*{message}"), Bundle.open(hostile) as bundle:
        bundle.runtime().engine("backbone")
    assert time.process_time() - begin < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KB"


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(("length", "calls", "what"), [(1 << 20, 20, "bytes"), (4, 30_000, "nodes")])
def test_one_function_called_often(hostile: Path, length: int, calls: int, what: str) -> None:
    """A thousand calls of a body with a constant of 1 MB took onnxruntime 1.9 GB."""
    constant = helper.make_node("Constant", [], ["k"], value=TensorProto(data_type=1, raw_data=bytes(length)))
    grafted(hostile, [function("GroupTokens", [constant, helper.make_node("Neg", ["a"], ["z"])])], calls)
    with pytest.raises(BundleError, match=r"'backbone\.onnx' has, with its functions opened, .* more than any graph"):
        Bundle.open(hostile)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("depth", [1, 3000])
def test_graphs_inside_of_graphs(hostile: Path, depth: int) -> None:
    inner = GraphProto(name="g").SerializeToString()
    for _ in range(depth):  # by hand: no library writes so deep
        for number in (6, 5, 1):  # a graph in an attribute of a node
            inner = bytes([number << 3 | 2]) + length_of(inner) + inner
    path = hostile / "backbone.onnx"
    data = path.read_bytes()
    path.write_bytes(data + b"\x3a" + length_of(inner) + inner)  # a second graph is merged into the first
    change(hostile, lambda m: None, rehash=True)
    with pytest.raises(BundleError, match=r"'backbone\.onnx' has graphs inside of nodes"):
        Bundle.open(hostile)


def length_of(data: bytes) -> bytes:
    out, value = b"", len(data)
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("make", [twice, in_branches])
def test_a_runtime_does_open_them(make: Callable[[int], list[FunctionProto]], tmp_path: Path) -> None:
    """Why they are refused: onnxruntime makes 2^n nodes of n levels. At 14 levels it took 6 s."""
    found = []
    for levels in (2, 5):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(tmp_path / f"{levels}.onnx")
        data = model(make(levels)).SerializeToString()
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found.append(_count_of(onnx.load(str(tmp_path / f"{levels}.onnx")).graph, "Neg"))
    assert found == [4, 32]


def _count_of(graph: GraphProto, op: str) -> int:
    inner = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return sum(n.op_type == op for n in graph.node) + sum(_count_of(g, op) for g in inner)


def test_the_backbone_as_it_is_opens(hostile: Path) -> None:
    with Bundle.open(hostile) as bundle:
        assert "edge_sdk::GroupTokens" in bundle.manifest.graphs["backbone"].ops
        bundle.runtime(threads=1).engine("backbone")
