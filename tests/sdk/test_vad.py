"""The voice activity network: silero's own numbers, any cutting, bad pieces, and what is said when it cannot run."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import vad
from edge_sdk.errors import AudioError, Error, RuntimeUnavailableError
from edge_sdk.vad import FRAME_MS, FRAME_SAMPLES, SpeechDetector
from tests import speech
from tests.tolerances import VAD_PROBABILITY_ABS

# What the package silero-vad 6.2.3 gives for "tts_hibari_cmd_stop" with its `silero_vad.onnx`, every third frame.
STOP = [0.00555, 0.01075, 0.11864, 0.92193, 0.99984, 0.9994, 0.99773, 0.84984, 0.0157, 0.01261, 0.01202]


def test_the_numbers_are_silero_s() -> None:
    found = SpeechDetector(plain=True).feed(speech.clip("tts_hibari_cmd_stop"))
    assert found[::3] == pytest.approx(STOP, abs=VAD_PROBABILITY_ABS)


def test_the_file_is_the_one_that_is_documented() -> None:
    data = Path(vad.__file__).parent / "data"
    digest = hashlib.sha256((data / "silero_vad" / "silero_vad_16k_sequence.onnx").read_bytes()).hexdigest()
    assert digest in (data / "README.md").read_text()
    assert "MIT License" in (data / "silero_vad" / "LICENSE").read_text()


@pytest.mark.parametrize("name", speech.NAMES)
def test_speech_is_found_and_silence_is_not(name: str) -> None:
    pcm = speech.clip(name)
    found = np.array(SpeechDetector().feed(speech.scene(0.5, pcm, 1.0)))
    assert found[: 480 // FRAME_MS].max() < 0.3
    assert found[-480 // FRAME_MS :].max() < 0.3
    assert found.max() > 0.9


def test_noise_alone_is_no_speech() -> None:
    for level_db in (-60, -40, -20):
        assert max(SpeechDetector().feed(speech.noise(10, level_db))) < 0.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 16000), max_size=12))
def test_any_cutting_gives_the_same(cuts: list[int]) -> None:
    pcm = speech.clip("tts_hibari_cmd_stop")
    detector = SpeechDetector()
    cut = [p for piece in speech.pieces(pcm, cuts) for p in detector.feed(piece)]
    assert cut == SpeechDetector().feed(pcm)
    assert len(cut) == len(pcm) // FRAME_SAMPLES


def test_a_long_piece_is_one_of_many() -> None:
    pcm = np.tile(speech.clip("tts_hibari_cmd_stop"), 40)  # more than one run takes
    detector = SpeechDetector()
    assert detector.feed(pcm) == SpeechDetector().feed(pcm[:1000]) + _rest(pcm)


def _rest(pcm: np.ndarray[tuple[int], np.dtype[np.float32]]) -> list[float]:
    detector = SpeechDetector()
    detector.feed(pcm[:1000])
    return [p for at in range(1000, len(pcm), 50000) for p in detector.feed(pcm[at : at + 50000])]


def far(pcm: Any) -> Any:
    """From across a room: quiet, with an echo of its walls."""
    walls = np.random.default_rng(1).standard_normal(4800) * np.exp(-np.arange(4800) / 700)
    return (0.03 * np.convolve(pcm, np.concatenate([[1.0], 0.05 * walls]))).astype(np.float32)


@pytest.mark.parametrize("name", ["tts_joe_q_weather", "tts_joe_cmd_off", "human_aishell_zh_0122"])
def test_a_quiet_voice_after_a_long_silence_is_found(name: str) -> None:
    """The plain network drifts: it is what the refreshing is for, and loses most of the same sentence."""
    said = far(speech.clip(name))
    sound = np.concatenate([speech.noise(20.0, -64), said + speech.noise(len(said) / 16000, -64)[: len(said)]])
    frames = slice(20000 // FRAME_MS, None)
    found, plain = (np.array(SpeechDetector(plain=p).feed(sound)[frames]) for p in (False, True))
    assert (found > 0.5).mean() > 0.6
    assert (plain > 0.5).mean() < 0.3


def test_reset_begins_anew_and_two_detectors_are_apart() -> None:
    pcm = speech.clip("tts_hibari_cmd_stop")
    one, other = SpeechDetector(), SpeechDetector()
    expected = one.feed(pcm)
    other.feed(pcm[:12345])
    one.reset()
    assert one.feed(pcm) == expected


def test_a_refused_piece_harms_nothing() -> None:
    pcm = speech.clip("tts_hibari_cmd_stop")
    detector = SpeechDetector()
    found = detector.feed(pcm[:5000])
    for bad in ([float("nan")] * 600, "sound", np.zeros(5, np.int32), np.full(600, 1e4, np.float32)):
        with pytest.raises(AudioError):
            detector.feed(bad)
    assert found + detector.feed(pcm[5000:]) == SpeechDetector().feed(pcm)


def test_without_onnxruntime_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    vad._session.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match=r"voice activity detection needs onnxruntime.*edge_sdk\[cpu\]"):
        SpeechDetector()
    monkeypatch.undo()
    SpeechDetector()


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vad._session.cache_clear()
    monkeypatch.setattr(vad, "_MODEL", tmp_path / "gone.onnx")
    with pytest.raises(Error, match=r"gone\.onnx.*install edge_sdk again"):
        SpeechDetector()
    monkeypatch.undo()
    vad._session.cache_clear()
