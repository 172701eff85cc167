"""The TensorRT runtimes. Without a GPU they run on a pretended one (pretended.py): the graphs that TensorRT is given,
and the runtime's own work (bindings, copies, captures), are judged by the same goldens as every backend."""

from __future__ import annotations

import logging
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import runtimes
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.engines import STAMP_NAME, EngineFolder, engines_root
from edge_sdk.errors import BundleError, Error, RuntimeUnavailableError
from edge_sdk.generation import GenerationConfig
from edge_sdk.runtimes import cuda, ort_cuda, trt, trt_library, trt_rtx
from edge_sdk.vocoder import Vocoder
from tests import speech_goldens, tolerances
from tests.runtimes import pretended
from tests.sdk import test_golden_language as language
from tests.vocoder import goldens as vocoder_goldens
from tests.vocoder.bundles import export_folder

NO_GPU = cuda.unavailable()
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=8)


@pytest.fixture(scope="module")
def speech_path(speech_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint with pretended float32 engines inside."""
    path = tmp_path_factory.mktemp("trt") / "speech.bundle"
    shutil.copytree(speech_bundle_path, path)
    with Bundle.open(path) as bundle:
        pretended.make_engines(bundle, context_tokens=512)
    return path


PRETENDED = {"tensorrt_rtx": "tests.runtimes.pretended", "onnxruntime": runtimes.MODULES["onnxruntime"]}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry knows the pretended library, and "auto" takes it where there are engines."""
    monkeypatch.setattr(runtimes, "MODULES", PRETENDED)


@pytest.fixture
def speech(speech_path: Path, pretend: None) -> Iterator[Bundle]:
    with Bundle.open(speech_path) as bundle:
        yield bundle


@pytest.fixture(scope="module")
def parts(speech_path: Path) -> Iterator[language.Parts]:
    with Bundle.open(speech_path) as bundle:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtimes, "MODULES", PRETENDED)
            opened = language.Parts(bundle)
        yield opened


@pytest.fixture(scope="module")
def vocoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("trt") / "vocoder.bundle"
    path = export_folder(vocoder_goldens.TINY, target, {"zh_female": vocoder_goldens.VOICE})
    with Bundle.open(path) as bundle:
        pretended.make_engines(bundle)
    return path


def damaged(path: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    copy = tmp_path / path.name
    shutil.copytree(path, copy)
    return copy


# -- goldens


@pytest.mark.parametrize("name", speech_goldens.clips())
def test_encoder_rows(parts: language.Parts, name: str) -> None:
    language.test_encoder_rows(parts, name)


@pytest.mark.parametrize("name", speech_goldens.greedy_cases())
def test_every_greedy_golden(parts: language.Parts, name: str) -> None:
    """Ids and scores, over prefill and every decode step, from the graphs in standard ops."""
    assert parts.runtime.name == pretended.NAME
    language.test_greedy_tokens(parts, name)


def test_decode_steps_are_captured_once(parts: language.Parts) -> None:
    name = next(n for n in speech_goldens.greedy_cases() if speech_goldens.speaks(n))
    language.run(parts, name)
    stream = parts.runtime.engine("backbone").stream  # type: ignore[attr-defined]
    captures, launches = stream.captures, stream.launches
    _, _, steps, _ = language.run(parts, name)
    # One with a group and one without; every step but the first of each is a launch.
    assert 1 <= stream.captures - captures <= 2
    assert len(steps) - 4 <= stream.launches - launches < len(steps)


def test_the_vocoder_streams_the_same_samples(vocoder_path: Path, pretend: None) -> None:
    """Past the point where the flow's cache is full and blocks replace the oldest; f0 stays on the CPU in float64."""
    ids = np.random.default_rng(3).integers(0, 50, 230)
    with Bundle.open(vocoder_path) as bundle:
        found = Vocoder(bundle, steps=4).synthesize(ids)
        assert bundle.runtime().name == pretended.NAME
        expected = Vocoder(bundle, steps=4, runtime="onnxruntime").synthesize(ids)
    rms = [float(np.sqrt((x.astype(np.float64) ** 2).mean())) for x in (found, expected)]
    assert len(found) == len(expected)
    assert abs(rms[0] / rms[1] - 1) < tolerances.RMS_RELATIVE
    # Errors of f0 integrate into the phase, so only the beginning is comparable sample by sample.
    assert np.abs(found[:2400] - expected[:2400]).max() < tolerances.SAMPLES_ABS


def test_float16_engines_keep_the_scores(speech_bundle_path: Path, tmp_path: Path, pretend: None) -> None:
    path = damaged(speech_bundle_path, tmp_path)
    with Bundle.open(path) as bundle:
        pretended.make_engines(bundle, "fp16", context_tokens=512)
        parts = language.Parts(bundle)
        engine = parts.runtime.engine("backbone")
        assert engine.inputs["key_cache.0"].dtype == "float16"
        assert engine.inputs["ids"].dtype == "int64"
        name = next(n for n in speech_goldens.greedy_cases() if speech_goldens.speaks(n))
        golden = speech_goldens.arrays(name)
        _, recorder, _, _ = language.run(parts, name, forced=golden)
    scores = np.stack([s[b] for s, b in zip(recorder.text_logits, golden["text_top5_ids"], strict=True)])
    assert tolerances.relative(scores, golden["text_top5_logits"]) < tolerances.HALF_RELATIVE
    picks = golden["crq_top5_ids"].reshape(-1, 5)
    scores = np.stack([s[b] for s, b in zip(recorder.speech_logits, picks, strict=True)])
    assert tolerances.relative(scores, golden["crq_top5_logits"].reshape(-1, 5)) < tolerances.HALF_RELATIVE


def test_a_chat_on_engines(speech: Bundle) -> None:
    question = str(speech_goldens.recording("syn0p2"))
    replies = []
    for runtime in ("auto", "onnxruntime"):
        with Chat(speech, runtime=runtime, generation=GREEDY, context_tokens=512) as chat:
            chat.send(audio=question)
            replies.append(chat.send(text="and now?"))
    assert replies[0].text_ids == replies[1].text_ids
    assert list(replies[0].speech_ids) == list(replies[1].speech_ids)


# -- bindings


@pytest.fixture
def call(speech: Bundle) -> Any:
    return speech.runtime().engine("speech_input").call()


def test_inputs_are_read_when_run(speech: Bundle, call: Any) -> None:
    width = speech.manifest.model.backbone.hidden_size  # type: ignore[union-attr]
    rows = np.zeros((1, width), np.float32)
    call.set("head_input", rows)
    call.fetch("rows")
    seen = []
    for value in (0.0, 1.0, 2.0):
        rows[:] = value
        seen.append(call.run()["rows"])
    assert np.ptp([s.sum() for s in seen]) > tolerances.CHANGED_ABS
    again = speech.runtime("onnxruntime").engine("speech_input").call()
    again.set("head_input", rows)
    again.fetch("rows")
    assert tolerances.relative(seen[-1], again.run()["rows"]) < tolerances.MATMUL_RELATIVE


def test_outputs_go_where_they_are_bound(speech: Bundle, call: Any) -> None:
    engine = speech.runtime().engine("speech_input")
    hidden, width = int(engine.inputs["head_input"].shape[1]), int(engine.outputs["rows"].shape[1])
    size = speech.manifest.model.group_size  # type: ignore[union-attr]
    call.set("head_input", np.ones((1, hidden), np.float32))
    for out in (np.empty((size, width), np.float32), speech.runtime().zeros((size, width), np.float32)):
        call.out("rows", out)
        for _ in range(3):
            out[:] = np.nan
            assert call.run() == {}
            assert np.isfinite(out).all()


def test_wrong_bindings(speech: Bundle, call: Any) -> None:
    hidden = int(speech.runtime().engine("speech_input").inputs["head_input"].shape[1])
    with pytest.raises(Error, match="nothing is bound to head_input"):
        call.run()
    with pytest.raises(Error, match=r"wants float32\['S', \d+\], got float64"):
        call.set("head_input", np.zeros((1, hidden)))
    with pytest.raises(Error, match="not C-contiguous"):
        call.set("head_input", np.zeros((4, 2 * hidden), np.float32)[:, ::2])
    with pytest.raises(Error, match="has no 'rows' there; it has head_input"):
        call.set("rows", np.zeros((1, hidden), np.float32))
    call.set("head_input", np.zeros((65, hidden), np.float32))
    with pytest.raises(Error, match=r"'S' is 65, the engine takes 1 to 1\. Build it for longer input|takes 1 to 64"):
        call.run()
    call.set("head_input", np.zeros((1, hidden), np.float32))
    call.out("rows", np.zeros((7, int(speech.runtime().engine("speech_input").outputs["rows"].shape[1])), np.float32))
    with pytest.raises(Error, match="the bound array is"):
        call.run()


def test_a_conversation_longer_than_the_engines(speech_bundle_path: Path, tmp_path: Path, pretend: None) -> None:
    with Bundle.open(damaged(speech_bundle_path, tmp_path)) as bundle:
        pretended.make_engines(bundle, context_tokens=64)
        with pytest.raises(Error, match=r"cache of 65 positions .* built for 64: ask for less"):
            Chat(bundle, context_tokens=65)
        with Chat(bundle, context_tokens=48, generation=GREEDY) as chat:
            assert chat.send(text="hello").text_ids


def test_a_vocoder_that_looks_back_further_than_the_engines(vocoder_path: Path, pretend: None) -> None:
    with Bundle.open(vocoder_path) as bundle:
        for context_s in (7.0, None):
            with pytest.raises(
                Error, match=r"cache of \d+ positions .* the flow engine was built for 350: ask for less"
            ):
                Vocoder(bundle, steps=4, context_s=context_s).synthesize(np.zeros(60, np.int64))
        with pytest.raises(Error, match=r"'ids' is 203, the engine takes 4 to 178\. Build it"):
            Vocoder(bundle, steps=4, mode="whole").synthesize(np.zeros(200, np.int64))


# -- engines that do not fit


def test_a_bundle_without_engines(speech_bundle_path: Path, pretend: None) -> None:
    with Bundle.open(speech_bundle_path) as bundle:
        with pytest.raises(
            RuntimeUnavailableError, match=r"no engines for tensorrt_rtx .* on SM 89; build them: edge-sdk"
        ):
            bundle.runtime("tensorrt_rtx")
        assert not engines_root(bundle).exists()


def test_auto_goes_on_without_engines(
    speech_bundle_path: Path, pretend: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Bundle.open(speech_bundle_path) as bundle, caplog.at_level(logging.INFO, "edge_sdk.runtimes"):
        assert bundle.runtime().name == "onnxruntime"
    assert "tensorrt_rtx: no engines for tensorrt_rtx" in caplog.text


def test_engines_of_another_bundle(speech_path: Path, tmp_path: Path, pretend: None) -> None:
    path = damaged(speech_path, tmp_path)
    with Bundle.open(path) as bundle:
        shutil.rmtree(engines_root(bundle))
        folder = pretended.make_engines(bundle, changes={"bundle": "0" * 64})
        with pytest.raises(
            RuntimeUnavailableError, match=r"do not fit: they were built from another bundle; build them"
        ):
            bundle.runtime("tensorrt_rtx")
        shutil.rmtree(folder)
        pretended.make_engines(bundle, changes={"sm": 120})
        with pytest.raises(RuntimeUnavailableError, match=r"they are for tensorrt_rtx 0\.pretended on SM 120"):
            bundle.runtime("tensorrt_rtx")


def test_a_plan_that_was_changed(speech_path: Path, tmp_path: Path, pretend: None) -> None:
    with Bundle.open(damaged(speech_path, tmp_path)) as bundle:
        plan = next(engines_root(bundle).glob("*/backbone.plan"))
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
        runtime = bundle.runtime("tensorrt_rtx")
        with pytest.raises(
            BundleError, match=r"backbone\.plan' is damaged \(its hash differs\); build the engines again"
        ):
            runtime.engine("backbone")
        runtime.engine("encoder")
        plan.write_bytes(data[:-1])
        with pytest.raises(RuntimeUnavailableError, match=r"'backbone\.plan' is missing or has another size"):
            pretended.open_runtime(bundle)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-20], "is not JSON"),
        (lambda text: text.replace('"fp32"', '"fp16"'), "is damaged or was edited"),
        (lambda text: text.replace("edge_sdk.engines", "engines"), "does not say format"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "format version 2"),
        (lambda text: "[]", "does not say format"),
    ],
)
def test_a_damaged_stamp(speech_path: Path, tmp_path: Path, pretend: None, spoil: Any, message: str) -> None:
    with Bundle.open(damaged(speech_path, tmp_path)) as bundle:
        stamp = next(engines_root(bundle).glob(f"*/{STAMP_NAME}"))
        stamp.write_text(spoil(stamp.read_text()))
        with pytest.raises(RuntimeUnavailableError, match=message):
            pretended.open_runtime(bundle)
        with pytest.raises(BundleError, match=message):
            EngineFolder(stamp.parent)


def test_a_plan_the_library_does_not_take(speech_path: Path, tmp_path: Path, pretend: None) -> None:
    with Bundle.open(damaged(speech_path, tmp_path)) as bundle:
        folder = next(engines_root(bundle).iterdir())
        opened = EngineFolder(folder)
        monkey = opened.stamp.graphs["encoder"]
        (folder / monkey.file).write_bytes(bytes(monkey.size))
        runtime = pretended.open_runtime(bundle)
        with pytest.raises(BundleError, match="is damaged"):
            runtime.engine("encoder")


# -- what this machine lacks


def test_the_reasons_are_named() -> None:
    found = runtimes.available()
    for name, module in (("tensorrt", trt), ("tensorrt_rtx", trt_rtx), ("onnxruntime-cuda", ort_cuda)):
        assert found[name] == module.unavailable()
    if NO_GPU:
        assert all(found[name] for name in ("tensorrt", "tensorrt_rtx", "onnxruntime-cuda"))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, r"cannot be imported \(AttributeError"),
        ({"__version__": "10.3.0"}, "tensorrt 10.3.0 is older than 10.15"),
        ({"__version__": "8.6", "IKVCacheUpdateLayer": 1, "OnnxParser": 1, "Runtime": 1}, "older than 10.15"),
    ],
)
def test_a_library_that_will_not_do(monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], message: str) -> None:
    module = types.ModuleType("tensorrt")
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(RuntimeUnavailableError, match=message):
        trt_library.load("tensorrt")


def test_unknown_library() -> None:
    with pytest.raises(RuntimeUnavailableError, match="unknown engine library 'onnx'; choose tensorrt or tensorrt_rtx"):
        trt_library.load("onnx")


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
def test_without_a_gpu(speech_path: Path) -> None:
    with Bundle.open(speech_path) as bundle, pytest.raises(RuntimeUnavailableError, match="cannot run here: "):
        bundle.runtime("tensorrt_rtx")
    with pytest.raises(cuda.CudaError):
        cuda.Device(0)


# -- on a GPU


@pytest.mark.skipif(bool(NO_GPU), reason=f"no GPU: {NO_GPU}")
@pytest.mark.parametrize("name", speech_goldens.greedy_cases())
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_goldens_on_a_gpu(speech_bundle_path: Path, tmp_path: Path, runtime: str, name: str) -> None:
    from edge_sdk.export.engine.build import EngineOptions, build_engines

    missing = trt_library.unavailable(runtime)
    if missing:
        pytest.skip(missing)
    with Bundle.open(damaged(speech_bundle_path, tmp_path)) as bundle:
        sm = cuda.Device(0).sm
        build_engines(bundle, trt_library.load(runtime), [sm], EngineOptions("fp32"), present=sm)
        parts = language.Parts(bundle)
        assert parts.runtime.name == runtime
        language.test_greedy_tokens(parts, name)
