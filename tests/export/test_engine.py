"""build-engine: the rewritten graphs, what the parser makes of them, plans really built, stamps, refusals.

With tensorrt_rtx installed nothing here needs a GPU; without it the tests that build are skipped.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge_sdk.bundle import Bundle
from edge_sdk.cli import main
from edge_sdk.engines import STAMP_NAME, EngineFolder, engines_root, find_engines
from edge_sdk.errors import Error, ExportError, RuntimeUnavailableError
from edge_sdk.export.engine.build import (
    EngineOptions,
    build_engines,
    engine_graph,
    parse_architectures,
)
from edge_sdk.export.engine.graph import Graph, Tensor
from edge_sdk.export.engine.network import Network
from edge_sdk.export.engine.precision import to_half
from edge_sdk.export.engine.profiles import Capacities, capacities, merged, profiles_of
from edge_sdk.export.engine.quantized import dequantize, packed_bits
from edge_sdk.export.engine.standard_ops import to_standard_ops
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint import MoESpec
from edge_sdk.manifest import Manifest
from edge_sdk.runtimes import cuda, trt_library
from edge_sdk.tensors import TensorSpec
from tests import speech_goldens, tiny, tolerances
from tests.export import full_width
from tests.runtimes import pretended
from tests.runtimes.pretended import model_bytes
from tests.vocoder import goldens as vocoder_goldens

MISSING = trt_library.unavailable("tensorrt_rtx")
needs_library = pytest.mark.skipif(bool(MISSING), reason=MISSING)
NO_GPU = cuda.unavailable()
ALL_SMS = (75, 80, 86, 89, 120, 121)
SIZES = EngineOptions(context_tokens=128)


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every graph: the golden checkpoint with the golden vocoder."""
    target = tmp_path_factory.mktemp("engines") / "tiny.bundle"
    return export_bundle(
        speech_goldens.CHECKPOINT, vocoder_goldens.TINY, target, ExportOptions(noise_frames=1000),
        voices={"zh_female": vocoder_goldens.VOICE},
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Any:
    with Bundle.open(bundle_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def library() -> Any:
    return trt_library.load("tensorrt_rtx")


def sizes(manifest: Manifest) -> Capacities:
    return capacities(manifest, SIZES.context_tokens, SIZES.vocoder_context_s)


def engines_of(bundle: Bundle) -> list[str]:
    return [key for key in bundle.manifest.graphs if key not in ("f0", "speech_head_fused")]


def network(bundle: Bundle, library: Any, key: str, precision: str) -> Network:
    return Network(library, engine_graph(bundle, key, sizes(bundle.manifest), 89, precision))


# -- the graphs


def test_only_standard_ops_remain(bundle: Bundle) -> None:
    for key in engines_of(bundle):
        graph = engine_graph(bundle, key, sizes(bundle.manifest), 89, "fp32")
        assert {n.domain for n in graph.nodes} <= {""}, key
        assert set(graph.opsets) == {""}


def test_the_border_stays_the_manifests(bundle: Bundle) -> None:
    """Names, order, and sizes; capacities have a size, and caches are float16 in a float16 engine. Nothing else."""
    for key in engines_of(bundle):
        entry, fixed = bundle.manifest.graphs[key], sizes(bundle.manifest).of(key, bundle.manifest)
        for precision in ("fp32", "fp16"):
            graph = engine_graph(bundle, key, sizes(bundle.manifest), 89, precision)
            for found, specs in ((graph.inputs, entry.input_specs()), (graph.outputs, entry.output_specs())):
                assert list(found) == list(specs)
                for name, spec in specs.items():
                    assert found[name].shape == tuple(fixed.get(d, d) for d in spec.shape)  # type: ignore[arg-type]
                    half = precision == "fp16" and name.startswith(("key_cache", "value_cache"))
                    assert found[name].dtype == ("float16" if half else spec.dtype)


def test_experts_are_refused(tmp_path: Path) -> None:
    spec = MoESpec(experts=4, experts_per_token=2, intermediate=12)
    text = dataclasses.replace(tiny.SPEC.text, moe=spec)
    path = export_bundle(tiny.write(tmp_path / "moe", text=text), None, tmp_path / "moe.bundle")
    with Bundle.open(path) as moe, pytest.raises(ExportError, match=r"com.microsoft::MoE \(first at /backbone/layers"):
        engine_graph(moe, "backbone", sizes(moe.manifest), 89, "fp32")


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_layer_takes_its_place_in_a_parsed_network(
    bundle: Bundle, library: Any, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """What is done for GroupTokens, on the real parser and builder, with a layer that tensorrt_rtx has."""

    def stand_in(self: Network, layer: Any, tensors: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids, text, *_ = layer.inputs
        assert tensors[ids].dtype == library.module.int64
        return self.network.add_identity(tensors[text]), {}

    monkeypatch.setattr(Network, "_add_plugin", stand_in)
    fixed = sizes(bundle.manifest)
    graph = engine_graph(bundle, "backbone", fixed, 89, precision, plugins=True)
    assert graph.inner is not None
    found = Network(library, graph)
    assert found.inputs() == list(bundle.manifest.graphs["backbone"].input_specs()) == list(graph.inputs)
    found.check(precision)
    plan, _ = found.build(profiles_of("backbone", bundle.manifest, fixed), 89, precision=precision)
    assert plan.data


# -- quantized weights


def one_product(bits: int, block: int, rows: int = 24, cols: int = 256, bias: bool = False) -> tuple[Graph, Any]:
    rng = np.random.default_rng(bits + block)
    weight = rng.standard_normal((rows, cols)).astype(np.float32)
    graph = Graph(
        "product",
        [helper.make_node("Gemm", ["x", "q_proj", *(["b"] if bias else [])], ["y"], name="/product/Gemm", transB=1)],
        {"x": TensorSpec("x", "float32", ("S", cols))},
        {"y": TensorSpec("y", "float32", ("S", rows))},
        {"q_proj": Tensor.of("q_proj", weight), "b": Tensor.of("b", rng.standard_normal(rows).astype(np.float32))},
        opsets={"": 24},
    )
    full_width.quantize(graph, bits, block)
    return graph, rng.standard_normal((3, cols)).astype(np.float32)


def answer(graph: Graph, **feeds: Any) -> Any:
    session = ort.InferenceSession(model_bytes(graph), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("block", "cols"), [(128, 256), (32, 256), (32, 80), (128, 80)])
@pytest.mark.parametrize("bias", [False, True])
def test_quantized_products_are_the_same(bits: int, block: int, cols: int, bias: bool) -> None:
    """MatMulNBits, as a bundle has it, against DequantizeLinear and Gemm; also where a row does not fill its blocks."""
    graph, x = one_product(bits, block, cols=cols, bias=bias)
    expected = answer(graph, x=x)
    to_standard_ops(graph)
    assert {n.op_type for n in graph.nodes} == {"Gemm"} | ({"DequantizeLinear"} if cols % block == 0 else set())
    assert tolerances.relative(answer_dequantized(graph, x), expected) < tolerances.MATMUL_RELATIVE


def answer_dequantized(graph: Graph, x: Any) -> Any:
    """4-bit initializers have no NumPy type: ONNX's own reader of packed bytes is used."""
    model, large = graph.model()
    for proto in model.graph.initializer:
        if proto.name in large:
            proto.ClearField("external_data")
            proto.data_location = TensorProto.DEFAULT
            proto.raw_data = large[proto.name].tobytes()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_old_gpus_get_four_bits_widened() -> None:
    assert packed_bits(75) == (8,)
    assert packed_bits(80) == packed_bits(121) == (4, 8)
    graph, x = one_product(4, 128)
    expected = answer(graph, x=x)
    to_standard_ops(graph, packed_bits(75))
    assert [n.op_type for n in graph.nodes] == ["Gemm"]
    assert tolerances.relative(answer(graph, x=x), expected) < tolerances.MATMUL_RELATIVE


def test_quantized_tables_are_widened() -> None:
    rng = np.random.default_rng(1)
    packed, scales = full_width.quantize_matrix(rng.standard_normal((10, 64)).astype(np.float32), 4, 32)
    packed = packed.reshape(10, -1)
    node = helper.make_node(
        "GatherBlockQuantized", ["table", "ids", "scales"], ["y"], name="/t/Gather", domain="com.microsoft",
        bits=4, block_size=32, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    graph = Graph(
        "table", [node], {"ids": TensorSpec("ids", "int64", ("S",))}, {"y": TensorSpec("y", "float32", ("S", 64))},
        {"table": Tensor.of("table", packed), "scales": Tensor.of("scales", scales)},
        opsets={"": 24, "com.microsoft": 1},
    )  # fmt: skip
    ids = np.array([3, 0, 9], np.int64)
    to_standard_ops(graph)
    expected = dequantize(packed, scales, (10, 64), 4, 32)[ids]
    assert np.array_equal(answer(graph, ids=ids), expected)


def test_a_weight_too_large_for_float16() -> None:
    graph, _ = one_product(8, 32)
    graph.nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="/product/Gemm", transB=1)]
    graph.weights["w"] = Tensor.of("w", np.full((24, 256), 7e4, np.float32))
    to_half(graph)
    with pytest.raises(ExportError, match=r"weight 'w' holds values float16 cannot take \(up to 70000\)"):
        graph.model()


def test_products_past_the_range_of_float16() -> None:
    """silu(gate) * up reaches 1e5 in the speech head; its sum over a row is small again."""
    graph, _ = one_product(8, 32)
    graph.nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="/speech_head/mlp/down_proj/Gemm", transB=1)]
    graph.weights["w"] = Tensor.of("w", np.full((24, 256), 1e-3, np.float32))
    x = np.zeros((1, 256), np.float32)
    x[0, :2] = (2e5, -1e5)
    expected = answer(graph, x=x)
    to_half(graph)
    found = answer(graph, x=x)
    assert np.isfinite(found).all()
    assert tolerances.relative(found, expected) < tolerances.HALF_RELATIVE


# -- what the parser makes of them


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_parsed_networks(bundle: Bundle, library: Any, precision: str) -> None:
    trt = library.module
    for key in engines_of(bundle):
        made = network(bundle, library, key, precision)
        made.check(precision)
        caches = [n for n in made.graph.inputs if n.startswith(("key_cache", "value_cache"))]
        types = [layer.type for layer in made.layers()]
        assert types.count(trt.LayerType.KV_CACHE_UPDATE) == len(caches), key
        assert len(made.attentions) == (len(caches) // 2 if caches else 2 * (key == "encoder"))
        assert made.inputs() == list(made.graph.inputs)
        outputs = [made.network.get_output(i).name for i in range(made.network.num_outputs)]
        assert sorted(outputs) == sorted(made.graph.outputs)
        assert tuple(made.shape_inputs()) == pretended.HOST_INPUTS.get(key, ())
        for attention in made.attentions:
            # Read as it was written: under a mask, and with no product over the cache in front.
            assert attention.causal_kind == trt.CausalMaskKind.NONE
            assert bool(caches) == (attention.mask is not None)
            if caches:
                assert attention.get_input(1).name.startswith("key_cache_out.")
                assert attention.get_input(2).name.startswith("value_cache_out.")
        wanted = trt.float16 if precision == "fp16" else trt.float32
        for layer in made.layers():
            if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, trt.LayerType.KV_CACHE_UPDATE):
                assert layer.get_output(0).dtype == wanted, layer.name


def test_one_profile_for_both(bundle: Bundle) -> None:
    both = profiles_of("backbone", bundle.manifest, sizes(bundle.manifest))
    (one,) = merged(both)
    assert (one.dims["S"], one.dims["M"], one.dims["N"]) == ((1, 1, 128), (0, 1, 128), (0, 0, 128))


@needs_library
def test_a_layer_left_in_float32_is_found(bundle: Bundle, library: Any) -> None:
    made = network(bundle, library, "backbone", "fp32")
    with pytest.raises(ExportError, match=r"'backbone' was parsed into something else: .* runs in float32"):
        made.check("fp16")


@needs_library
def test_a_cache_that_is_copied_is_found(bundle: Bundle, library: Any) -> None:
    graph = engine_graph(bundle, "backbone", sizes(bundle.manifest), 89, "fp32")
    for node in graph.nodes:
        if node.op_type == "TensorScatter" and node.input[0] == "key_cache.1":
            node.op_type, node.input[2] = "Add", ""
            del node.attribute[:], node.input[2:]
            node.input[1] = "key_cache.1"
    with pytest.raises(ExportError, match=r"cache 'key_cache\.1' is not updated in place"):
        Network(library, graph).check("fp32")


@needs_library
def test_what_the_parser_refuses_is_named(library: Any) -> None:
    graph, _ = one_product(8, 32)
    graph.nodes = [helper.make_node("StringNormalizer", ["x"], ["y"], name="/product/strange")]
    with pytest.raises(ExportError, match=r"tensorrt_rtx's parser does not take graph 'product': .*strange"):
        Network(library, graph)


# -- engines


@pytest.fixture(scope="module")
def built(bundle_path: Path, library: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle with float16 engines of every graph."""
    path = tmp_path_factory.mktemp("built") / "tiny.bundle"
    shutil.copytree(bundle_path, path)
    seen: list[tuple[str, int, int]] = []
    with Bundle.open(path) as opened:
        made = build_engines(opened, library, [120, 120], SIZES, progress=lambda *said: seen.append(said))
    assert [m.built for m in made] == [True]
    assert seen[-1] == ("SM 120: done", 7, 7)
    assert any(": backbone: " in what for what, _, _ in seen), "the library's own phases"
    return path


def check_engines(path: Path, library: Any, sm: int, precision: str) -> None:
    with Bundle.open(path) as opened:
        folder = find_engines(opened, "tensorrt_rtx", library.version, sm)
        stamp, manifest = folder.stamp, opened.manifest
        assert (stamp.sm, stamp.precision, stamp.bundle) == (sm, precision, opened.digest)
        assert set(stamp.graphs) == set(engines_of(opened))
        assert stamp.host_graphs == ("f0",)
        for key, entry in stamp.graphs.items():
            assert len(folder.plan(key)) == entry.size > 0
            expected = [p.name for p in profiles_of(key, manifest, sizes(manifest))]
            assert [p["name"] for p in entry.profiles] == expected
        assert manifest.model
        assert stamp.graphs["backbone"].kv_updates == 2 * manifest.model.backbone.num_layers
        # The golden backbone's heads have 16 channels, for which there are float16 kernels.
        assert stamp.graphs["backbone"].attention == ("fused" if precision == "fp16" else "decomposed")
        assert not list(engines_root(opened).glob("*.partial"))


@needs_library
def test_every_graph_has_an_engine(built: Path, library: Any) -> None:
    check_engines(built, library, 120, "fp16")


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_graph_for_every_architecture(bundle_path: Path, library: Any, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "tiny.bundle"
    shutil.copytree(bundle_path, path)
    with Bundle.open(path) as opened:
        options = EngineOptions(precision, SIZES.context_tokens)
        # TensorRT-RTX multiplies no float32 matrices on Turing.
        targets = [sm for sm in library.targets if precision == "fp16" or sm >= 80]
        assert len(build_engines(opened, library, targets, options)) == len(targets) >= len(ALL_SMS) - 1
    for sm in targets:
        check_engines(path, library, sm, precision)


@needs_library
def test_what_is_up_to_date_is_left_alone(
    built: Path, library: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "copy.bundle"
    shutil.copytree(built, path)
    with Bundle.open(path) as opened:
        folder = engines_root(opened) / f"tensorrt_rtx-{library.version}-sm120"
        assert not build_engines(opened, library, [120], SIZES)[0].built
        only_one(monkeypatch)
        for spoil in (spoil_plan, spoil_stamp, spoil_digest):
            spoil(folder)
            assert build_engines(opened, library, [120], SIZES)[0].built, spoil.__name__
            assert not build_engines(opened, library, [120], SIZES)[0].built
        longer = EngineOptions(context_tokens=130)
        assert build_engines(opened, library, [120], longer)[0].built
        assert EngineFolder(folder).stamp.context_tokens == 130


def only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the smallest graph is enough to see that something is built."""
    from edge_sdk.export.engine import build

    real = build._Builder._build_all

    def small(self: Any, folder: Path, sm: int) -> Any:
        entry = self._build_one(folder, "speech_input", sm, 0, 1)
        return self._stamp(sm, {"speech_input": entry})

    assert real
    monkeypatch.setattr(build._Builder, "_build_all", small)


def spoil_plan(folder: Path) -> None:
    plan = folder / "speech_input.plan"
    plan.write_bytes(plan.read_bytes()[:-1])


def spoil_stamp(folder: Path) -> None:
    (folder / STAMP_NAME).write_text("{}")


def spoil_digest(folder: Path) -> None:
    from edge_sdk.engines import stamp_bytes

    value = {**EngineFolder(folder).stamp.to_json(), "bundle": "0" * 64}
    (folder / STAMP_NAME).write_bytes(stamp_bytes(type(EngineFolder(folder).stamp).from_json(value)))


@needs_library
def test_a_build_that_fails_leaves_nothing(
    bundle_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edge_sdk.export.engine import build

    path = tmp_path / "copy.bundle"
    shutil.copytree(bundle_path, path)
    real = build._write

    def full(target: Path, data: bytes) -> None:
        if target.name == "speech_input.plan":
            raise OSError(28, "No space left on device")
        real(target, data)

    monkeypatch.setattr(build, "_write", full)
    with Bundle.open(path) as opened:
        monkeypatch.setattr(
            build._Builder, "_host_graphs", lambda self: [k for k in opened.manifest.graphs if k != "speech_input"]
        )
        with pytest.raises(ExportError, match=r"the disk is full while building .*: free some space and build again"):
            build_engines(opened, library, [89], SIZES)
        assert not list(engines_root(opened).iterdir())


@needs_library
@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
def test_loading_an_engine_without_a_gpu(built: Path, library: Any) -> None:
    from edge_sdk.errors import BundleError
    from edge_sdk.runtimes.trt_engine import Place, TrtEngine

    with Bundle.open(built) as opened:
        folder = find_engines(opened, "tensorrt_rtx", library.version, 120)
        entry, place = folder.stamp.graphs["speech_input"], Place(library, pretended.Device())
        with pytest.raises(BundleError, match=r"tensorrt_rtx cannot load engine 'speech_input': there is no GPU"):
            TrtEngine(place, "speech_input", entry, folder.plan("speech_input"), ({}, {}), None, "bundle 'x'")  # type: ignore[arg-type]


@needs_library
def test_a_one_file_bundle_has_its_engines_beside_it(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_bundle(tiny.write(tmp_path / "c"), None, tmp_path / "one.bundle", ExportOptions(one_file=True))
    only_one(monkeypatch)
    with Bundle.open(path) as opened:
        made = build_engines(opened, library, [89], SIZES)[0]
        assert made.path.parent == tmp_path / "one.bundle.engines"
        assert find_engines(opened, "tensorrt_rtx", library.version, 89).stamp == made.stamp


@needs_library
def test_an_architecture_the_library_does_not_know(bundle: Bundle, library: Any) -> None:
    with pytest.raises(Error, match=r"builds for SM 75, 80, 86, 89, 120, 121; asked for 90"):
        build_engines(bundle, library, [89, 90], SIZES)
    assert not engines_root(bundle).exists()


# -- the command


def test_architectures() -> None:
    assert parse_architectures("89") == parse_architectures("8.9") == parse_architectures("SM89") == [89]
    assert parse_architectures("sm_89, 12.0") == [89, 120]
    for wrong in ("", "x", "89,", "4", "8..9", "9999", "-89", "8.99"):
        with pytest.raises(Error, match="is no GPU architecture"):
            parse_architectures(wrong)


def test_wrong_options(bundle: Bundle) -> None:
    with pytest.raises(ExportError, match="precision 'int3' is not one of fp16, fp32"):
        build_engines(bundle, None, [89], EngineOptions(precision="int3"))  # type: ignore[arg-type]
    for tokens, seconds in ((0, 6.0), (128, -1.0)):
        with pytest.raises(ExportError, match="context must be positive"):
            capacities(bundle.manifest, tokens, seconds)


@needs_library
def test_the_command(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.bundle"
    shutil.copytree(bundle_path, path)
    only_one(monkeypatch)
    assert main(["build-engine", str(path), "--sm", "89", "--context-tokens", "128", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["built"] and said["stamp"]["sm"] == 89
    assert main(["build-engine", str(path), "--sm", "89", "--context-tokens", "128"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert main(["build-engine", str(path), "--sm", "90"]) == 1
    assert "asked for 90" in capsys.readouterr().err


def test_the_command_without_a_library(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trt_library, "unavailable", lambda name: "it is not there; pip install it")
    assert main(["build-engine", str(bundle_path), "--sm", "89"]) == 1
    assert "edge-sdk: 'tensorrt_rtx' is not usable here: it is not there; pip install it" in capsys.readouterr().err
    with pytest.raises(RuntimeUnavailableError):
        trt_library.load("tensorrt_rtx")


# -- full width


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("key", ["speech_head", "backbone"])
@pytest.mark.parametrize(("bits", "block"), [(0, 0), (4, 128), (4, 32), (8, 128)])
def test_a_full_width_layer(library: Any, key: str, bits: int, block: int) -> None:
    """One layer of the 8B in float16, int4 and int8 weight-only, for every architecture the library has."""
    assert library.targets == ALL_SMS
    plans = {}
    for packed, sms in ((packed_bits(75), (75,)), (packed_bits(80), ALL_SMS[1:])):
        graph = full_width.graph(key)
        if bits:
            full_width.quantize(graph, bits, block)
        model = full_width.MODEL
        context = Capacities(2048, 0)
        graph.fix({"capacity": 2048 * (model.group_size if key == "speech_head" else 1)})
        to_standard_ops(graph, packed)
        to_half(graph)
        made = Network(library, graph)
        made.check("fp16")
        profiles = profiles_of(key, full_width.MANIFEST, context)
        for sm in sms if key == "speech_head" else sms[:1] + sms[-1:]:
            plan, _ = made.build(profiles, sm, precision="fp16")
            assert (plan.attention, plan.kv_updates) == ("fused", 2)
            plans[sm] = len(plan.data)
            print(f"{key} int{bits or 'none'} block {block} SM {sm}: {len(plan.data) / 1e6:.1f} MB")
        del made
    # Of a value: in float16 the two profiles hold most products twice.
    weights = {0: 4.0, 4: 0.5 + 4 / max(block, 1), 8: 1.0 + 4 / max(block, 1)}[bits]
    values = full_width.linear_values(key)
    assert plans[120 if key == "speech_head" else 121] < 1.1 * weights * values + full_width.OTHER_BYTES[key]
