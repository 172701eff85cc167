"""The thread that owns the chat: encodes and prefills what is heard, has it answered, gives the sound away."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.assistant_events import AssistantEvent, Calling, Failed, Said
from edge_sdk.audio_link import AudioLink
from edge_sdk.errors import BusyError, Error
from edge_sdk.events import AudioChunk, Done, Event, TextDelta, ToolCall
from edge_sdk.exchange import Exchange, Work
from edge_sdk.trace import Trace
from edge_sdk.turn import Turn

if TYPE_CHECKING:
    from edge_sdk.chat import Chat

END_WAIT_S = 30.0

log = logging.getLogger("edge_sdk.assistant")


class Thinker:
    """Serves exchanges one after another. What goes wrong with one fails that one; a closed chat ends the thread.

    Attributes:
        failure: what ended the thread.
    """

    def __init__(
        self,
        chat: Chat,
        link: AudioLink,
        emit: Callable[[AssistantEvent], None],
        trace: Trace,
        session: Path | None,
    ) -> None:
        self._chat, self._link, self._emit, self._trace, self._session = chat, link, emit, trace, session
        self._changed = threading.Condition()
        self._queue: deque[Exchange | None] = deque()  # None: save the session
        self._current: Exchange | None = None
        self._working = self._ended = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edge_sdk-thinker", daemon=True)

    # -- the hearing side

    def start(self) -> None:
        self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread.ident is not None

    def begin(self, exchange: Exchange) -> None:
        """Its sound follows; the one before must be asked, dropped or interrupted."""
        self._put(exchange)

    def save(self) -> None:
        """Write the session, if one is kept."""
        if self._session is not None:
            self._put(None)

    @property
    def busy(self) -> bool:
        """It has something to do, or does it."""
        with self._changed:
            current = self._current
            return bool(self._queue) or (self._working and not (current is not None and current.waiting))

    def end(self) -> None:
        """After what was begun, and wait for it. The exchanges must be over, or be dropped or interrupted."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(END_WAIT_S)
        if self._thread.is_alive():
            log.error("the model's thread did not end within %.0f s", END_WAIT_S)

    def _put(self, item: Exchange | None) -> None:
        with self._changed:
            self._queue.append(item)
            self._changed.notify_all()

    # -- the thread

    def _run(self) -> None:
        try:
            while self._next():
                if self._current is None:
                    self._save()
                else:
                    self._serve(self._current)
        except BaseException as e:  # raised by `Assistant.run`
            self.failure = e
        finally:
            with self._changed:
                if self._current:
                    self._current.finish(None)
                self._working, self._current = False, None

    def _next(self) -> bool:
        with self._changed:
            self._working, self._current = False, None
            while not self._queue and not self._ended:
                self._changed.wait()
            if not self._queue:
                return False
            self._working, self._current = True, self._queue.popleft()
            return True

    def _save(self) -> None:
        if self._session is None:
            return
        try:
            self._chat.save(self._session)
        except Error as e:
            log.warning("the session was not saved: %s", e)

    def _serve(self, exchange: Exchange) -> None:
        try:
            turn = self._chat.begin_turn()
        except BusyError as e:  # somebody else uses the chat; if it is closed there is nothing to go on with
            self._fail(exchange, str(e))
            return
        try:
            with turn:
                self._hear(exchange, turn)
        except Error as e:
            self._fail(exchange, str(e))
        except Exception as e:  # of the runtime, or a tool's own end: the chat is as before the question
            log.exception("turn %d failed", exchange.turn)
            self._fail(exchange, f"{type(e).__name__}: {e}")
        if not exchange.finished:
            exchange.finish(None)

    def _fail(self, exchange: Exchange, why: str) -> None:
        log.warning("turn %d failed: %s", exchange.turn, why)
        exchange.finish(None)
        self._emit(Failed(self._link.now(), exchange.turn, why))

    def _hear(self, exchange: Exchange, turn: Turn) -> None:
        while True:
            work, sound = exchange.work()
            began = self._link.now()
            if work is Work.FEED:
                turn.feed(sound)
                self._trace.span("model", "feed", began, self._link.now())
            elif work is Work.PREPARE:
                if turn.can_prepare:
                    turn.prepare()
                    self._trace.span("model", "prepare", began, self._link.now())
            elif work is Work.DROP:
                return
            else:
                self._answer(exchange, turn)
                return

    def _answer(self, exchange: Exchange, turn: Turn) -> None:
        marks = exchange.marks
        marks.asked_s = self._link.now()
        with turn.finish() as events:
            marks.encoded_s = self._link.now()
            self._trace.span("model", "encode", marks.asked_s, marks.encoded_s)
            exchange.attach(events)
            for event in events:
                self._pass_on(exchange, event)
        if events.reply is None:
            raise Error("the reply ended without a result")
        self._trace.span("model", "answer", marks.encoded_s, self._link.now())

    def _pass_on(self, exchange: Exchange, event: Event) -> None:
        now, turn = self._link.now(), exchange.turn
        if isinstance(event, AudioChunk):
            if exchange.play(event):
                exchange.marks.first_audio_s = now
        elif isinstance(event, Done):
            exchange.finish(event.reply)
        elif exchange.interrupted:
            pass
        elif isinstance(event, TextDelta):
            self._emit(Said(now, turn, event.text))
        elif isinstance(event, ToolCall):
            self._trace.mark("model", f"call {event.name}", now)
            self._emit(Calling(now, turn, event.name, event.arguments))
