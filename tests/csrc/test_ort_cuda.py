"""The ops for ONNX Runtime's CUDA provider, without a GPU: compiled for real, and run with emulated kernels as ops of
the CPU provider. Slow: run with `pytest -m slow`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edge_sdk import native
from edge_sdk.bundle import Bundle
from edge_sdk.errors import Error
from edge_sdk.runtimes import ort
from edge_sdk.sampling import Sampling
from edge_sdk.speech_head import FusedSpeechHead, SpeechHead, open_speech_head
from tests import tolerances
from tests.csrc.cuda_kernels import EMULATION, KERNELS, ROOT
from tests.runtimes.test_ops import TABLES, grouping
from tests.sdk.test_speech_head import POSITIONS, Recorder, converse

HEADERS = ROOT / "build" / "onnxruntime"
CORE = [*(ROOT / "csrc" / "core").glob("*.cc"), *(ROOT / "csrc" / "kernels").glob("*.cc")]
OPS = sorted((ROOT / "csrc" / "ort").glob("*.cc"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HEADERS.exists(), reason="onnxruntime's headers were not fetched (.ci/onnxruntime_headers)"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
    pytest.mark.skipif(bool(native.ort_ops_unavailable()), reason=native.ort_ops_unavailable()),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library whose ops are the CUDA ones, over emulated kernels."""
    folder = tmp_path_factory.mktemp("emulated")
    flags = [
        "-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi",
        "-ffp-contract=off", "-DEDGE_CUDA_EMULATION", "-DEDGE_CUDA_THREADS=128", "-DORT_API_MANUAL_INIT",
        "-DEDGE_ORT_CUDA", "-DEDGE_ORT_EMULATED", '-DEDGE_ORT_DEVICE_PROVIDER="CPUExecutionProvider"',
        '-DEDGE_ORT_DEVICE_MEMORY="Cpu"', f"-I{EMULATION}", "-Icsrc", "-isystem", HEADERS,
    ]  # fmt: skip
    sources = [*CORE, *OPS, f"{EMULATION}/fibers.cc", "-x", "c++", *KERNELS]
    made = ["g++", *flags, *sources, "-o", folder / native.ORT_LIBRARY]
    built = subprocess.run([str(word) for word in made], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def head(bundle: Bundle) -> SpeechHead:
    model = bundle.manifest.model
    assert model
    assert model.speech_head
    made = open_speech_head(ort.open_runtime(bundle, device_id=0, threads=1), model, model.speech_head, POSITIONS)
    assert isinstance(made, FusedSpeechHead)
    return made


@pytest.mark.parametrize("sampling", [Sampling(repetition_penalty=1.2), Sampling(do_sample=True, top_k=7, top_p=0.9)])
def test_speech_head(
    speech_bundle: Bundle, emulated: Path, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    model = speech_bundle.manifest.model
    assert model
    first, second, third = (Recorder(model.speech_ids.codebook_size, sampling) for _ in range(3))
    expected = converse(head(speech_bundle), model.backbone.hidden_size, first)
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(emulated))
    assert np.array_equal(converse(head(speech_bundle), model.backbone.hidden_size, second), expected)
    assert tolerances.relative(np.array(second.scores), np.array(first.scores)) < tolerances.KERNEL_RELATIVE
    third._forced = [(ids + 1) % model.speech_ids.codebook_size for ids in expected]
    forced = converse(head(speech_bundle), model.backbone.hidden_size, third)
    assert np.array_equal(forced, third._forced)


def test_refusals_leave_the_head_usable(speech_bundle: Bundle, emulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = speech_bundle.manifest.model
    assert model
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(emulated))
    made, recorder = head(speech_bundle), Recorder(model.speech_ids.codebook_size, Sampling())
    rows = np.ones((2, model.backbone.hidden_size), np.float32)
    made.prefill(rows)
    expected = made.start(recorder)
    made.rewind(2, rows[1:])
    with pytest.raises(Error, match="NaN or infinity"):
        made.step(np.full_like(rows[:1], np.nan), recorder)
    made.rewind(2, rows[1:])
    recorder = Recorder(model.speech_ids.codebook_size, Sampling())
    assert np.array_equal(made.start(recorder), expected)


@pytest.mark.parametrize("table", TABLES)
def test_group_tokens(emulated: Path, table: str) -> None:
    feed, model, expected = grouping(table)
    found = session(model, emulated).run(None, feed)[0]
    assert tolerances.relative(found, expected) < tolerances.KERNEL_RELATIVE
    feed["ids"][0, 0] = 1000
    with pytest.raises(Exception, match="outside the table"):
        session(model, emulated).run(None, feed)


def session(model: bytes, folder: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(folder / native.ORT_LIBRARY))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_library_with_both_providers(speech_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built as CMake does with CUDA and ORT on; without a GPU it loads, and the CPU's ops are the ones that run."""
    options = [f"-DEDGE_SDK_ORT_INCLUDE={HEADERS}", "-DCUDA=ON", "-DORT=ON", "-DCMAKE_CUDA_ARCHITECTURES=87"]
    subprocess.run(["cmake", "-S", ROOT / "csrc", "-B", tmp_path, *options], check=True, stdout=subprocess.DEVNULL)
    build = ["cmake", "--build", tmp_path, "--target", "edge_sdk_ort", "-j", "2"]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(tmp_path / "ort"))
    assert native.ort_cuda_ops_unavailable() == ""
    model = speech_bundle.manifest.model
    assert model
    converse(head(speech_bundle), model.backbone.hidden_size, Recorder(model.speech_ids.codebook_size, Sampling()))
