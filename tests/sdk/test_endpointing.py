"""Endpointing: beginnings, pauses and ends, on recorded speech and any probabilities, in any pieces; the limit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.endpoint_config import EndpointConfig
from edge_sdk.endpointing import Endpointer
from edge_sdk.errors import AudioError, Error
from edge_sdk.silence_limit import SilenceLimit
from edge_sdk.utterance import EndpointEvent, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from edge_sdk.vad import FRAME_MS, FRAME_SAMPLES
from tests import speech

CONFIG = EndpointConfig()


class Scripted:
    """A detector whose probability is the sample value of a frame's first sample: scripts written as sound."""

    def __init__(self) -> None:
        self.tail: Any = np.zeros(0, np.float32)

    def feed(self, pcm: Any) -> list[float]:
        self.tail = np.concatenate([self.tail, pcm])
        count = len(self.tail) // FRAME_SAMPLES
        found = [float(v) for v in self.tail[: count * FRAME_SAMPLES : FRAME_SAMPLES]]
        self.tail = self.tail[count * FRAME_SAMPLES :]
        return found

    def reset(self) -> None:
        self.tail = np.zeros(0, np.float32)


def script(*frames: tuple[int, float]) -> Any:
    """(count, probability) pairs as sound."""
    return np.concatenate([np.full(count * FRAME_SAMPLES, p, np.float32) for count, p in frames])


def scripted(**changes: Any) -> Endpointer:
    return Endpointer(dataclasses.replace(CONFIG, **changes), Scripted())


def kinds(events: list[EndpointEvent]) -> list[str]:
    return [type(e).__name__.removeprefix("Speech") for e in events]


def frames(ms: float) -> int:
    return -(-round(ms) // FRAME_MS)


LIMIT = frames(CONFIG.silence_ms)


def test_in_noise_less_is_enough_to_go_on() -> None:
    """Frames of 0.2 are silence behind clear speech, and soft words behind speech that noise has made doubtful."""
    for certainty, paused in ((0.95, True), (0.65, False)):
        events = scripted().feed(script((40, certainty), (LIMIT, 0.2), (4, certainty)))
        assert ("Ended" in kinds(events)) == paused, certainty
    events = scripted().feed(script((40, 0.65), (LIMIT, 0.2), (LIMIT + 2, 0.02)))
    assert kinds(events) == ["Started", "Paused", "Ended"]  # the noise itself is below


# -- recorded speech


@pytest.mark.parametrize("name", speech.NAMES)
def test_an_utterance_is_one_and_whole(name: str) -> None:
    pcm = speech.clip(name)
    events = Endpointer().feed(speech.scene(0.5, pcm, 2.0))
    assert kinds(events)[0] == "Started"
    assert kinds(events).count("Ended") == 1
    ended = events[-1]
    assert isinstance(ended, SpeechEnded)
    loud = np.flatnonzero(np.abs(pcm) > 0.3 * np.abs(pcm).max()) + 8000
    assert ended.reason == "silence"
    assert ended.start_sample < loud[0]  # the first phoneme is in it
    assert ended.end_sample > loud[-1]
    assert ended.at_sample - ended.speech_end_sample >= CONFIG.silence_ms * 16


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 120000), max_size=20))
def test_any_cutting_of_speech_gives_the_same_events(cuts: list[int]) -> None:
    pcm = speech.scene(0.3, "tts_hibari_cmd_stop", 1.2, "tts_joe_barge_wait", 1.3)
    endpointer = Endpointer()
    assert [e for piece in speech.pieces(pcm, cuts) for e in endpointer.feed(piece)] == Endpointer().feed(pcm)


def test_recent_sound_is_what_was_fed() -> None:
    pcm = speech.scene(0.5, "tts_hibari_cmd_stop", 1.0)
    endpointer, taken = Endpointer(), []
    at = 0
    for piece in np.split(pcm, range(160, len(pcm), 160)):
        for event in endpointer.feed(piece):
            if isinstance(event, SpeechStarted):
                at = event.start_sample
                taken.append(endpointer.recent(at))
        assert endpointer.position <= len(pcm)
    assert np.array_equal(taken[0], pcm[at : at + len(taken[0])])
    with pytest.raises(Error, match="kept is"):
        endpointer.recent(0, len(pcm) + 1)


# -- any probabilities


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0])), min_size=1, max_size=25),
    st.lists(st.integers(0, 200000), max_size=10),
    st.integers(20, 500),
)
def test_events_make_sense_however_sound_is_cut(
    parts: list[tuple[int, float]], cuts: list[int], max_utterance_frames: int
) -> None:
    pcm = script(*parts)
    longest = max_utterance_frames * FRAME_MS
    endpointer = scripted(max_utterance_ms=longest)
    events = [e for piece in speech.pieces(pcm, cuts) for e in endpointer.feed(piece)]
    assert events == scripted(max_utterance_ms=longest).feed(pcm)
    state, start, taken, last = "idle", 0, 0, 0
    for event in events:
        assert event.at_sample >= last
        last = event.at_sample
        if isinstance(event, SpeechStarted):
            assert state == "idle"
            assert taken <= event.start_sample < event.at_sample
            state, start = "speaking", event.start_sample
        elif isinstance(event, SpeechPaused):
            assert state == "speaking"
            assert event.speech_end_sample < event.at_sample
            state = "paused"
        elif isinstance(event, SpeechResumed):
            assert state == "paused"
            assert CONFIG.pause_ms <= event.pause_ms
            state = "speaking"
        else:
            assert state != "idle"
            assert event.start_sample == start < event.end_sample <= event.at_sample
            assert event.at_sample - start <= longest * 16 + FRAME_SAMPLES
            state, taken = "idle", event.end_sample
    assert endpointer.speaking == (state != "idle")
    assert endpointer.paused == (state == "paused")


def test_a_click_is_nothing_and_a_cough_is_too_short() -> None:
    assert not scripted().feed(script((9, 0), (1, 1), (30, 0), (2, 1), (30, 0)))
    events = scripted().feed(script((9, 0), (3, 1), (40, 0)))
    assert kinds(events) == ["Started", "Paused", "Ended"]
    assert isinstance(events[-1], SpeechEnded)
    assert events[-1].reason == "too_short"


def test_a_click_in_a_pause_does_not_put_off_the_end() -> None:
    quiet = scripted().feed(script((20, 1), (50, 0)))
    click = scripted().feed(script((20, 1), (10, 0), (1, 1), (39, 0)))
    assert quiet[-1] == click[-1]


def test_hysteresis_keeps_a_falling_voice() -> None:
    assert kinds(scripted().feed(script((9, 0), (5, 0.6), (30, 0.4)))) == ["Started"]
    assert not scripted().feed(script((9, 0), (30, 0.4)))


def test_quiet_frames_can_be_ruled_out_and_more_evidence_asked_for() -> None:
    loud, faint = script((20, 1.0)), script((20, 0.6))
    assert kinds(scripted().feed(loud, floor_db=-1.0)) == ["Started"]
    assert not scripted().feed(faint, floor_db=-1.0)
    assert not scripted().feed(script((9, 1.0), (9, 0)), min_speech_ms=320)
    assert kinds(scripted().feed(script((10, 1.0)), min_speech_ms=320)) == ["Started"]


def test_no_sound_is_in_two_utterances() -> None:
    endpointer = scripted(preroll_ms=1600)
    ends = [e for e in endpointer.feed(script((20, 1), (24, 0), (20, 1), (40, 0))) if isinstance(e, SpeechEnded)]
    assert len(ends) == 2
    assert ends[0].end_sample <= ends[1].start_sample


# -- the limit


def test_the_limit_follows_the_speaker() -> None:
    slow = script((20, 1), (20, 0), (20, 1), (20, 0), (20, 1), (60, 0))  # pauses of 640 ms
    fluent = script((60, 1), (60, 0))
    endpointer = scripted()
    for _ in range(6):
        endpointer.feed(slow)
    after_slow = endpointer.limit.ms
    for _ in range(12):
        endpointer.feed(fluent)
    assert CONFIG.silence_ms < after_slow <= CONFIG.max_silence_ms
    assert endpointer.limit.ms == CONFIG.min_silence_ms


def test_a_survived_pause_raises_the_limit_at_once() -> None:
    endpointer = scripted()
    endpointer.feed(script((20, 1), (LIMIT - 1, 0), (20, 1)))
    assert endpointer.limit.ms > CONFIG.silence_ms


def test_an_end_that_was_none_raises_the_limit() -> None:
    endpointer = scripted()
    before = endpointer.limit.ms
    endpointer.feed(script((20, 1), (LIMIT + 6, 0), (20, 1)))
    assert endpointer.limit.ms > before


@given(st.lists(st.one_of(st.none(), st.floats(0, 60000)), max_size=60))
def test_the_limit_stays_within_its_bounds(pauses: list[float | None]) -> None:
    limit = SilenceLimit(700, 480, 1600)
    assert limit.ms == 700
    for pause in pauses:
        if pause is None:
            limit.ended()
        else:
            limit.paused(pause)
            limit.began(pause)
        assert 480 <= limit.ms <= 1600


# -- push to talk


def test_push_to_talk_needs_no_detector_and_takes_what_is_held() -> None:
    endpointer = Endpointer(EndpointConfig(mode="push_to_talk"))
    assert not endpointer.feed(speech.clip("tts_joe_q_story"))
    pressed_at = endpointer.position
    (started,) = endpointer.press()
    assert isinstance(started, SpeechStarted)
    assert started.start_sample == pressed_at - CONFIG.preroll_ms * 16
    assert not endpointer.press()
    endpointer.feed(speech.clip("tts_joe_cmd_off"))
    (ended,) = endpointer.release()
    assert isinstance(ended, SpeechEnded)
    assert (ended.reason, ended.end_sample) == ("released", endpointer.position)
    assert not endpointer.release()
    endpointer.press()
    (ended,) = endpointer.release()
    assert isinstance(ended, SpeechEnded)
    assert ended.reason == "too_short"


def test_a_key_that_is_never_let_go_ends_at_the_longest_utterance() -> None:
    endpointer = Endpointer(EndpointConfig(mode="push_to_talk", max_utterance_ms=1000, preroll_ms=0))
    endpointer.press()
    (ended,) = endpointer.feed(speech.silence(3))
    assert isinstance(ended, SpeechEnded)
    assert (ended.reason, ended.end_sample) == ("max_length", 16000)


# -- misuse


def test_reset_forgets_the_utterance_and_keeps_the_place() -> None:
    endpointer = scripted()
    endpointer.feed(script((20, 1)))
    assert endpointer.speaking
    endpointer.reset()
    assert not endpointer.speaking
    assert endpointer.position == 20 * FRAME_SAMPLES
    assert kinds(endpointer.feed(script((20, 1)))) == ["Started"]


def test_a_refused_piece_harms_nothing() -> None:
    endpointer = scripted()
    with pytest.raises(AudioError):
        endpointer.feed([float("nan")])
    assert endpointer.position == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "sometimes"}, {"threshold": 0}, {"threshold": "high"}, {"pause_ms": 480}, {"min_silence_ms": 5000},
        {"max_silence_ms": 10}, {"preroll_ms": 2001}, {"preroll_ms": -1}, {"min_speech_ms": 0},
        {"max_utterance_ms": 0.5}, {"max_utterance_ms": 400},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Error, match="EndpointConfig"):
        EndpointConfig(**changes)
