"""A reply on its way, as both its sides see it: the thread that makes it, and whoever listens or interrupts."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from edge_sdk.channel import Channel
from edge_sdk.events import AudioChunk, Done, Event, TextDelta, ToolCall

EXIT_WAIT_S = 30.0  # for a reply to end when the program does; a tool may never return

Cut = Callable[[int, float | None], None]


class RunningReply:
    """One reply from the moment its question is asked until the next one: its events, its thread, how to stop it.

    The chat, the stream and the maker hold this and not each other, so that a stream nobody holds any more is noticed.
    """

    def __init__(self, capacity: int, claim: object = None) -> None:
        """
        Args:
            capacity: events that may wait for the listener.
            claim: by what it has the word (see Floor).
        """
        self.claim = claim
        self._channel = Channel(capacity)
        self.lock = self._channel.lock  # while it is held, the history stands still
        self._thread: threading.Thread | None = None
        self._begun = False  # by the thread itself
        self._over = False
        self._interrupted = False
        self._played_ms: float | None = None
        self._stops: list[Callable[[], None]] = []
        self._helpers: set[threading.Thread] = set()
        self._cut: Cut | None = None

    # -- the maker's side

    @property
    def interrupted(self) -> bool:
        """Looked at after every step."""
        return self._interrupted

    @property
    def begun(self) -> bool:
        """Its thread runs, or did."""
        return self._begun

    def start(self, body: Callable[[], None]) -> None:
        """Run `body` in a thread, which has to end with `end`."""

        def run() -> None:
            with self.lock:
                if self._over:
                    return
                self._begun = True
            try:
                body()
            finally:
                _running.discard(self)
                with self.lock:
                    self._over = True
                    self._channel.changes.notify()

        self._thread = threading.Thread(target=run, name="edge_sdk-reply", daemon=True)
        _running.add(self)
        try:
            self._thread.start()
        except RuntimeError as e:
            # Ctrl-C inside Thread.start, which waits with a Condition, comes out as a lock that was released twice.
            if isinstance(e.__context__, KeyboardInterrupt):
                raise e.__context__ from None
            raise

    def abandon(self) -> bool:
        """Whether the thread has not begun, and never will. An error out of `start` does not say: Ctrl-C may come when
        the thread is there already, or before it is."""
        with self.lock:
            if self._begun:
                return False
            self._over = True  # so a thread that comes late does nothing
            self._channel.changes.notify()
        _running.discard(self)
        return True

    def put(self, event: Event) -> None:
        """Give the listener an event, waiting for room."""
        self._channel.put(event)

    def on_interrupt(self, stop: Callable[[], None]) -> None:
        """Have `stop` called with an interruption: for what does not look at `interrupted`."""
        with self.lock:
            self._stops.append(stop)
        if self._interrupted:
            stop()

    @contextlib.contextmanager
    def helped_by(self, thread: threading.Thread, stop: Callable[[], None]) -> Iterator[None]:
        """Within, `stop` is called with an interruption. What `thread` does counts as done by this reply, for good: it
        cannot wait for the reply's end."""
        self._helpers.add(thread)
        self.on_interrupt(stop)
        try:
            yield
        finally:
            with self.lock:
                if stop in self._stops:
                    self._stops.remove(stop)

    def fail(self) -> None:
        """No more events: threads that wait for room go on."""
        self._channel.shut()

    def complete(self, cut: Cut) -> bool:
        """Everything is made and in the history. Returns whether an interruption came before.

        Args:
            cut: cuts the history to so many text deltas and calls, or to so many milliseconds if they are given. From
                now on called by whoever interrupts: how far generation was ahead of the listener makes no difference.
        """
        with self.lock:
            self._stops, self._cut = [], cut
            if self._interrupted:
                cut(self._channel.taken, self._played_ms)
            return self._interrupted

    def end(self, last: Done | BaseException) -> None:
        self._channel.end(last)

    # -- the listener's side

    def next(self) -> TextDelta | AudioChunk | ToolCall | Done | BaseException | None:
        """The next event, waiting for it; what ended the reply instead of Done; None when that was taken."""
        event = self._channel.get()
        if isinstance(event, Done) and self._interrupted:
            return Done(dataclasses.replace(event.reply, finish_reason="interrupted"))
        return event

    def interrupt(self, played_ms: float | None = None) -> None:
        """Have the reply end within one step; events that were not taken are dropped, but for the last.

        The first `played_ms` counts; None is all that was taken, and does nothing once that is everything.
        """
        with self.lock:
            if played_ms is None and self._channel.ended:
                return
            self._interrupted = True
            if self._played_ms is None:
                self._played_ms = played_ms
            self._channel.discard()
            if self._cut:
                self._cut(self._channel.taken, self._played_ms)
            stops = list(self._stops)
        for stop in stops:
            stop()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the thread's end. From within it, or within a tool that it called, there is nothing to wait for."""
        inside = {self._thread, *self._helpers}
        if self._thread is None or threading.current_thread() in inside:
            return
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self.lock:
                if self._over:
                    return
                change = self._channel.changes.next()
            if not change.acquire(timeout=-1 if until is None else max(0.0, until - time.monotonic())):
                return

    # -- the chat's side

    def settle(self) -> None:
        """This reply's part of the history is not cut any more."""
        with self.lock:
            self._cut = None


_running: set[RunningReply] = set()


@atexit.register
def _end_all() -> None:
    """A thread inside the runtime's library when the interpreter goes away takes the process down with it."""
    replies = list(_running)
    for reply in replies:
        reply.interrupt()
    for reply in replies:
        reply.join(EXIT_WAIT_S)
