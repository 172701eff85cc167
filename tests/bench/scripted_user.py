"""The user of the turn-taking benches, simulated and over devices: what they say and when, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edge_sdk.assistant_events import (
    Answered,
    AssistantEvent,
    Hearing,
    Interrupted,
    Level,
    Listening,
    Speaking,
    Thinking,
)
from tests import speech
from tests.room import OTHER, USUAL, Shape


@dataclass(frozen=True)
class Cast:
    """Who speaks, what, and in which room. A question is names of clips and seconds of silence."""

    questions: tuple[tuple[str | float, ...], ...]
    barge_ins: tuple[str, ...]
    room: Shape


CASTS = {
    "tuned": Cast(  # thresholds and guard were chosen with these
        (
            ("tts_joe_q_weather",), ("human_librivox_0880",), ("tts_joe_cmd_off", 0.25, "tts_joe_q_story"),
            ("tts_joe_q_story",), ("human_librivox_0930",), ("tts_joe_q_weather", 0.3, "tts_joe_cmd_off"),
        ),
        ("tts_joe_barge_wait", "tts_joe_cmd_off", "human_aishell_zh_0122"),
        USUAL,
    ),
    "held out": Cast(  # and nothing was chosen with these
        (
            ("human_goforward",), ("tts_hibari_q_capital", 0.3, "tts_joe_cmd_timer5"), ("human_librivox_0890",),
            ("tts_hibari_cmd_remind",), ("human_goforward", 0.35, "human_aishell_zh_0121"), ("tts_hibari_q_sky",),
        ),
        ("tts_hibari_q_flour", "human_goforward", "human_librivox_0890"),
        OTHER,
    ),
}  # fmt: skip

ANSWER = "the light in the morning sun " * 5  # some 6 s
BARGE_IN_AFTER_S = 2.0
PATIENCE_S = 4.0  # then the user asks again
SLACK_S = 0.35  # reverberation and frames: heard this much beyond its words is still what the user said


@dataclass
class Counts:
    """Of one condition."""

    questions: int = 0
    answered_whole: int = 0  # one end, after the last word
    cut_off: int = 0  # an end before the last word
    end_error_ms: list[float] = field(default_factory=list)  # estimated less true end of speech
    response_ms: list[float] = field(default_factory=list)  # from the true last word
    engine_ms: list[float] = field(default_factory=list)
    barge_ins: int = 0
    missed: int = 0
    barge_in_ms: list[float] = field(default_factory=list)  # from the first word to silence
    stop_ms: list[float] = field(default_factory=list)  # from the detection to silence
    false_interruptions: int = 0
    false_triggers: int = 0
    spoken_s: float = 0.0
    listened_s: float = 0.0


@dataclass
class Saying:
    begin_s: float
    end_s: float
    over: bool  # over an answer


class Conversation(Protocol):
    """What the user knows of it: `tests.simulated.Conversation`, or one over devices."""

    @property
    def idle(self) -> bool: ...

    def say(self, pcm: Any, after_s: float) -> tuple[float, float]: ...

    def of(self, kind: type[Any]) -> list[Any]: ...


class Script:
    """The user: asks when listened to, talks over every second answer, notes what comes of it."""

    def __init__(self, cast: Cast) -> None:
        self.cast, self.sayings = cast, list[Saying]()
        self._asked = self._barged = 0
        self._answers = 0

    def __call__(self, conversation: Conversation, event: AssistantEvent) -> None:
        unheard = isinstance(event, Level) and self.sayings and event.at_s > self.sayings[-1].end_s + PATIENCE_S
        if (unheard and conversation.idle) or (isinstance(event, Listening) and not self._speaking(event.at_s)):
            question = self.cast.questions[self._asked % len(self.cast.questions)]
            self._say(conversation, speech.scene(*question), 0.7, over=False)
            self._asked += 1
        elif isinstance(event, Speaking):
            self._answers += 1
            if self._answers % 2 == 0 and not self._speaking(event.at_s):
                name = self.cast.barge_ins[self._barged % len(self.cast.barge_ins)]
                self._say(conversation, speech.clip(name), BARGE_IN_AFTER_S, over=True)
                self._barged += 1

    def _say(self, conversation: Conversation, pcm: Any, after_s: float, *, over: bool) -> None:
        first, last = span(pcm)
        begin_s, _ = conversation.say(pcm[first:last], after_s)
        self.sayings.append(Saying(begin_s, begin_s + (last - first) / speech.RATE, over))

    def _speaking(self, at_s: float) -> bool:
        return any(s.end_s > at_s for s in self.sayings)

    def at(self, at_s: float) -> Saying | None:
        return next((s for s in self.sayings if s.begin_s <= at_s <= s.end_s + SLACK_S), None)


def span(pcm: Any) -> tuple[int, int]:
    """Where the words begin and end: samples within 30 dB of the loudest 10 ms."""
    frames = pcm[: len(pcm) // 160 * 160].reshape(-1, 160)
    power = (frames**2).mean(axis=1)
    loud = np.flatnonzero(power > 1e-3 * power.max())
    return int(loud[0]) * 160, int(loud[-1] + 1) * 160


def judge(script: Script, conversation: Conversation, begin_s: float, end_s: float) -> Counts:
    """Hold what the assistant did against what the user did, between these times of the link's clock."""
    counts = Counts()
    thoughts, hearings = conversation.of(Thinking), {}
    for hearing in conversation.of(Hearing):
        hearings.setdefault(hearing.turn, hearing)
    interruptions = [i for i in conversation.of(Interrupted) if i.at_s < end_s]  # the last answer is cut by the end
    answers = conversation.of(Answered)
    counts.spoken_s = sum(a.timings.played_ms for a in answers) / 1000
    counts.listened_s = end_s - begin_s - counts.spoken_s
    for interrupted in interruptions:
        counts.stop_ms.append((interrupted.at_s - interrupted.detected_s) * 1000)
        if script.at(interrupted.detected_s) is None:
            counts.false_interruptions += 1
    for hearing in hearings.values():
        if script.at(hearing.began_s) is None and script.at(hearing.at_s) is None:
            counts.false_triggers += 1
    by_turn = {a.turn: a for a in answers}
    for saying in script.sayings:
        if saying.end_s + 3.0 > end_s:
            continue  # the end of the measurement came first
        if saying.over:
            _judge_barge_in(counts, saying, interruptions)
            continue
        counts.questions += 1
        turns = [t for t, h in hearings.items() if saying.begin_s - 0.1 <= h.began_s <= saying.end_s]
        ends = [t for t in thoughts if t.turn in turns]
        early = [t for t in ends if t.at_s < saying.end_s]
        counts.cut_off += bool(early)
        if len(ends) == 1 and not early:
            counts.answered_whole += 1
            answered = by_turn.get(ends[0].turn)
            if answered is not None and answered.timings.response_ms is not None:
                timings = answered.timings
                heard_end_s = ends[0].at_s - (timings.endpoint_wait_ms + timings.capture_ms + timings.vad_ms) / 1000
                counts.end_error_ms.append((heard_end_s - saying.end_s) * 1000)
                counts.response_ms.append(timings.response_ms + counts.end_error_ms[-1])
                counts.engine_ms.append(timings.engine_ms)
    return counts


def _judge_barge_in(counts: Counts, saying: Saying, interruptions: list[Interrupted]) -> None:
    counts.barge_ins += 1
    hits = [i for i in interruptions if saying.begin_s <= i.at_s <= saying.end_s + SLACK_S]
    if hits:
        counts.barge_in_ms.append((hits[0].at_s - saying.begin_s) * 1000)
    else:
        counts.missed += 1


def row(cast: str, snr_db: float | None, speaker_db: float | None, c: Counts) -> list[Any]:
    def p50(values: list[float]) -> str:
        return f"{np.median(values):.0f}" if values else ""

    stop = f"{max(c.stop_ms):.0f}" if c.stop_ms else ""
    return [
        cast, "none" if snr_db is None else f"{snr_db:g}", "none" if speaker_db is None else f"{speaker_db:g}",
        f"{c.answered_whole}/{c.questions}", c.cut_off, p50([abs(e) for e in c.end_error_ms]), p50(c.response_ms),
        p50(c.engine_ms), f"{c.missed}/{c.barge_ins}", p50(c.barge_in_ms), stop,
        f"{c.false_interruptions / max(c.spoken_s, 1) * 3600:.0f}",
        f"{c.false_triggers / max(c.listened_s, 1) * 3600:.0f}",
    ]  # fmt: skip


HEADER = (
    "clips", "SNR dB", "speaker dB", "whole turns", "cut off", "end error ms", "response ms", "engine ms",
    "missed barge-ins", "barge-in ms", "stop ms (most)", "false interruptions/h", "false triggers/h",
)  # fmt: skip
