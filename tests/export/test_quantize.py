"""Rounding to int4 and int8: the layout value by value, and the ops that read it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edge_sdk.errors import ExportError
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.export.graphs.linear import experts, linear, lookup
from edge_sdk.export.quantize import (
    Scheme,
    expert_block,
    quantize,
    quantize_activations,
    quantize_pieces,
    relative_rms,
)
from edge_sdk.export.quantized_reference import product, rounded
from edge_sdk.export.recipe import Policy, Rule
from edge_sdk.export.reference.layers import silu, softmax
from tests import tolerances

FLOAT = np.dtype(np.float32)
SCHEMES = [Scheme(kind, block) for kind in ("int4", "int8") for block in (32, 128)]  # type: ignore[arg-type]
NARROW = [*SCHEMES, Scheme("fp16")]
SHAPES = [(3, 128), (5, 40), (1, 1), (4, 257), (2, 384)]


def draw(*shape: int, seed: int = 0) -> Any:
    """Heavy-tailed, as weights are."""
    return np.random.default_rng([seed, *shape]).standard_t(4, shape).astype(np.float32)


def slowly(matrix: Any, scheme: Scheme) -> tuple[bytes, list[float]]:
    """The layout once more, one value after the other."""
    half = 8 if scheme.kind == "int4" else 128
    data, scales = bytearray(), []
    for row in matrix.tolist():
        for at in range(0, len(row), scheme.block):
            block = row[at : at + scheme.block]
            largest = max(block, key=abs)
            scale = np.float16(np.float32(largest) / np.float32(-half))
            scales.append(float(scale))
            steps = [int(np.rint(np.float32(v) / np.float32(scale))) if scale else 0 for v in block]
            codes = [min(max(q, -half), half - 1) + half for q in steps]
            codes += [half] * (scheme.block - len(block))
            if half == 8:
                codes = [low + 16 * high for low, high in zip(codes[::2], codes[1::2], strict=True)]
            data += bytes(codes)
    return bytes(data), scales


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_value_lies_where_the_layout_says(shape: tuple[int, int], scheme: Scheme) -> None:
    matrix = draw(*shape)
    matrix[0, :7] = 0
    matrix[-1] = 0  # blocks of nothing but zeros
    found = quantize(matrix, scheme)
    data, scales = slowly(matrix, scheme)
    assert found.values.dtype == np.uint8
    assert found.values.shape == (shape[0], scheme.row_bytes(shape[1]))
    assert found.scales.dtype == np.float16
    assert found.scales.shape == (shape[0], scheme.blocks(shape[1]))
    assert found.values.tobytes() == data
    assert found.scales.ravel().tolist() == scales
    assert not found.dequantize()[-1].any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_back_again_within_half_a_step(scheme: Scheme) -> None:
    matrix = draw(16, 300)
    found = quantize(matrix, scheme)
    step = np.abs(np.repeat(found.scales.astype(np.float32), scheme.block, axis=1)[:, :300])
    # Values of the largest size but the other sign have one step less to go to; float16 scales are off by 2^-11.
    half = 8 if scheme.kind == "int4" else 128
    reachable = np.minimum(np.abs(matrix), step * (half - 1))
    error = np.abs(found.dequantize() - np.where(np.sign(matrix) == -np.sign(step), matrix, matrix))
    slack = np.abs(matrix) - reachable + step * half * 2.0**-10
    assert (error <= step / 2 + slack).all()


def test_the_largest_value_has_eight_steps() -> None:
    """Of both signs: the scale takes the sign, so that the largest is -8 and nothing is lost to symmetry."""
    for largest in (4.0, -4.0):
        row = np.array([[largest, -largest * 0.75, 0.5, *[0.0] * 29]], np.float32)
        found = quantize(row, Scheme("int4", 32))
        assert found.scales[0, 0] == -largest / 8
        assert np.array_equal(found.dequantize(), row)


@pytest.mark.parametrize("block", [32, 128])
def test_it_is_closer_than_seven_steps(block: int) -> None:
    matrix = draw(64, 1024)
    blocks = matrix.reshape(-1, block)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 7
    symmetric = relative_rms(np.rint(blocks / scale) * scale, blocks)
    assert relative_rms(quantize(matrix, Scheme("int4", block)).dequantize(), matrix) < 0.92 * symmetric


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_however_it_is_cut(scheme: Scheme) -> None:
    """Streamed in any pieces the bytes are those of the whole."""
    matrix = draw(50, 70)
    whole = quantize(matrix, scheme)
    for cuts in ([7], [1, 2, 30], list(range(1, 50))):
        pieces = list(quantize_pieces(np.split(matrix, cuts), scheme, "m"))
        assert np.array_equal(np.concatenate([p[0] for p in pieces]), whole.values)
        assert np.array_equal(np.concatenate([p[1] for p in pieces]), whole.scales)


def test_small_and_large_values() -> None:
    """Scales below float16's normal range lose relative precision, never more than 2^-25 * 8 of a value."""
    for size in (1e-3, 1e-5, 1e-7, 1e-12):
        matrix = draw(4, 128) * np.float32(size)
        found = quantize(matrix, Scheme("int4", 128))
        step = np.abs(found.scales.astype(np.float64)).max()
        assert np.abs(found.dequantize() - matrix).max() <= step / 2 + 2.0**-25 * 8 + np.abs(matrix).max() / 8
    with pytest.raises(ExportError, match=r"tensor 'x.weight' has values up to 1e\+06.*give it fp32 in a recipe"):
        quantize(np.full((2, 32), 1e6, np.float32), Scheme("int4", 32), "x.weight")


@pytest.mark.parametrize(("kind", "block"), [("int3", 0), ("int4", 0), ("int4", 100), ("int8", 8), ("fp16", 32)])
def test_schemes_that_do_not_exist(kind: Any, block: int) -> None:
    with pytest.raises(ExportError, match=r"is not one of|take a power of two"):
        Scheme(kind, block)


def test_activations() -> None:
    x = np.array([[1.0, -127.0, 0.5, 2.5, 0.0, 0.0]], np.float32)
    assert quantize_activations(x, 4).tolist() == [[1.0, -127.0, 0.0, 2.0, 0.0, 0.0]]
    assert quantize_activations(x, 128).tolist() == [[1.0, -127.0, 0.0, 2.0, 0.0, 0.0]]


# -- the ops that read it


def run(g: GraphBuilder, folder: Path, feed: dict[str, Any], options: ort.SessionOptions | None = None) -> Any:
    g.save(folder / "m.onnx", folder / "m.bin")
    session = ort.InferenceSession(str(folder / "m.onnx"), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def builder(*rules: tuple[str, Scheme]) -> GraphBuilder:
    return GraphBuilder("g", policy=Policy(tuple(Rule(*rule) for rule in rules)))


@pytest.mark.parametrize("scheme", NARROW, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(64, 256), (33, 40), (1, 1), (7, 300)])
@pytest.mark.parametrize("count", [1, 9])
def test_a_linear_layer(tmp_path: Path, scheme: Scheme, rows: int, cols: int, count: int) -> None:
    matrix, bias, x = draw(rows, cols), draw(rows), draw(count, cols, seed=1)
    g = builder(("*", scheme))
    y = linear(g, g.input("x", "float32", ("S", cols)), Weight.of("w", matrix), Weight.of("b", bias))
    g.output(y, "y", "float32", ("S", rows))
    expected = product(x.astype(np.float64), matrix, scheme) + bias
    assert tolerances.relative(run(g, tmp_path, {"x": x}), expected) < tolerances.QUANTIZED_NODE_RELATIVE
    assert g.precision == scheme.kind


@pytest.mark.parametrize("scheme", NARROW, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(50, 256), (33, 40), (5, 1)])
def test_a_table(tmp_path: Path, scheme: Scheme, rows: int, width: int) -> None:
    """Exactly the rounded rows, whatever the shape of the ids; none at all too."""
    table = draw(rows, width)
    expected = rounded(table, scheme)
    for ids in ([rows - 1], [0, 2, 2], [[1, 0], [3, 4], [2, 2]], np.zeros((0, 5))):
        at = np.asarray(ids, np.int64)
        g = builder(("*", scheme))
        shape = tuple("NG"[: at.ndim])
        y = lookup(g, Weight.of("t", table), g.input("ids", "int64", shape))
        g.output(y, "y", "float32", (*shape, width))
        assert np.array_equal(run(g, tmp_path, {"ids": at}), expected[at])


@pytest.mark.parametrize("scheme", NARROW, ids=str)
def test_a_tied_embedding_is_stored_once(tmp_path: Path, scheme: Scheme) -> None:
    table, x = draw(400, 200), draw(1, 200, seed=1)
    g = builder(("*", scheme))
    rows = lookup(g, Weight.of("t", table), g.input("ids", "int64", (1,)))
    y = linear(g, g.op("Add", g.input("x", "float32", (1, 200)), rows), Weight.of("t", table))
    g.output(y, "y", "float32", (1, 400))
    found = run(g, tmp_path, {"ids": np.array([7]), "x": x})
    expected = product(x + rounded(table, scheme)[7:8], table, scheme)
    assert tolerances.relative(found, expected) < tolerances.QUANTIZED_NODE_RELATIVE
    stored = 400 * scheme.row_bytes(200) + 2 * 400 * scheme.blocks(200) if scheme.quantized else 2 * 400 * 200
    assert stored <= (tmp_path / "m.bin").stat().st_size < stored + (1 << 16)
    constants = 3 * 8  # where the filling of the last block begins
    assert g.bytes_read - stored in (0, constants), "the head reads it whole, once"


def test_scales_are_widened_once_when_the_session_opens(tmp_path: Path) -> None:
    """ONNX Runtime folds the casts: no step pays for them."""
    g = builder(("*", Scheme("int4", 128)))
    y = linear(g, g.input("x", "float32", (1, 256)), Weight.of("w", draw(300, 256)))
    g.output(y, "y", "float32", (1, 300))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    run(g, tmp_path, {"x": draw(1, 256)}, options)
    assert "Cast" in {n.op_type for n in g._nodes}
    optimized = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False)
    assert [n.op_type for n in optimized.graph.node] == ["MatMulNBits"]


def mixture(x: Any, routing: Any, first: Any, second: Any, k: int, scheme: Scheme) -> Any:
    """Experts in the bundle's arithmetic: int4 ones have float activations in onnxruntime's op, int8 ones int8."""

    def multiply(h: Any, matrix: Any) -> Any:
        if scheme.kind == "int8":
            return product(h, matrix, scheme)
        return h @ rounded(matrix, scheme).astype(h.dtype).T

    share, out = softmax(routing), np.zeros((len(x), second.shape[1]))
    for row in range(len(x)):
        chosen = np.argsort(-share[row], kind="stable")[:k]
        for e in chosen:
            both = multiply(x[row : row + 1].astype(np.float64), first[e])
            inner = silu(both[:, 0::2]) * both[:, 1::2]
            out[row] += share[row, e] / share[row, chosen].sum() * multiply(inner, second[e])[0]
    return out


ATTRIBUTES: dict[str, Any] = {
    "k": 2,
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "normalize_routing_weights": 1,
}


@pytest.mark.parametrize("scheme", NARROW, ids=str)
@pytest.mark.parametrize(("width", "inner"), [(64, 96), (128, 256)])
def test_experts(tmp_path: Path, scheme: Scheme, width: int, inner: int) -> None:
    first, second = draw(4, 2 * inner, width) / 8, draw(4, width, inner) / 8
    x, routing = draw(5, width, seed=1), draw(5, 4)
    g = builder(("*", scheme))
    inputs = g.input("x", "float32", ("S", width)), g.input("r", "float32", ("S", 4))
    y = experts(g, *inputs, Weight.of("up", first), Weight.of("down", second), **ATTRIBUTES)
    g.output(y, "y", "float32", ("S", width))
    block = expert_block(scheme, width, inner) if scheme.quantized else 0
    expected = mixture(x, routing, first, second, 2, Scheme(scheme.kind, block))
    found = run(g, tmp_path, {"x": x, "r": routing})
    assert tolerances.relative(found, expected) < tolerances.QUANTIZED_NODE_RELATIVE
    total = sum(w.nbytes for w in g.weights)
    assert g.bytes_read == total // 2, "two of four experts"


def test_experts_that_no_block_fills(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They stay float32, and that is said."""
    g = builder(("*", Scheme("int4", 128)))
    inputs = g.input("x", "float32", ("S", 20)), g.input("r", "float32", ("S", 4))
    weights = Weight.of("up", draw(4, 28, 20)), Weight.of("down", draw(4, 20, 14))
    g.output(experts(g, *inputs, *weights, **ATTRIBUTES), "y", "float32", ("S", 20))
    assert run(g, tmp_path, {"x": draw(3, 20), "r": draw(3, 4)}).shape == (3, 20)
    assert g.precision == "fp32"
    assert set(g.policy.exceptions) == {"up", "down"}
    assert "widths 20 and 14 of the experts are not filled" in caplog.text


def test_experts_of_two_kinds(tmp_path: Path) -> None:
    g = builder(("up", Scheme("int4", 32)), ("*", Scheme("int8", 32)))
    inputs = g.input("x", "float32", ("S", 32)), g.input("r", "float32", ("S", 4))
    weights = Weight.of("up", draw(4, 64, 32)), Weight.of("down", draw(4, 32, 32))
    g.output(experts(g, *inputs, *weights, **ATTRIBUTES), "y", "float32", ("S", 32))
    assert "one scheme for both of their matrices, found int4 and int8" in g.policy.exceptions["up"]


def test_values_past_float16() -> None:
    g = builder(("*", Scheme("fp16")))
    linear(g, g.input("x", "float32", (1, 2)), Weight.of("w", np.full((1, 2), 1e5, np.float32)))
    with pytest.raises(ExportError, match="tensor 'w' has values past float16's range: give it fp32 in a recipe"):
        g.weights[0].array()


# -- memory


@pytest.mark.parametrize("scheme", NARROW, ids=str)
def test_only_the_source_is_held(tmp_path: Path, scheme: Scheme) -> None:
    """Rounded and written a piece at a time, from a source that comes in pieces or whole."""
    rows, cols = 8192, 1024
    size = rows * cols * 4

    def whole() -> Any:
        return np.full((rows, cols), 0.5, np.float32)

    def pieces() -> Iterator[Any]:
        for _ in range(rows // 256):
            yield np.full((256, cols), 0.5, np.float32)

    for load, held in ((whole, size), (pieces, 256 * cols * 4)):
        g = builder(("*", scheme))
        weight = Weight("w", FLOAT, (rows, cols), load)
        g.output(linear(g, g.input("x", "float32", (1, cols)), weight), "y", "float32", (1, rows))
        tracemalloc.start()
        g.save(tmp_path / "m.onnx", tmp_path / "m.bin")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < held + (24 << 20), "beside it the scales, and five temporaries of a million values"
