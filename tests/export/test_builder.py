"""Graphs: names are addresses, weights are promises made when they are written, data files can be mapped."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_sdk.errors import ExportError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.graphs.builder import (
    ALIGN_LARGE,
    ALIGN_SMALL,
    INLINE_BYTES,
    LARGE_BYTES,
    GraphBuilder,
    Weight,
    save_together,
)
from edge_sdk.export.language import load_language
from edge_sdk.export.model_config import read_language_config
from edge_sdk.export.random_checkpoint import MoESpec
from edge_sdk.export.weights import language_weights
from tests import speech_goldens as goldens
from tests import tiny

FLOAT = np.dtype(np.float32)


def saved(g: GraphBuilder, folder: Path) -> onnx.ModelProto:
    g.save(folder / "m.onnx", folder / "m.bin")
    return onnx.load(str(folder / "m.onnx"), load_external_data=False)


def places(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    return {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}


# -- names


def test_a_nodes_name_is_its_address() -> None:
    g = GraphBuilder("backbone")
    x = g.input("x", "float32", ("S",))
    with g.scope("layers.3"), g.scope("attn"):
        first, second = g.op("Neg", x), g.op("Neg", x)
        assert g.ops("Split", x, count=2, axis=0) == [
            "/backbone/layers.3/attn/Split:0",
            "/backbone/layers.3/attn/Split:1",
        ]
    assert (first, second) == ("/backbone/layers.3/attn/Neg", "/backbone/layers.3/attn/Neg_2")
    assert g.op("Neg", x) == "/backbone/Neg", "a scope ends"
    assert g._nodes[0].name == first


def test_a_scope_ends_when_building_fails() -> None:
    g = GraphBuilder("g")
    with pytest.raises(ZeroDivisionError), g.scope("inner"):
        _ = 1 / 0
    assert g.op("Neg", g.input("x", "float32", ())) == "/g/Neg"


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"text": dataclasses.replace(tiny.SPEC.text, head_dim=12)},
    "experts": {"text": dataclasses.replace(tiny.SPEC.text, moe=MoESpec(4, 2, 10, dense_layers=(1,)))},
    "add, tied": {"features_mode": "add", "tied": True},
    "text only": {"head": None},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_graph_of_a_checkpoint(tmp_path: Path, kind: str) -> None:
    """Addresses are unique and lead back to the module; values are defined once, before use; ops are named exactly;
    every promised weight is stored."""
    folder = tiny.write(tmp_path / "c", **SHAPES[kind])
    graphs = load_language(Checkpoint(folder)).graphs
    head = {"speech_input", "speech_head", "speech_head_fused"} if kind != "text only" else set()
    assert set(graphs) == {"encoder", "backbone"} | head
    for key, g in graphs.items():
        model = saved(g, tmp_path)
        names = [n.name for n in model.graph.node]
        assert len(set(names)) == len(names)
        assert all(name.startswith(f"/{key}/") for name in names)
        nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
        assert g.ops_used == tuple(sorted({f"{n.domain}::{n.op_type}" for n in nodes}))
        known = {i.name for i in model.graph.input} | {t.name for t in model.graph.initializer} | {""}
        for node in model.graph.node:
            assert set(node.input) <= known, node.name
            assert not set(node.output) & known, node.name
            known |= set(node.output)
        assert [i.name for i in model.graph.input] == [s.name for s in g.inputs]
        assert [o.name for o in model.graph.output] == [s.name for s in g.outputs]
        assert {o.name for o in model.graph.output} <= known
        used = {name for node in model.graph.node for name in node.input}
        assert {t.name for t in model.graph.initializer} <= used, "nothing is stored that no node reads"


def test_the_addresses_of_a_backbone() -> None:
    names = {n.name for n in load_language(Checkpoint(goldens.CHECKPOINT)).graphs["backbone"]._nodes}
    assert {
        "/backbone/embed_tokens/Gather",
        "/backbone/layers.2/attn/q_proj/Gemm",
        "/backbone/layers.2/attn/q_norm/RMSNormalization",
        "/backbone/layers.0/mlp/down_proj/Gemm",
        "/backbone/norm/RMSNormalization",
        "/backbone/lm_head/ArgMax",
    } <= names


def test_every_weight_of_the_checkpoint_is_in_a_graph() -> None:
    """Read through a counting reader: nothing that is required is left out of the bundle."""
    read: list[str] = []

    class Counting(Checkpoint):
        def read(self, name: str) -> Any:
            read.append(name)
            return super().read(name)

    checkpoint = Counting(goldens.CHECKPOINT)
    config = read_language_config(checkpoint)
    for g in load_language(checkpoint).graphs.values():
        for weight in g._weights.values():
            weight.array()
    assert set(read) == set(language_weights(config.model, config.tied).required)


# -- weights


def test_the_same_weight_twice_is_stored_once(tmp_path: Path) -> None:
    g = GraphBuilder("g")
    x = g.input("x", "float32", (2,))
    made = []

    def make() -> Any:
        made.append(1)
        return np.ones(2, np.float32)

    weights = [g.weight(Weight("w", FLOAT, (2,), make)) for _ in range(2)]
    g.output(g.op("Add", g.op("Add", x, weights[0]), weights[1]), "y", "float32", (2,))
    assert not made, "nothing is made before it is written"
    assert [t.name for t in saved(g, tmp_path).graph.initializer] == ["w"]
    assert made == [1]


def test_two_weights_of_one_name(tmp_path: Path) -> None:
    g = GraphBuilder("g")
    g.weight(Weight.of("w", np.ones(2, np.float32)))
    for other in (np.ones(3, np.float32), np.ones(2, np.float64)):
        with pytest.raises(ExportError, match="graph 'g': two different weights are called 'w'"):
            g.weight(Weight.of("w", other))


@pytest.mark.parametrize("made", [np.ones(3, np.float32), np.ones((2, 1), np.float32), np.ones(2)])
def test_a_promise_that_is_not_kept(tmp_path: Path, made: Any) -> None:
    g = GraphBuilder("g")
    g.output(g.op("Neg", g.weight(Weight("fold/w", FLOAT, (2,), lambda: made))), "y", "float32", (2,))
    with pytest.raises(ExportError, match=r"weight 'fold/w' came out as float(32|64)\[.*expected float32\[2\]"):
        saved(g, tmp_path)


def test_constants_are_shared_by_value() -> None:
    g = GraphBuilder("g")
    assert g.ints(1, -1) == g.ints(1, -1) != g.ints(1)
    assert g.ints() == g.ints()
    assert g.scalar(0.5) == g.scalar(0.5) != g.scalar(0.5, "float64")
    assert g.const([1, 2]) != g.const([1, 2]), "these have addresses of their own"
    assert g._weights[g.scalar(2, "int64")].array().shape == ()
    assert g._weights[g.ints()].array().shape == (0,)


# -- the data file

SIZES = [1, INLINE_BYTES // 4, INLINE_BYTES // 4 + 1, 777, LARGE_BYTES // 4 - 1, LARGE_BYTES // 4, 40_000, 300]


def weights_of(sizes: list[int]) -> tuple[GraphBuilder, dict[str, Any]]:
    g, arrays = GraphBuilder("g"), {}
    for n, size in enumerate(sizes):
        array = np.random.default_rng(n).standard_normal(size).astype(np.float32)
        arrays[f"w{n}"] = array
        g.output(g.op("Neg", g.weight(Weight.of(f"w{n}", array))), f"y{n}", "float32", (size,))
    return g, arrays


def test_where_weights_lie(tmp_path: Path) -> None:
    """Small ones in the graph, others in the data file, large ones on 64 KiB borders, none over another."""
    g, arrays = weights_of(SIZES)
    model = saved(g, tmp_path)
    data = (tmp_path / "m.bin").read_bytes()
    at = 0
    for tensor in model.graph.initializer:
        array, place = arrays[tensor.name], places(model).get(tensor.name)
        assert (place is None) == (array.nbytes <= INLINE_BYTES)
        if place is None:
            assert np.array_equal(numpy_helper.to_array(tensor), array)
            continue
        assert place["location"] == "m.bin"
        offset, length = int(place["offset"]), int(place["length"])
        assert offset >= at
        assert offset % (ALIGN_LARGE if length >= LARGE_BYTES else ALIGN_SMALL) == 0
        assert data[offset : offset + length] == array.tobytes()
        assert not any(data[at:offset]), "what lies between is zero"
        at = offset + length
    assert at == len(data)
    assert g.has_external_data


def test_onnx_reads_the_same_weights(tmp_path: Path) -> None:
    g, arrays = weights_of(SIZES)
    saved(g, tmp_path)
    model = onnx.load(str(tmp_path / "m.onnx"))
    onnx.checker.check_model(model)
    for tensor in model.graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])


def test_without_large_weights_there_is_no_data_file(tmp_path: Path) -> None:
    g, _ = weights_of([1, 256])
    assert not g.has_external_data
    assert g.save(tmp_path / "m.onnx", tmp_path / "m.bin") == 0
    assert not (tmp_path / "m.bin").exists()


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for key, g in load_language(Checkpoint(goldens.CHECKPOINT)).graphs.items():
            g.save(tmp_path / name / f"{key}.onnx", tmp_path / name / f"{key}.bin")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 10
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_graphs_that_share_a_data_file(tmp_path: Path) -> None:
    """What both use is made and stored once; each model loads alone and has its own numbers."""
    made: list[str] = []

    def weight(name: str, value: float) -> Weight:
        return Weight(name, FLOAT, (40_000,), lambda: (made.append(name), np.full(40_000, value, np.float32))[1])

    graphs = []
    for key, names in (("a", ("one", "both")), ("b", ("both", "two"))):
        g = GraphBuilder(key, data="ab")
        for name in names:
            value = float(len(name)) + (name == "two")
            g.output(g.op("Neg", g.weight(weight(name, value))), f"y_{name}", "float32", (40_000,))
        graphs.append((g, tmp_path / f"{key}.onnx"))
    size = save_together(graphs, tmp_path / "ab.bin")
    assert made == ["one", "both", "two"]
    assert size == (tmp_path / "ab.bin").stat().st_size < 4 * 4 * 40_000
    found = {}
    for key in ("a", "b"):
        model = onnx.load(str(tmp_path / f"{key}.onnx"))
        found[key] = {t.name: float(numpy_helper.to_array(t)[0]) for t in model.graph.initializer}
        bare = onnx.load(str(tmp_path / f"{key}.onnx"), load_external_data=False)
        assert {p["location"] for p in places(bare).values()} == {"ab.bin"}
    assert found == {"a": {"one": 3.0, "both": 4.0}, "b": {"both": 4.0, "two": 4.0}}


def test_graphs_that_disagree_on_a_weight(tmp_path: Path) -> None:
    graphs = []
    for key, size in (("a", 400), ("b", 401)):
        g = GraphBuilder(key, data="ab")
        g.output(g.op("Neg", g.weight(Weight.of("w", np.zeros(size, np.float32)))), "y", "float32", (size,))
        graphs.append((g, tmp_path / f"{key}.onnx"))
    with pytest.raises(ExportError, match="graph 'b': weight 'w' differs from the one that"):
        save_together(graphs, tmp_path / "ab.bin")


def test_one_weight_is_held_at_a_time(tmp_path: Path) -> None:
    size = 1 << 20
    g = GraphBuilder("g")
    for n in range(6):
        weight = Weight(f"w{n}", FLOAT, (size,), lambda n=n: np.full(size, n, np.float32))  # type: ignore[misc]
        g.output(g.op("Neg", g.weight(weight)), f"y{n}", "float32", (size,))
    tracemalloc.start()
    g.save(tmp_path / "m.onnx", tmp_path / "m.bin")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * size + 500_000
    assert math.isclose((tmp_path / "m.bin").stat().st_size, 6 * 4 * size)


def test_what_a_step_reads() -> None:
    """Looked-up tables do not count, a matrix counts once, of experts the active share."""
    g = GraphBuilder("g")
    x, ids = g.input("x", "float32", (1, 8)), g.input("ids", "int64", (1,))
    table = g.weight(Weight.of("table", np.zeros((100, 8), np.float32)))
    matrix = g.weight(Weight.of("matrix", np.zeros((8, 8), np.float32)))
    g.op("MatMul", g.op("MatMul", g.op("Gather", table, ids), matrix), matrix)
    assert g.bytes_read == 8 * 8 * 4
    first = g.weight(Weight.of("first", np.zeros((4, 6, 8), np.float32)))
    second = g.weight(Weight.of("second", np.zeros((4, 8, 3), np.float32)))
    g.op("MoE", x, x, first, "", second, "", domain="com.microsoft", k=1)
    assert g.bytes_read == 8 * 8 * 4 + (4 * 6 * 8 + 4 * 8 * 3) * 4 // 4
    g.op("MatMul", x, table, transB=1)
    assert g.bytes_read == 8 * 8 * 4 + (4 * 6 * 8 + 4 * 8 * 3) + 100 * 8 * 4, "a tied table is read whole by the head"


def test_borders_of_another_size(tmp_path: Path) -> None:
    g, arrays = weights_of([LARGE_BYTES // 4 + 1, LARGE_BYTES // 4, 777])
    save_together([(g, tmp_path / "m.onnx")], tmp_path / "m.bin", page=4096)
    found = places(onnx.load(tmp_path / "m.onnx", load_external_data=False))
    offsets = [int(found[name]["offset"]) for name in arrays]
    assert offsets == [0, LARGE_BYTES + 4096, 2 * LARGE_BYTES + 4096]
