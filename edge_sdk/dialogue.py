"""Whose turn it is: utterances become exchanges, a voice over an answer ends it, an answer that was played is over."""

from __future__ import annotations

from collections.abc import Callable

from edge_sdk.assistant_events import (
    Answered,
    AssistantEvent,
    Hearing,
    Ignored,
    Interrupted,
    Pausing,
    Speaking,
    Thinking,
)
from edge_sdk.audio_link import AudioLink
from edge_sdk.endpointing import Endpointer
from edge_sdk.exchange import Exchange
from edge_sdk.recorder import Recorder
from edge_sdk.thinker import Thinker
from edge_sdk.trace import Trace
from edge_sdk.turn_timings import budget
from edge_sdk.utterance import EndpointEvent, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from edge_sdk.vad import SAMPLE_RATE


class Dialogue:
    """The hearing thread's. One exchange is current: heard, answered or played; those that were interrupted may still
    be ending in the thinker's thread."""

    def __init__(
        self,
        link: AudioLink,
        endpointer: Endpointer,
        thinker: Thinker,
        emit: Callable[[AssistantEvent], None],
        trace: Trace,
        recorder: Recorder | None,
    ) -> None:
        self._link, self._endpointer, self._thinker = link, endpointer, thinker
        self._emit, self._trace, self._recorder = emit, trace, recorder
        self._turns = 0
        self._current: Exchange | None = None
        self._ending: list[tuple[Exchange, float]] = []  # and what was played of them, ms
        self._fed_to = 0  # samples of the endpointer's that the exchange has
        self._heard_s = self._read_s = 0.0

    @property
    def idle(self) -> bool:
        """Nobody speaks, nothing is answered or played."""
        return self._current is None

    @property
    def answering(self) -> bool:
        """An answer is being made or played, and an interruption would end it."""
        current = self._current
        return current is not None and current.asked and not current.interrupted

    # -- hearing

    def heard_until(self, at_s: float, read_s: float) -> None:
        """The endpointer's last sample was taken at `at_s` and came here at `read_s`, by the link's clock."""
        self._heard_s, self._read_s = at_s, read_s

    def react(self, event: EndpointEvent) -> None:
        """What the endpointer found. Follow with `feed`."""
        if isinstance(event, SpeechStarted):
            self._speech_started(event)
        elif isinstance(event, SpeechPaused):
            exchange = self._hear(event.at_sample)
            exchange.pause()
            exchange.marks.pauses += 1
            self._emit(Pausing(self._link.now(), exchange.turn))
        elif isinstance(event, SpeechResumed):
            exchange = self._hear(event.at_sample)
            self._trace.mark("endpointing", "resumed", self._time(event.at_sample), pause_ms=event.pause_ms)
            self._emit(Hearing(self._link.now(), exchange.turn, exchange.marks.began_s or 0.0))
        else:
            self._speech_ended(event)

    def feed(self) -> None:
        """Give an open utterance what was heard of it, but for the silence of a pause that may be the end."""
        if self._endpointer.speaking and not self._endpointer.paused:
            self._hear(self._endpointer.position)

    def _speech_started(self, event: SpeechStarted) -> None:
        if self._current is not None:
            self.interrupt(self._time(event.at_sample))
            self._leave()
        self._turns += 1
        self._current = exchange = Exchange(self._turns, self._link)
        self._fed_to = event.start_sample
        exchange.marks.began_s = self._time(event.onset_sample)
        self._thinker.begin(exchange)
        self._hear(event.at_sample)
        self._emit(Hearing(self._link.now(), exchange.turn, exchange.marks.began_s))

    def _speech_ended(self, event: SpeechEnded) -> None:
        short = event.reason == "too_short"
        exchange, now = self._open() if short else self._hear(event.end_sample), self._link.now()
        marks = exchange.marks
        marks.speech_end_s, marks.endpoint_s = self._time(event.speech_end_sample), self._time(event.at_sample)
        marks.read_s, marks.decided_s, marks.limit_ms = self._read_s, now, self._endpointer.limit.ms
        self._trace.span("user", "speech", marks.began_s or marks.speech_end_s, marks.speech_end_s)
        self._trace.span("endpointing", event.reason, marks.speech_end_s, marks.endpoint_s)
        if short:
            exchange.drop()
            self._current = None
            self._emit(Ignored(now, exchange.turn))
        else:
            exchange.ask()
            seconds = (event.end_sample - event.start_sample) / SAMPLE_RATE
            self._emit(Thinking(now, exchange.turn, seconds))

    def _hear(self, position: int) -> Exchange:
        exchange = self._open()
        if position > self._fed_to:
            pcm = self._endpointer.recent(self._fed_to, position)
            self._fed_to = position
            exchange.feed(pcm)
            if self._recorder is not None:
                exchange.kept.append(pcm)
        return exchange

    def _open(self) -> Exchange:
        if self._current is None:
            raise RuntimeError("an utterance without an exchange")  # a mistake in here, not the caller's
        return self._current

    def _time(self, sample: int) -> float:
        return self._heard_s - (self._endpointer.position - sample) / SAMPLE_RATE

    # -- answers

    def interrupt(self, detected_s: float) -> None:
        """End the answer that is being made or played, if there is one."""
        exchange = self._current
        if exchange is None or not self.answering or exchange.over:
            return
        played_ms = exchange.interrupt()
        now = self._link.now()
        self._trace.mark("speaker", "interrupted", now, played_ms=round(played_ms))
        self._emit(Interrupted(now, exchange.turn, played_ms, detected_s))

    def follow(self) -> None:
        """Look at what became of the answers."""
        exchange = self._current
        if exchange is not None and exchange.asked:
            self._note_playing(exchange)
            if exchange.over:
                self._leave()
        for ended in [entry for entry in self._ending if entry[0].finished]:
            self._ending.remove(ended)
            self._report(*ended)

    def drop(self) -> None:
        """The conversation ends here: nothing more is asked or played."""
        if self._current is not None:
            self.interrupt(self._heard_s)
            self._current.drop()
            self._leave()

    def _note_playing(self, exchange: Exchange) -> None:
        marks, played_ms = exchange.marks, exchange.played_ms
        if marks.played_s is None and played_ms > 0:
            now = self._link.now()
            marks.played_s = now - played_ms / 1000
            self._emit(Speaking(now, exchange.turn, (marks.played_s - (marks.speech_end_s or now)) * 1000))

    def _leave(self) -> None:
        exchange, self._current = self._current, None
        if exchange is None or not exchange.asked:
            return
        self._note_playing(exchange)
        self._ending.append((exchange, exchange.played_ms))
        self._thinker.save()

    def _report(self, exchange: Exchange, played_ms: float) -> None:
        now, reply, marks = self._link.now(), exchange.reply, exchange.marks
        if marks.played_s is not None:
            ended_s = marks.played_s + played_ms / 1000
            self._trace.span("speaker", "reply", marks.played_s, ended_s, interrupted=exchange.interrupted)
        if self._recorder is not None:
            self._recorder.keep(exchange.kept, reply, played_ms)
        if reply is not None:
            timings = budget(marks, reply.timings, played_ms=played_ms, interrupted=exchange.interrupted)
            self._emit(Answered(now, exchange.turn, reply, timings))
