"""Voice activity: how likely it is, for every 32 ms, that somebody speaks.

The network is silero-vad's (edge_sdk/data/README.md), run by onnxruntime whatever runtime the bundle has. It keeps a
state from frame to frame, so a detector belongs to one stream of sound.

On a device that listens for hours that state drifts, in quiet rooms until whole sentences are missed (measured,
docs/turn-taking.md). So it is run twice, and the more certain answer counts: as it is, best in noise; and with a state
that begins afresh every two seconds without speech, on sound whose loudest is brought near the level that the
network was trained at, best for a quiet voice from across the room.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.audio import check_pcm
from edge_sdk.errors import Error
from edge_sdk.runtime import Array

SAMPLE_RATE = 16000
FRAME_SAMPLES = 512
FRAME_MS = FRAME_SAMPLES * 1000 // SAMPLE_RATE  # 32
_CONTEXT = 64  # samples of the frame before that the network sees again
_STATE = (1, 1, 128)
_MOST_FRAMES = 512  # in one run: bounds the memory of a long piece
_FRESH_FRAMES = 62  # 2 s: then the state is dropped at the next frame without speech
_SILENT = 0.15  # probability below which there is none
_LOUD_RMS = 0.1  # -20 dBFS: frames of speech near a microphone
_MOST_GAIN = 8.0
_LOUDEST_DECAY = 10 ** (-6 / 20 / (5000 / FRAME_MS))  # a frame: 6 dB in 5 s
_MODEL = Path(__file__).parent / "data" / "silero_vad" / "silero_vad_16k_sequence.onnx"


class SpeechDetector:
    """Speech probabilities of one stream, 16 kHz mono, in pieces of any length. However it is cut, they are the same.

    Raises:
        RuntimeUnavailableError: onnxruntime is not installed; says what to install.
        Error: the network's file is missing from the package.
    """

    def __init__(self, *, plain: bool = False) -> None:
        """`plain`: the network's own numbers, without what helps it."""
        self._session = _session()
        self._plain = plain
        self.reset()

    def reset(self) -> None:
        """Forget the stream: what comes next is the beginning of another."""
        self._steady, self._fresh = _State(), _State()
        self._loudest = 0.0  # RMS
        self._tail = np.zeros(_CONTEXT, np.float32)  # the context, and samples of a frame that is not full

    def feed(self, pcm: Any) -> list[float]:
        """Append sound, float32 [n] in [-1, 1] (or as `check_pcm` takes it): a probability for each frame that is full.

        Raises:
            AudioError: the piece cannot be used; nothing of it is kept.
        """
        self._tail = np.concatenate([self._tail, check_pcm(pcm)])
        count = (len(self._tail) - _CONTEXT) // FRAME_SAMPLES
        probabilities: list[float] = []
        for first in range(0, count, _MOST_FRAMES):
            probabilities += self._judge(self._frames(first, min(count - first, _MOST_FRAMES)))
        self._tail = self._tail[count * FRAME_SAMPLES :].copy()  # a view would keep all of it alive
        return probabilities

    def _frames(self, first: int, count: int) -> Array:
        """float32 [count, context + frame]."""
        begin = first * FRAME_SAMPLES
        end = begin + _CONTEXT + count * FRAME_SAMPLES
        windows = np.lib.stride_tricks.sliding_window_view(self._tail[begin:end], _CONTEXT + FRAME_SAMPLES)
        return windows[::FRAME_SAMPLES].copy()

    def _judge(self, frames: Array) -> list[float]:
        steady = self._run(frames, self._steady)
        if self._plain:
            return steady
        frames *= self._gains(frames)[:, None]
        return [max(pair) for pair in zip(steady, self._run_fresh(frames), strict=True)]

    def _run_fresh(self, frames: Array) -> list[float]:
        found: list[float] = []
        while len(found) < len(frames):
            # Up to where the state may be dropped in one run, then frame by frame until it is.
            ready = max(_FRESH_FRAMES - self._fresh.age, 1)
            found += self._run(frames[len(found) : len(found) + ready], self._fresh)
            if self._fresh.age >= _FRESH_FRAMES and found[-1] < _SILENT:
                self._fresh = _State()
        return found

    def _run(self, frames: Array, state: _State) -> list[float]:
        feeds = {"input": frames, "h": state.hidden, "c": state.cell}
        values, state.hidden, state.cell = self._session.run(["speech_probs", "hn", "cn"], feeds)
        state.age += len(frames)
        return [float(p) for p in values]

    def _gains(self, frames: Array) -> Array:
        """float32 [n]: by the loudest frames so far, this one included, of which older ones count less and less."""
        levels = np.sqrt(np.mean(np.square(frames[:, _CONTEXT:], dtype=np.float64), axis=1))
        gains = np.empty(len(levels), np.float32)
        for n, level in enumerate(levels):
            self._loudest = max(float(level), self._loudest * _LOUDEST_DECAY)
            gains[n] = min(max(_LOUD_RMS / max(self._loudest, 1e-9), 1.0), _MOST_GAIN)
        return gains


class _State:
    """What the network carries from frame to frame, and how many it has seen."""

    def __init__(self) -> None:
        self.hidden = self.cell = np.zeros(_STATE, np.float32)
        self.age = 0


@functools.cache
def _session() -> Any:
    """One for all detectors of the process: it holds no state of a stream, and may be run by several threads."""
    from edge_sdk.runtimes import ort_model

    try:
        data = _MODEL.read_bytes()
    except OSError as e:
        raise Error(f"the package's voice activity model cannot be read ({e}); install edge_sdk again") from e
    return ort_model.open_model(data, threads=1)
