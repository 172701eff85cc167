"""What endpointing tells of an utterance. Positions are samples at 16 kHz, counted from the first one that was fed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeechStarted:
    """An utterance began with `onset_sample`, and its sound, pre-roll included, with `start_sample`. Known at
    `at_sample`."""

    start_sample: int
    onset_sample: int
    at_sample: int


@dataclass(frozen=True)
class SpeechPaused:
    """Silence since `speech_end_sample`, known at `at_sample`. It may be the end: nothing else belongs to it then."""

    speech_end_sample: int
    at_sample: int


@dataclass(frozen=True)
class SpeechResumed:
    """The pause of `pause_ms` was not the end."""

    at_sample: int
    pause_ms: int


@dataclass(frozen=True)
class SpeechEnded:
    """The utterance is over.

    Attributes:
        start_sample, end_sample: the utterance's sound, pre-roll and a little silence included.
        speech_end_sample: where speech was heard last.
        at_sample: when this was known.
        reason: "silence", "max_length", "released" (push to talk), or "too_short" (a cough: not worth an answer).
    """

    start_sample: int
    end_sample: int
    speech_end_sample: int
    at_sample: int
    reason: str


EndpointEvent = SpeechStarted | SpeechPaused | SpeechResumed | SpeechEnded
