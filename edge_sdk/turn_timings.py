"""The latency budget of one turn: where the time from the user's last word to the first sound went."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.events import Timings


@dataclass
class Marks:
    """When things happened in one exchange, by the link's clock, seconds; None: not (yet)."""

    began_s: float | None = None  # the user's first sound, pre-roll left out
    speech_end_s: float | None = None  # the last of the user's speech
    endpoint_s: float | None = None  # the sound that decided that this was the end was taken
    read_s: float | None = None  # and came here
    decided_s: float | None = None  # and was judged
    asked_s: float | None = None  # the model's thread turned to it
    encoded_s: float | None = None  # the rest was encoded, the prompt rendered
    first_audio_s: float | None = None  # the first sound was given to the speaker
    played_s: float | None = None  # and left it
    pauses: int = 0
    limit_ms: float = 0.0


@dataclass(frozen=True)
class TurnTimings:
    """Milliseconds. The parts follow each other, and add up to `response_ms` but for the hand-over between threads.

    Attributes:
        endpoint_wait_ms: silence that was waited out to know that the user has finished.
        capture_ms: how old the deciding sound was when the assistant got it.
        vad_ms: to judge it.
        queue_ms: until the model's thread was free for it.
        encode_ms: what of the question was not encoded yet.
        prefill_ms: what of the prompt was not in the caches yet.
        first_token_ms: the first decode step.
        first_audio_ms: further steps and the vocoder, until there was sound.
        playback_ms: until the sound left the speaker: its buffer and the device.
        response_ms: from the user's last word to the first sound; None if nothing was played.
        engine_ms: what of it the model computed: encode, prefill, first token, first audio.
        speech_ms: the user's utterance; `pauses` in it that might have been the end.
        limit_ms: silence that was the end, by what was known of the speaker.
        reply_ms: sound that was made, and `played_ms` of it heard.
        rtf: compute time over the sound made; None without sound.
        interrupted: the user ended it.
    """

    endpoint_wait_ms: float
    capture_ms: float
    vad_ms: float
    queue_ms: float
    encode_ms: float
    prefill_ms: float
    first_token_ms: float
    first_audio_ms: float | None
    playback_ms: float | None
    response_ms: float | None
    engine_ms: float
    speech_ms: float
    pauses: int
    limit_ms: float
    reply_ms: float
    played_ms: float
    rtf: float | None
    interrupted: bool


def budget(marks: Marks, made: Timings, *, played_ms: float, interrupted: bool) -> TurnTimings:
    """The turn that these marks are of; `made` is what the chat says of its reply."""
    encode = _between(marks.asked_s, marks.encoded_s) or 0.0
    after_encode = max(made.ttft_ms - encode, 0.0)
    prefill = min(made.prefill_ms, after_encode)  # a reply that calls tools prefills more than once
    first_audio = None if made.ttfa_ms is None else max(made.ttfa_ms - made.ttft_ms, 0.0)
    return TurnTimings(
        endpoint_wait_ms=_between(marks.speech_end_s, marks.endpoint_s) or 0.0,
        capture_ms=_between(marks.endpoint_s, marks.read_s) or 0.0,
        vad_ms=_between(marks.read_s, marks.decided_s) or 0.0,
        queue_ms=_between(marks.decided_s, marks.asked_s) or 0.0,
        encode_ms=encode,
        prefill_ms=prefill,
        first_token_ms=after_encode - prefill,
        first_audio_ms=first_audio,
        playback_ms=_between(marks.first_audio_s, marks.played_s),
        response_ms=_between(marks.speech_end_s, marks.played_s),
        engine_ms=encode + after_encode + (first_audio or 0.0),
        speech_ms=_between(marks.began_s, marks.speech_end_s) or 0.0,
        pauses=marks.pauses,
        limit_ms=marks.limit_ms,
        reply_ms=made.audio_s * 1e3,
        played_ms=played_ms,
        rtf=made.rtf,
        interrupted=interrupted,
    )


def _between(first_s: float | None, then_s: float | None) -> float | None:
    return None if first_s is None or then_s is None else max(then_s - first_s, 0.0) * 1e3
