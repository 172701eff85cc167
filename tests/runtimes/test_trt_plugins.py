"""The speech head as a TensorRT plugin, from build-engine to a conversation, on a pretended TensorRT (pretended.py,
pretended_builder.py): what is built, bound and read back is ours; the layer itself is computed by the CPU kernels."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_sdk import native, runtimes
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.engines import STAMP_NAME, EngineFolder, engines_root
from edge_sdk.errors import Error, RuntimeUnavailableError
from edge_sdk.export.engine.build import BuiltEngines, EngineOptions, build_engines
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.generation import GenerationConfig
from edge_sdk.plugin_head import PluginSpeechHead
from edge_sdk.runtimes import ort, trt_library
from edge_sdk.runtimes.trt_runtime import TrtRuntime
from edge_sdk.sampling import Sampling
from edge_sdk.speech_head import FusedSpeechHead, PlainSpeechHead, SpeechHead, open_speech_head
from tests import speech_goldens, tolerances
from tests.runtimes import pretended, pretended_builder
from tests.sdk import test_golden_language as language
from tests.sdk.test_speech_head import POSITIONS, Recorder, converse

pytestmark = pytest.mark.skipif(bool(native.ort_ops_unavailable()), reason=native.ort_ops_unavailable())
SM = pretended.SM
Library = trt_library.Library


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has a plugin library as the pretended registry takes it, beside what is installed."""
    folder = tmp_path_factory.mktemp("native")
    shutil.copytree(native.FOLDER, folder, dirs_exist_ok=True)
    (folder / native.TRT_LIBRARY).write_bytes(pretended_builder.LIBRARY)
    return folder


@pytest.fixture
def with_plugins(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(plugins))
    return plugins


def library() -> Library:
    return Library("tensorrt", pretended_builder.module())


def build(bundle: Bundle, found: Any, precision: str = "fp32", **options: Any) -> BuiltEngines:
    wanted = EngineOptions(precision, context_tokens=512, **options)
    return build_engines(bundle, found, [SM], wanted, present=SM)[0]


@pytest.fixture(scope="module")
def built_path(speech_bundle_path: Path, plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "speech.bundle"
    shutil.copytree(speech_bundle_path, path)
    with pytest.MonkeyPatch.context() as patch, Bundle.open(path) as bundle:
        patch.setenv("EDGE_SDK_NATIVE", str(plugins))
        build(bundle, library())
    return path


class Registered:
    """Stands where a runtime's module does."""

    def __init__(self) -> None:
        self.library = library()

    def unavailable(self) -> str:
        return ""

    def open_runtime(self, bundle: Bundle, *, device_id: int, threads: int | None) -> TrtRuntime:
        return TrtRuntime(bundle, self.library, pretended.Device(), threads)


@pytest.fixture
def speech(built_path: Path, with_plugins: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    registered, known = Registered(), runtimes._module
    monkeypatch.setattr(runtimes, "_module", lambda name: registered if name == "tensorrt" else known(name))
    with Bundle.open(built_path) as bundle:
        yield bundle


def head_of(bundle: Bundle, runtime: Any, positions: int = POSITIONS) -> SpeechHead:
    model = bundle.manifest.model
    assert model
    assert model.speech_head
    return open_speech_head(runtime, model, model.speech_head, positions)


def recorder(bundle: Bundle, sampling: Sampling | None = None) -> Recorder:
    assert bundle.manifest.model
    return Recorder(bundle.manifest.model.speech_ids.codebook_size, sampling or Sampling())


def hidden(bundle: Bundle) -> int:
    assert bundle.manifest.model
    return bundle.manifest.model.backbone.hidden_size


# -- built


def test_what_is_built(built_path: Path) -> None:
    with Bundle.open(built_path) as bundle:
        folder = EngineFolder(next(p for p in engines_root(bundle).iterdir() if p.is_dir()))
    entry = folder.stamp.graphs["speech_head_fused"]
    assert entry.plugins == ("SpeechHead",)
    assert folder.stamp.no_plugins == ""
    backbone = folder.stamp.graphs["backbone"]
    assert backbone.plugins == ("GroupTokens",)
    with Bundle.open(built_path) as bundle:
        assert list(backbone.input_specs()) == list(bundle.manifest.graphs["backbone"].input_specs())
    plan = onnx.load_from_string(bytes(folder.plan("backbone")))
    assert [n.op_type for n in plan.graph.node if n.domain == "edge_sdk"] == ["GroupTokens"]
    assert not {"speech_head", "speech_input"} & set(folder.stamp.graphs)
    assert [p["name"] for p in entry.profiles] == ["prefill", "decode"]
    assert entry.input_specs()["key_cache.0"].shape[1] == 512 * 5


def test_a_bundle_with_plugins_is_not_built_twice(speech: Bundle) -> None:
    assert not build(speech, library()).built


@pytest.mark.parametrize("spoiled", ["missing", "another file", "off"])
def test_without_the_library_standard_ops_are_built(
    speech_bundle_path: Path, tmp_path: Path, plugins: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, spoiled: str,
) -> None:  # fmt: skip
    path, folder = tmp_path / "a.bundle", tmp_path / "native"
    shutil.copytree(speech_bundle_path, path)
    shutil.copytree(plugins, folder)
    if spoiled == "missing":
        (folder / native.TRT_LIBRARY).unlink()
    else:
        (folder / native.TRT_LIBRARY).write_bytes(b"something else")
    reason = {"missing": "were not built", "another file": "invalid ELF header", "off": "EDGE_SDK_NATIVE is off"}[
        spoiled
    ]
    monkeypatch.setenv("EDGE_SDK_NATIVE", "off" if spoiled == "off" else str(folder))
    with Bundle.open(path) as bundle, caplog.at_level(logging.INFO, "edge_sdk.export"):
        made = build(bundle, library())
        assert reason in made.stamp.no_plugins
        assert "the speech head and grouping are built of standard ops" in caplog.text
        assert {"speech_head", "speech_input"} <= set(made.stamp.graphs)
        assert "speech_head_fused" not in made.stamp.graphs
        with caplog.at_level(logging.INFO, "edge_sdk.tensorrt"):
            runtime = TrtRuntime(bundle, library(), pretended.Device())
            assert isinstance(head_of(bundle, runtime), PlainSpeechHead)
        assert "engine is of standard ops" in caplog.text
        # The plugins are there again: engines without them are out of date.
        monkeypatch.setenv("EDGE_SDK_NATIVE", str(plugins))
        again = build(bundle, library())
        assert again.built
        assert again.stamp.no_plugins == ""


def test_tensorrt_rtx_has_no_plugin_layers() -> None:
    assert Library("tensorrt_rtx", pretended_builder.module()).plugins_missing() == "tensorrt_rtx has no plugin layers"


def test_engines_whose_plugins_are_gone(built_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(tmp_path))
    message = r"layers of our own \(backbone, speech_head_fused\): .* were not built"
    with Bundle.open(built_path) as bundle, pytest.raises(RuntimeUnavailableError, match=message):
        TrtRuntime(bundle, library(), pretended.Device())


def test_fields_that_the_plugin_refuses(speech_bundle_path: Path, tmp_path: Path, with_plugins: Path) -> None:
    """An older library beside a newer package."""
    path = tmp_path / "a.bundle"
    shutil.copytree(speech_bundle_path, path)
    found = library()
    assert found.plugins_missing() == ""
    found.module.registry.creators["SpeechHead"].create_plugin = lambda name, fields, phase: None
    with Bundle.open(path) as bundle:
        with pytest.raises(Error, match="does not take SpeechHead of graph 'speech_head_fused' as a plugin"):
            build(bundle, found)
        assert not list(engines_root(bundle).glob(f"*/{STAMP_NAME}"))


# -- run


@pytest.mark.parametrize("name", speech_goldens.greedy_cases())
def test_every_greedy_golden(speech: Bundle, name: str) -> None:
    """Text and speech ids of the goldens, from a reply as a user gets it."""
    language.test_greedy_tokens(language.Parts(speech), name)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_same_as_the_op_on_the_cpu(tmp_path: Path, with_plugins: Path, precision: str) -> None:
    """A conversation of prefills, a rewind and groups, over every format of weights and caches, to the bit."""
    path = export_bundle(speech_goldens.CHECKPOINT, None, tmp_path / "a.bundle", ExportOptions(precision=precision))
    with Bundle.open(path) as bundle:
        made = build(bundle, library())
        assert made.stamp.graphs["backbone"].plugins == ("GroupTokens",)
        plugin = head_of(bundle, TrtRuntime(bundle, library(), pretended.Device()))
        fused = head_of(bundle, ort.open_runtime(bundle, device_id=0, threads=1))
        assert isinstance(plugin, PluginSpeechHead)
        assert isinstance(fused, FusedSpeechHead)
        for sampling in (Sampling(), Sampling(do_sample=True, temperature=0.8, top_p=0.9, repetition_penalty=1.2)):
            recorders = [recorder(bundle, sampling) for _ in range(2)]
            ids = [converse(h, hidden(bundle), r) for h, r in zip((plugin, fused), recorders, strict=True)]
            assert np.array_equal(ids[0], ids[1])
            assert np.array_equal(recorders[0].scores, recorders[1].scores)
            for head in (plugin, fused):
                head.rewind(0, None)


def test_float16_engines_halve_what_is_float32(speech_bundle_path: Path, tmp_path: Path, with_plugins: Path) -> None:
    path = tmp_path / "a.bundle"
    shutil.copytree(speech_bundle_path, path)
    with Bundle.open(path) as bundle:
        build(bundle, library(), "fp16")
        runtime = TrtRuntime(bundle, library(), pretended.Device())
        engine: Any = runtime.engine("speech_head_fused")
        assert engine.inputs["key_cache.0"].dtype == "float16"
        assert set(engine.engine.plan["fields"]["matrix_dtypes"]) == {1}
        scores = []
        for head in (head_of(bundle, runtime), head_of(bundle, ort.open_runtime(bundle, device_id=0, threads=1))):
            kept = recorder(bundle)
            kept._forced = [np.arange(5) + n for n in range(POSITIONS)]
            converse(head, hidden(bundle), kept)
            scores.append(np.array(kept.scores))
    assert tolerances.relative(scores[0], scores[1]) < tolerances.HALF_RELATIVE


def test_one_run_makes_a_group_and_is_captured(speech: Bundle) -> None:
    runtime = speech.runtime("tensorrt")
    head = head_of(speech, runtime)
    stream = runtime.engine("speech_head_fused").stream  # type: ignore[attr-defined]
    rows = np.ones((3, hidden(speech)), np.float32)
    kept = recorder(speech)
    head.prefill(rows)
    head.start(kept)
    launches = stream.launches
    for kept.step in range(1, 6):
        head.step(rows[:1], kept)
    assert stream.launches - launches == 5


def test_settings_change_from_reply_to_reply(speech: Bundle) -> None:
    """One engine serves any GenerationConfig, and Philox's numbers are the CPU's."""
    configs = [
        GenerationConfig(seed=5, max_new_tokens=12), GenerationConfig(do_sample=False, max_new_tokens=6),
        GenerationConfig(seed=2**63 + 11, temperature=1.5, top_k=9, top_p=1.0, max_new_tokens=12),
    ]  # fmt: skip
    replies = []
    for name in ("tensorrt", "onnxruntime"):
        with Chat(speech, runtime=name, context_tokens=512) as chat:
            head = chat._context.speech_head
            assert isinstance(head, PluginSpeechHead if name == "tensorrt" else FusedSpeechHead)
            found = []
            for config in configs:
                reply = chat.send(text="hello", generation=config)
                found.append((reply.text_ids, list(reply.speech_ids)))
        replies.append(found)
    assert replies[0] == replies[1]
    assert replies[0][0] != replies[0][2]


def test_an_error_in_the_state_is_raised_and_the_head_goes_on(speech: Bundle) -> None:
    head = head_of(speech, speech.runtime("tensorrt"))
    rows = np.ones((2, hidden(speech)), np.float32)
    head.prefill(rows)
    expected = head.start(recorder(speech))
    head.rewind(2, rows[1:])
    with pytest.raises(Error, match="NaN or infinity"):
        head.step(rows[:1] * np.float32(np.nan), recorder(speech))
    with pytest.raises(Error, match="out of range"):
        head.step(rows[:1], recorder(speech, Sampling(do_sample=True, temperature=-1.0)))
    assert np.array_equal(head.start(recorder(speech)), expected)


def test_more_positions_than_the_engine_holds(speech: Bundle) -> None:
    with pytest.raises(Error, match=r"cache of 2565 positions .* built for 2560: ask for less"):
        head_of(speech, speech.runtime("tensorrt"), 513)


def test_caches_bound_apart_are_refused(speech: Bundle) -> None:
    runtime = speech.runtime("tensorrt")
    head = head_of(speech, runtime)
    assert isinstance(head, PluginSpeechHead)
    head.prefill(np.ones((2, hidden(speech)), np.float32))
    elsewhere = runtime.zeros(head._arrays["key_cache.0"].shape, head._arrays["key_cache.0"].dtype)
    head._make_group.out("key_cache_out.0", elsewhere)
    with pytest.raises(Error, match=r"key_cache_out\.0 does not share the memory of key_cache\.0"):
        head.start(recorder(speech))
