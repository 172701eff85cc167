"""Endpointing: when a person began to speak, made a pause, went on, and has finished.

Positions are samples at 16 kHz, counted from the first one that was fed. A pause is announced well before it is long
enough to be the end, so that everything but the answer itself can be computed while it is waited out.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from edge_sdk.audio import check_pcm
from edge_sdk.endpoint_config import KEPT_S, EndpointConfig
from edge_sdk.errors import Error
from edge_sdk.runtime import Array
from edge_sdk.silence_limit import SilenceLimit
from edge_sdk.utterance import EndpointEvent, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from edge_sdk.vad import FRAME_MS, FRAME_SAMPLES, SAMPLE_RATE, SpeechDetector

_HYSTERESIS = 0.15  # a frame is silence below the threshold less this; in between it is what it was
_NOISY_HYSTERESIS = (
    0.35  # where noise covers the speaker: their softer words look like silence, noise hardly like speech
)
_SURE = 0.75  # probability of speech, over the last _SURE_FRAMES of it; in noise at 0 dB SNR it is lower
_SURE_FRAMES = 16
_RESUME_FRAMES = 2  # speech after a pause: a single loud frame is a click
_FOUND_LATE_S = 2.0  # an utterance that was doubtful for longer begins here


class Detector(Protocol):
    """What finds speech: `SpeechDetector`, or something better that gives a probability per 512 samples."""

    def feed(self, pcm: Any) -> list[float]: ...

    def reset(self) -> None: ...


class Endpointer:
    """Finds the utterances of one stream of sound. However the sound is cut, the events are the same."""

    def __init__(self, config: EndpointConfig | None = None, detector: Detector | None = None) -> None:
        """
        Args:
            detector: None opens a `SpeechDetector`; push to talk needs none.

        Raises:
            RuntimeUnavailableError: there is no onnxruntime for the `SpeechDetector`.
        """
        self.config = config or EndpointConfig()
        if detector is None and self.config.mode == "always":
            detector = SpeechDetector()
        self._detector = detector
        self.limit = SilenceLimit(self.config.silence_ms, self.config.min_silence_ms, self.config.max_silence_ms)
        self._recent = np.zeros(0, np.float32)
        self._fed = 0  # samples
        self._decided = 0  # samples that frames were made of
        self._last_end: int | None = None  # speech end of the utterance before
        self._taken = 0  # sound up to here belongs to utterances before
        self.probability = 0.0  # of the last frame, for meters
        self._forget()

    @property
    def position(self) -> int:
        """Samples fed so far."""
        return self._fed

    @property
    def speaking(self) -> bool:
        """An utterance is open, pauses included."""
        return self._start is not None

    @property
    def suspecting(self) -> bool:
        """No utterance is open, but there was sound that may be its beginning."""
        return self._start is None and self._evidence > 0

    @property
    def paused(self) -> bool:
        return self._paused

    def feed(self, pcm: Any, *, floor_db: float = -math.inf, min_speech_ms: int | None = None) -> list[EndpointEvent]:
        """Append sound, 16 kHz mono float32 [n] in [-1, 1]; any n.

        Args:
            floor_db: frames below this level (dBFS, RMS) are no speech, whatever they sound like: an echo's, say.
            min_speech_ms: as the config's, for as long as it is given.

        Raises:
            AudioError: the piece cannot be used; nothing of it is kept.
        """
        piece = check_pcm(pcm)
        probabilities = self._detector.feed(piece) if self._detector and self.config.mode == "always" else None
        self._recent = np.concatenate([self._recent, piece])
        self._fed += len(piece)
        events: list[EndpointEvent] = []
        if probabilities is None:
            self._decided = self._fed
            self._check_length(events)
        else:
            need = _frames(self.config.min_speech_ms if min_speech_ms is None else min_speech_ms)
            for probability in probabilities:
                self._frame(probability, floor_db, need, events)
        kept = min(len(self._recent), self._fed - self._decided + int(KEPT_S * SAMPLE_RATE))
        self._recent = self._recent[len(self._recent) - kept :].copy()
        return events

    def recent(self, start_sample: int, end_sample: int | None = None) -> Array:
        """Sound that was fed, float32 [n], from one position to another (None: to the last). Four seconds are kept.

        Raises:
            Error: it is not kept any more, or was not fed yet.
        """
        first, end = self._fed - len(self._recent), self._fed if end_sample is None else end_sample
        if not first <= start_sample <= end <= self._fed:
            raise Error(f"sound from {start_sample} to {end} was asked for; kept is {first} to {self._fed}")
        return self._recent[start_sample - first : end - first].copy()

    def press(self) -> list[EndpointEvent]:
        """An utterance begins now, whatever is heard (the key of push to talk). Does nothing while one is open."""
        if self._start is not None:
            return []
        self._begin(self._fed, self._fed)
        return [SpeechStarted(self._start or 0, self._fed, self._fed)]

    def release(self) -> list[EndpointEvent]:
        """The open utterance ends now, in any mode. Does nothing if there is none."""
        if self._start is None:
            return []
        held_ms = (self._fed - self._onset) * 1000 // SAMPLE_RATE
        return [self._end("released" if held_ms >= self.config.min_utterance_ms else "too_short", self._fed, self._fed)]

    def reset(self) -> None:
        """Forget an open utterance and what the detector heard; positions and what is known of the speaker stay."""
        if self._detector:
            self._detector.reset()
        self._decided = self._taken = self._fed
        self._forget()

    # -- frames

    def _forget(self) -> None:
        self._start: int | None = None
        self._onset = 0  # first frame of speech
        self._paused = False
        self._voiced = 0  # frames of speech in a row
        self._evidence = 0.0  # frames of speech, while no utterance is open
        self._first = 0  # where it began
        self._speech_frames = 0  # of this utterance
        self._certainty = 1.0  # that they are
        self._speech_end = 0

    def _frame(self, probability: float, floor_db: float, need: int, events: list[EndpointEvent]) -> None:
        begin, self._decided = self._decided, self._decided + FRAME_SAMPLES
        self.probability = probability
        hysteresis = _HYSTERESIS if self._certainty >= _SURE else _NOISY_HYSTERESIS
        least = self.config.threshold if self._voiced == 0 else max(self.config.threshold - hysteresis, 0.01)
        likely = probability >= least
        speech = likely and (floor_db == -math.inf or self._level_db(begin) >= floor_db)
        self._voiced = self._voiced + 1 if speech else 0
        if self._start is None:
            self._weigh(speech, likely, begin)
            if self._evidence >= need:
                self._begin(max(self._first, self._decided - int(_FOUND_LATE_S * SAMPLE_RATE)), self._decided)
                self._speech_frames = need
                events.append(SpeechStarted(self._start or 0, self._onset, self._decided))
        else:
            self._speech_frames += speech
            if speech:
                self._certainty += (probability - self._certainty) / _SURE_FRAMES
            self._follow(events)
            self._check_length(events)

    def _weigh(self, speech: bool, likely: bool, begin: int) -> None:
        """No utterance is open: frames of speech count, others take away, half as much since there are gaps between
        words; those that are only too quiet a quarter, since a voice over an echo has its quiet moments too."""
        if speech:
            if self._evidence <= 0:
                self._first = begin
            self._evidence += 1
        else:
            self._evidence = max(self._evidence - (0.25 if likely else 0.5), 0.0)

    def _follow(self, events: list[EndpointEvent]) -> None:
        """An utterance is open: pauses, their end, its end."""
        silence_ms = (self._decided - self._speech_end) * 1000 // SAMPLE_RATE
        if self._voiced and (not self._paused or self._voiced >= _RESUME_FRAMES):
            if self._paused:
                pause_ms = silence_ms - self._voiced * FRAME_MS
                self.limit.paused(pause_ms)
                events.append(SpeechResumed(self._decided, pause_ms))
            self._paused, self._speech_end = False, self._decided
        elif not self._paused and silence_ms >= self.config.pause_ms:
            self._paused, self._pause_at = True, self._decided
            events.append(SpeechPaused(self._speech_end, self._decided))
        elif self._paused and not self._voiced and silence_ms >= self.limit.ms:
            enough = self._speech_frames * FRAME_MS >= self.config.min_utterance_ms
            events.append(self._end("silence" if enough else "too_short", self._pause_at, self._decided))

    def _check_length(self, events: list[EndpointEvent]) -> None:
        limit = self.config.max_utterance_ms * SAMPLE_RATE // 1000
        if self._start is not None and self._decided - self._start >= limit:
            # Cut where the limit is, not where the piece that reached it ends.
            end = self._decided if self.config.mode == "always" else self._start + limit
            events.append(self._end("max_length", end, end))

    def _begin(self, onset: int, at: int) -> None:
        preroll = self.config.preroll_ms * SAMPLE_RATE // 1000
        self._start = max(onset - preroll, min(self._taken, onset))  # nothing is taken twice
        self._onset, self._speech_end, self._paused = onset, at, False
        if self._last_end is not None:
            self.limit.began((onset - self._last_end) * 1000 // SAMPLE_RATE)

    def _end(self, reason: str, end: int, at: int) -> SpeechEnded:
        speech_end = at if self.config.mode == "push_to_talk" else self._speech_end
        ended = SpeechEnded(self._start or 0, end, speech_end, at, reason)
        self._last_end, self._taken = speech_end, end
        if reason != "too_short":
            self.limit.ended()
        self._forget()
        return ended

    def _level_db(self, begin: int) -> float:
        first = self._fed - len(self._recent)
        frame = self._recent[begin - first : begin - first + FRAME_SAMPLES]
        power = float(np.mean(np.square(frame, dtype=np.float64))) if len(frame) else 0.0
        return 10 * math.log10(power) if power > 0 else -math.inf


def _frames(ms: int) -> int:
    return max(1, -(-ms // FRAME_MS))
