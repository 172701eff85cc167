"""Who has the word in a conversation: one question, reply or change at a time; and the reply to interrupt."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from edge_sdk.errors import BusyError, Error
from edge_sdk.running import RunningReply

INTERRUPTED_WAIT_S = 30.0  # for an interrupted reply to end, before the next call hears that the chat is busy


class Floor:
    """Of one Chat. `current` is its last reply, from its question until the next one; an idle one at first.

    Whoever wants the word makes an object that stands for it and begins to guard it before it claims, since Ctrl-C may
    raise between any two lines: `release` of a claim that does not have the word, or not any more, does nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a turn may be collected, and cancel, wherever its thread is
        self._closed = False
        self._claim: object | None = None  # who has the word
        self.current = RunningReply(1)

    def claim(self, claim: object) -> None:
        """Take the word; whoever got it calls `release`.

        Raises:
            BusyError: somebody has it. A reply that was interrupted is waited for.
        """
        if self.current.interrupted:
            self.current.join(INTERRUPTED_WAIT_S)
        with self._lock:
            self.check_open()
            if self._claim is not None:
                raise BusyError(
                    "this Chat is busy with a reply or an open turn: finish, interrupt or cancel it first; "
                    "another conversation needs a Chat of its own (several can share one Bundle)"
                )
            self._claim = claim

    def release(self, claim: object) -> None:
        with self._lock:
            if self._claim is claim:
                self._claim = None

    def check_word(self, claim: object) -> None:
        """Raises Error if the word is not this claim's any more: a reply had begun when its question failed."""
        mine = self.current
        if self._claim is not claim or (mine.claim is claim and mine.begun):
            raise Error("this turn has lost the word to an interruption of its finish; cancel it")

    def withdraw(self, claim: object) -> None:
        """`release` by whoever got no reply for it. If one has begun all the same, its thread gives the word back: it
        may run on, where a second Ctrl-C came before it was ended."""
        mine = self.current  # once: when its thread has given the word back, it may be another's from line to line
        if mine.claim is not claim or mine.abandon():
            self.release(claim)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        claim = object()
        try:
            self.claim(claim)
            yield
        finally:
            self.release(claim)

    @contextlib.contextmanager
    def question(self, claim: object, capacity: int) -> Iterator[tuple[RunningReply, RunningReply]]:
        """A claimed floor's next reply, and the one before. From here on an interruption is meant for the next one,
        also while its question is still being read. Left with an error, there is no next one.

        Args:
            capacity: events that may wait for the listener.
        """
        self.check_word(claim)
        running, before = RunningReply(capacity, claim), self.current
        try:
            self.current = running
            yield running, before
        except BaseException:
            if running.abandon():
                self.current = before
            raise

    def give_up(self, claim: object) -> None:
        """An error came before anybody got this claim's reply: if it was started all the same, it is ended."""
        mine = self.current  # once, as in `withdraw`
        if mine.claim is claim and not mine.abandon():
            mine.interrupt()
            mine.join()

    def start(self, running: RunningReply, body: Callable[[], None]) -> None:
        with self._lock:
            self.check_open()  # it may have been closed while the question was read
            running.start(body)

    def check_open(self) -> None:
        if self._closed:
            raise Error("this Chat is closed")

    def close(self) -> bool:
        """Nothing is said any more; a reply is ended. Returns whether it was open."""
        with self._lock:
            was_open, self._closed = not self._closed, True
        if was_open:
            self.current.interrupt()
            self.current.join()
        return was_open
