"""Acoustic echo cancellation: takes what the speaker plays out of what the microphone hears, by a kept library.

Two are known, each optional: Speex's (libspeexdsp, which distributions carry) and WebRTC's (AEC3, in the package
`livekit`, extra `echo`). docs/audio.md holds both against each other: Speex's leaves the user's voice whole.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np

from edge_sdk.audio import SAMPLE_RATE
from edge_sdk.checks import check_choice
from edge_sdk.errors import DeviceError
from edge_sdk.runtime import Array

FRAME_SAMPLES = SAMPLE_RATE // 100  # 10 ms, what both libraries take
CHOICES = ("auto", "speex", "webrtc", "off")

logger = logging.getLogger(__name__)


class EchoCanceller(Protocol):
    """One of the libraries. Frames are float32 mono [FRAME_SAMPLES] at 16 kHz."""

    name: str
    finds_delay: bool
    """Whether a delay of any length is its own affair; else the echo must come within its filter's tail."""

    def process(self, heard: Array, played: Array) -> Array:
        """A microphone's frame and what left the speaker meanwhile -> the frame without it."""

    def reset(self) -> None:
        """Forget the room: the echo's delay is another from here on."""

    def close(self) -> None:
        """Let go of the library's memory."""


def open_canceller(choice: str = "auto") -> EchoCanceller | None:
    """The canceller asked for; None for "off", and for "auto" if none is installed, which the log then says.

    Args:
        choice: "speex", "webrtc", "off", or "auto": the first of them that is installed.

    Raises:
        DeviceError: the library that was asked for is not installed; says how to have it.
    """
    check_choice("echo_cancellation", choice, CHOICES)
    if choice == "off":
        return None
    if choice != "auto":
        return _OPENERS[choice]()
    missing = []
    for opener in _OPENERS.values():
        try:
            canceller = opener()
        except DeviceError as e:
            missing.append(str(e))
        else:
            logger.info("echo is cancelled by %s", canceller.name)
            return canceller
    logger.warning("echo is not cancelled, so an open speaker may interrupt itself: %s", "; or ".join(missing))
    return None


class WebRtcCanceller:
    """WebRTC's AEC3 with its residual suppressor and high-pass; finds the echo's delay by itself."""

    name = "webrtc"
    finds_delay = True

    def __init__(self) -> None:
        try:
            from livekit import rtc
        except (ImportError, OSError) as e:
            raise DeviceError(f"WebRTC's echo canceller is not installed ({e}): pip install 'edge_sdk[echo]'") from e
        self._frame = rtc.AudioFrame
        self._apm: Any = rtc.AudioProcessingModule(echo_cancellation=True, high_pass_filter=True)

    def process(self, heard: Array, played: Array) -> Array:
        self._apm.process_reverse_stream(self._frame(_to_int16(played).tobytes(), SAMPLE_RATE, 1, FRAME_SAMPLES))
        self._apm.set_stream_delay_ms(0)  # both frames are of the same moment
        frame = self._frame(bytearray(_to_int16(heard).tobytes()), SAMPLE_RATE, 1, FRAME_SAMPLES)
        self._apm.process_stream(frame)
        return _to_float(np.frombuffer(frame.data, np.int16))

    def reset(self) -> None:
        """Nothing to do: it follows the delay by itself."""

    def close(self) -> None:
        self._apm = None


class SpeexCanceller:
    """Speex's MDF filter with the residual suppressor of its preprocessor; the echo's delay must lie in `tail_ms`."""

    name = "speex"
    finds_delay = False

    _C = """
        typedef struct SpeexEchoState_ SpeexEchoState;
        typedef struct SpeexPreprocessState_ SpeexPreprocessState;
        SpeexEchoState *speex_echo_state_init(int frame_size, int filter_length);
        void speex_echo_state_destroy(SpeexEchoState *st);
        void speex_echo_state_reset(SpeexEchoState *st);
        void speex_echo_cancellation(SpeexEchoState *st, const int16_t *rec, const int16_t *play, int16_t *out);
        int speex_echo_ctl(SpeexEchoState *st, int request, void *ptr);
        SpeexPreprocessState *speex_preprocess_state_init(int frame_size, int sampling_rate);
        void speex_preprocess_state_destroy(SpeexPreprocessState *st);
        int speex_preprocess_run(SpeexPreprocessState *st, int16_t *x);
        int speex_preprocess_ctl(SpeexPreprocessState *st, int request, void *ptr);
    """
    _ECHO_SET_SAMPLING_RATE, _PRE_SET_DENOISE, _PRE_SET_ECHO_STATE = 24, 0, 24  # speex_echo.h, speex_preprocess.h

    def __init__(self, tail_ms: int = 240) -> None:
        from cffi import FFI

        ffi = FFI()
        ffi.cdef(self._C)
        try:
            self._speex: Any = ffi.dlopen("libspeexdsp.so.1")
        except OSError as e:
            raise DeviceError(f"Speex's echo canceller is not installed ({e}): apt install libspeexdsp1") from e
        self._ffi = ffi
        echo = self._speex.speex_echo_state_init(FRAME_SAMPLES, tail_ms * SAMPLE_RATE // 1000)
        self._echo = ffi.gc(echo, self._speex.speex_echo_state_destroy)
        self._speex.speex_echo_ctl(self._echo, self._ECHO_SET_SAMPLING_RATE, ffi.new("int *", SAMPLE_RATE))
        pre = self._speex.speex_preprocess_state_init(FRAME_SAMPLES, SAMPLE_RATE)
        self._pre = ffi.gc(pre, self._speex.speex_preprocess_state_destroy)
        self._speex.speex_preprocess_ctl(self._pre, self._PRE_SET_DENOISE, ffi.new("int *", 0))
        self._speex.speex_preprocess_ctl(self._pre, self._PRE_SET_ECHO_STATE, self._echo)
        self._out = ffi.new("int16_t[]", FRAME_SAMPLES)

    def process(self, heard: Array, played: Array) -> Array:
        def cast(frame: Array) -> Any:
            return self._ffi.from_buffer("int16_t[]", frame)

        self._speex.speex_echo_cancellation(self._echo, cast(_to_int16(heard)), cast(_to_int16(played)), self._out)
        self._speex.speex_preprocess_run(self._pre, self._out)
        return _to_float(np.frombuffer(self._ffi.buffer(self._out), np.int16))

    def reset(self) -> None:
        self._speex.speex_echo_state_reset(self._echo)

    def close(self) -> None:
        for state in (self._pre, self._echo):  # the preprocessor reads the echo's state
            self._ffi.release(state)


_OPENERS: dict[str, type[WebRtcCanceller] | type[SpeexCanceller]] = {
    "speex": SpeexCanceller,
    "webrtc": WebRtcCanceller,
}


def _to_int16(pcm: Array) -> Array:
    out: Array = np.clip(np.rint(pcm * 32768), -32768, 32767).astype(np.int16)
    return out


def _to_float(pcm: Array) -> Array:
    out: Array = pcm.astype(np.float32) * np.float32(1 / 32768)
    return out
