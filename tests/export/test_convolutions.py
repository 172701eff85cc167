"""Convolutions whose weights are stored in float16 or int8: by rules of their own, widened before they are used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ExportError
from edge_sdk.export.engine.build import EngineOptions, engine_graph
from edge_sdk.export.engine.graph import Graph, read_graph
from edge_sdk.export.engine.precision import to_half
from edge_sdk.export.engine.profiles import capacities
from edge_sdk.export.engine.standard_ops import to_standard_ops
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.export.graphs.linear import convolution_weight
from edge_sdk.export.parity import compare_language
from edge_sdk.export.parity_vocoder import compare_vocoder
from edge_sdk.export.parity_weights import compare_language_weights, compare_vocoder_weights
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.quantize import Scheme
from edge_sdk.export.quantized_reference import rounded_kernel
from edge_sdk.export.recipe import Policy, Rule, parse_rules
from edge_sdk.export.reference.layers import conv1d
from tests import speech_goldens, tiny, tolerances
from tests.runtimes.pretended import model_bytes
from tests.vocoder import goldens as vocoder_goldens

INT8 = Scheme("int8", 32)
NARROW = [INT8, Scheme("int8", 128), Scheme("fp16")]
SHAPES = [(8, 16, 6), (5, 7, 3), (12, 1, 31)]  # rows that fill blocks of 32, that do not, and of groups
LANGUAGE = ["encoder rows", "backbone states", "text scores", "speech scores"]


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_t(4, shape).astype(np.float32)


def built(weight: Any, scheme: Scheme, *, inputs: int = 0) -> GraphBuilder:
    """One convolution over x [1, inputs, L]."""
    g = GraphBuilder("g", policy=Policy((Rule("*", scheme, "convolutions"),)))
    inputs = inputs or weight.shape[1]
    x = g.input("x", "float32", (1, inputs, "L"))
    stored = convolution_weight(g, Weight.of("w", weight))
    y = g.op("Conv", x, stored, g.weight(Weight.of("b", draw(len(weight)))), group=inputs // weight.shape[1])
    g.output(y, "y", "float32", (1, len(weight), "M"))
    return g


def saved(g: GraphBuilder, folder: Path) -> Path:
    g.save(folder / "m.onnx", folder / "m.bin")
    return folder / "m.onnx"


@pytest.mark.parametrize("scheme", NARROW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weight_is_rounded_and_nothing_else(tmp_path: Path, scheme: Scheme, shape: tuple[int, ...]) -> None:
    weight = draw(*shape)
    inputs = 12 if shape[1] == 1 else shape[1]
    g = built(weight, scheme, inputs=inputs)
    x = draw(1, inputs, 40, seed=1)
    session = ort.InferenceSession(saved(g, tmp_path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0][0]
    expected = conv1d(x[0].astype(np.float64), rounded_kernel(weight, scheme).astype(np.float64), draw(shape[0]))
    assert tolerances.relative(found, expected) < tolerances.MATMUL_RELATIVE
    assert g.precision == scheme.kind
    rows, cols = shape[0], math.prod(shape[1:])
    stored = rows * scheme.row_bytes(cols) + 2 * rows * scheme.blocks(cols) if scheme.quantized else 2 * rows * cols
    small = 4 * (rows + 1) + 8 * 16  # bias, zero point, sizes
    assert stored <= g.bytes_read <= stored + small


@pytest.mark.parametrize("scheme", NARROW, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_it_is_widened_once_when_the_session_opens(tmp_path: Path, scheme: Scheme, shape: tuple[int, ...]) -> None:
    """ONNX Runtime folds what widens it: no call pays for it. (It would not fold a DequantizeLinear.)"""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(saved(built(draw(*shape), scheme), tmp_path), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False)
    assert [n.op_type for n in optimized.graph.node if not n.op_type.startswith("Reorder")] == ["Conv"]


def test_float32_is_stored_as_it_was(tmp_path: Path) -> None:
    g = built(draw(4, 3, 5), Scheme())
    assert [n.op_type for n in g._nodes] == ["Conv", "Identity"]
    assert g.precision == "fp32"


def test_a_value_that_no_scale_carries(tmp_path: Path) -> None:
    weight = draw(4, 8, 4)
    weight[1, 0, 0] = 1e7
    for scheme in (INT8, Scheme("fp16")):
        with pytest.raises(ExportError, match=r"tensor 'w' has values .*: give it fp32 in a recipe"):
            saved(built(weight, scheme), tmp_path)


# -- rules


def test_rules_for_matrices_leave_convolutions_alone() -> None:
    """Also those of bundles from before there were others."""
    policy = Policy(parse_rules([{"match": "*", "scheme": "int8"}], "here"))
    assert policy.convolution("continuous_audio_tower.conv1.weight") == Scheme()
    assert policy.scheme("continuous_audio_tower.conv1.weight") == Scheme("int8", 128)


def test_rules_for_convolutions() -> None:
    rule = {"match": "*.conv?.weight", "scheme": "int8", "block": 32, "of": "convolutions"}
    rules = parse_rules([rule, {"match": "*", "scheme": "fp16", "of": "convolutions"}], "here")
    assert [r.to_json() for r in rules] == [rule, {"match": "*", "scheme": "fp16", "of": "convolutions"}]
    policy = Policy(rules)
    assert policy.convolution("a.conv2.weight") == INT8
    assert policy.convolution("conv_pre.weight") == Scheme("fp16")
    assert policy.scheme("a.conv2.weight") == Scheme()
    policy.check_used(rules)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "int4"}, "rule 1: convolutions take fp32, fp16, int8, found int4"),
        ({"of": "convolution"}, "rule 1: 'of' must be one of matrices, convolutions, found 'convolution'"),
        ({"of": ["convolutions"]}, "rule 1: 'of' must be one of"),
        ({"block": 48}, "rule 1: int8 takes blocks of"),
    ],
)
def test_rules_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_rules([{"match": "*", "scheme": "int8", "of": "convolutions", **changes}], "here")


def exported(output: Path, *rules: dict[str, Any], checkpoint: Path = speech_goldens.CHECKPOINT) -> Path:
    """Both halves, float32 but for these convolutions."""
    file = output.with_suffix(".json")
    file.write_text(json.dumps({"rules": [{"of": "convolutions", **rule} for rule in rules]}))
    options = ExportOptions(recipe=file, noise_frames=400)
    return export_bundle(checkpoint, vocoder_goldens.TINY, output, options)


def test_a_pattern_that_decides_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'\*\.fc1\.weight' decides nothing: no convolution has such a name") as e:
        exported(tmp_path / "x.bundle", {"match": "*.fc1.weight", "scheme": "int8"})
    assert "There are: continuous_audio_tower.conv1.weight" in str(e.value)


# -- whole bundles


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("convolutions")
    int8 = {"match": "*", "scheme": "int8", "block": 32}
    return {
        "fp16": exported(folder / "fp16", {"match": "*", "scheme": "fp16"}),
        "int8": exported(folder / "int8", int8),
        "mixed": exported(folder / "mixed", {"match": "fold/f0_predictor.*", "scheme": "fp16"}, int8),
    }


@pytest.mark.parametrize("kind", ["fp16", "int8", "mixed"])
def test_it_equals_the_same_rounding_in_numpy(bundles: dict[str, Path], kind: str) -> None:
    """To what float32 weights are held: activations are not rounded."""
    with Bundle.open(bundles[kind]) as bundle:
        report = bundle.verify()
        assert max(v for k, v in report.items() if k.endswith("_error")) < tolerances.SELFTEST_RELATIVE
        language = compare_language(bundle, speech_goldens.CHECKPOINT)
        vocoder = compare_vocoder(bundle, vocoder_goldens.TINY)
        graphs = bundle.manifest.graphs
    assert [(s.against, s.name) for s in language] == [(a, name) for a in ("same", "fp32") for name in LANGUAGE]
    assert [s.against for s in vocoder] == ["same"] * 4 + ["fp32"] * 4 + ["same"] * 2 + ["fp32"] * 2
    assert all(s.ok for s in (*language, *vocoder))
    same = [s for s in (*language, *vocoder) if s.against == "same" and s.name != "waveform: samples"]
    assert all(s.relative < tolerances.PARITY_RELATIVE for s in same), same
    f0, samples = vocoder[-4:-2]
    assert f0.max_abs < tolerances.F0_HZ
    assert samples.max_abs < tolerances.SAMPLES_ABS
    wide = "int8" if kind == "mixed" else kind
    assert {k: g.precision for k, g in graphs.items() if g.precision != "fp32"} == {
        "encoder": wide, "flow_tokens": wide, "flow": wide, "f0": "fp16" if kind == "mixed" else wide, "waveform": wide,
    }  # fmt: skip


def test_the_error_of_every_weight(bundles: dict[str, Path]) -> None:
    for kind in ("fp16", "int8"):
        with Bundle.open(bundles[kind]) as bundle:
            lines = [
                *compare_language_weights(bundle, speech_goldens.CHECKPOINT),
                *compare_vocoder_weights(bundle, vocoder_goldens.TINY),
            ]
        least, most = tolerances.ROUNDING_RELATIVE[kind]
        assert {line.graph for line in lines} == {"encoder", "flow_tokens", "flow", "f0", "waveform"}
        assert all(line.ok and least < line.relative < most for line in lines), lines


def test_another_checkpoint_is_told(tmp_path: Path) -> None:
    paths = [tiny.write(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))]
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps({"rules": [{"match": "*", "scheme": "int8", "of": "convolutions"}]}))
    with Bundle.open(export_bundle(paths[0], None, tmp_path / "x.bundle", ExportOptions(recipe=recipe))) as bundle:
        assert all(line.ok for line in compare_language_weights(bundle, paths[0]))
        assert [line.name for line in compare_language_weights(bundle, paths[1]) if not line.ok] == [
            "continuous_audio_tower.conv1.weight", "continuous_audio_tower.conv2.weight",
        ]  # fmt: skip


# -- engines


def opened(g: GraphBuilder) -> Graph:
    specs = [{s.name: s for s in side} for side in (g.inputs, g.outputs)]
    return read_graph("g", g.model("", {}).SerializeToString(), memoryview(b""), *specs, "here")


def answer(graph: Graph, x: Any) -> Any:
    session = ort.InferenceSession(model_bytes(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("scheme", NARROW, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_an_engine_has_one_weight(scheme: Scheme, shape: tuple[int, ...]) -> None:
    graph, x = opened(built(draw(*shape), scheme)), draw(1, shape[1], 40, seed=1)
    expected = answer(graph, x)
    to_standard_ops(graph)
    assert [n.op_type for n in graph.nodes] == ["Conv", "Identity"]
    kernel = graph.weights[graph.nodes[0].input[1]]
    assert kernel.shape == shape
    assert np.array_equal(kernel.load(), rounded_kernel(draw(*shape), scheme))
    assert tolerances.relative(answer(graph, x), expected) < tolerances.MATMUL_RELATIVE
    to_half(graph)
    assert tolerances.relative(answer(graph, x), expected) < tolerances.HALF_RELATIVE


def test_the_engines_of_a_bundle(bundles: dict[str, Path]) -> None:
    """Every kernel is a weight, and nothing is left of what widened it."""
    options = EngineOptions(context_tokens=128)
    with Bundle.open(bundles["mixed"]) as bundle:
        sizes = capacities(bundle.manifest, options.context_tokens, options.vocoder_context_s)
        for key in ("encoder", "flow_tokens", "flow", "waveform"):
            graph = engine_graph(bundle, key, sizes, 89, "fp32")
            assert all(n.input[1] in graph.weights for n in graph.nodes if n.op_type == "Conv")
            constant = [n for n in graph.nodes if all(name in graph.weights for name in n.input)]
            assert not [n.name for n in constant if n.op_type in ("Sub", "Mul", "Unsqueeze")]


def test_a_kernel_that_is_computed_stays_so() -> None:
    g = GraphBuilder("g")
    x, weight = g.input("x", "float32", (1, 3, "L")), g.input("k", "float32", (4, 3, 5))
    g.output(g.op("Conv", x, g.op("Neg", weight)), "y", "float32", (1, 4, "M"))
    graph = opened(g)
    to_standard_ops(graph)
    assert [n.op_type for n in graph.nodes] == ["Neg", "Conv", "Identity"]
