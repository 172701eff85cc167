"""server_vad: finds in the sound that arrives where the user speaks, and hands on just that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from edge_sdk.endpoint_config import EndpointConfig
from edge_sdk.endpointing import Endpointer
from edge_sdk.server.settings import TurnDetection
from edge_sdk.server.sound import MODEL_RATE_HZ, Array
from edge_sdk.utterance import SpeechEnded, SpeechPaused, SpeechStarted

_PIECE = MODEL_RATE_HZ // 10  # samples looked at together: far less than the endpointer keeps
_PAUSE_MS = 160
_MAX_UTTERANCE_MS = 1 << 30  # the input buffer's own limit is shorter


@dataclass(frozen=True)
class Started:
    """The user speaks, since `at_ms` of all sound so far, padding included."""

    at_ms: int


@dataclass(frozen=True)
class Heard:
    """More of what the user says, float32 at the model's rate. A pause comes only once it turned out to be none."""

    pcm: Array


@dataclass(frozen=True)
class Paused:
    """The user is silent, and may have finished: what was heard so far is then all."""


@dataclass(frozen=True)
class Stopped:
    """The user is silent: since `silence_ms`, known at `at_ms` of all sound so far. `known_at` is the clock then."""

    at_ms: int
    silence_ms: float
    known_at: float


Found = Started | Heard | Paused | Stopped


class Listening:
    """One stream of sound, from the moment turn detection was switched on."""

    def __init__(self, detection: TurnDetection, heard_before: int) -> None:
        """`heard_before`: samples at the model's rate that came before this."""
        silence_ms = detection.silence_duration_ms
        self.detection = detection
        self._before = heard_before
        self._endpointer = Endpointer(
            EndpointConfig(
                threshold=detection.threshold,
                preroll_ms=detection.prefix_padding_ms,
                pause_ms=min(_PAUSE_MS, silence_ms // 2),
                silence_ms=silence_ms,
                min_silence_ms=silence_ms,  # the client's, and not the speaker's
                max_silence_ms=silence_ms,
                min_utterance_ms=0,
                max_utterance_ms=_MAX_UTTERANCE_MS,
            )
        )
        self._given = 0  # sound up to here was handed on

    def feed(self, pcm: Array) -> Iterator[Found]:
        for at in range(0, len(pcm), _PIECE):
            yield from self._piece(pcm[at : at + _PIECE])

    def reset(self) -> None:
        """Forget an utterance that has begun."""
        self._endpointer.reset()

    def _piece(self, pcm: Array) -> Iterator[Found]:
        for event in self._endpointer.feed(pcm):
            if isinstance(event, SpeechStarted):
                self._given = event.start_sample
                yield Started(self._ms(event.start_sample))
            elif isinstance(event, SpeechPaused):
                yield from self._hand_on(event.at_sample)
                yield Paused()
            elif isinstance(event, SpeechEnded):
                yield from self._hand_on(event.end_sample)
                silent = event.at_sample - event.speech_end_sample
                yield Stopped(self._ms(event.at_sample), 1000 * silent / MODEL_RATE_HZ, time.perf_counter())
        if self._endpointer.speaking and not self._endpointer.paused:
            yield from self._hand_on(self._endpointer.position)

    def _hand_on(self, end: int) -> Iterator[Heard]:
        if end > self._given:
            yield Heard(self._endpointer.recent(self._given, end))
            self._given = end

    def _ms(self, position: int) -> int:
        return (self._before + position) * 1000 // MODEL_RATE_HZ
