"""How much one client, and all of them, may take: the numbers, and what keeps them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from edge_sdk.checks import check_number
from edge_sdk.server.errors import BusyError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. All of them are there so that no client can take what the others need.

    Args:
        max_sessions: websockets at once; one more gets HTTP 503.
        max_connections: sockets at once, those included that have not said anything yet.
        max_message_bytes: of one message; a larger one closes the connection (1009).
        messages_per_s: over two seconds' worth, reading waits; a client that makes it wait for `flood_s` is shed.
        responses_per_min: responses a session may ask for.
        max_audio_s: sound in the input buffer.
        slots: responses generated at once, by all sessions together.
        queue: responses that may wait for a slot, `queue_s` at most; more, or longer, is "server_busy".
        max_unsent_bytes: what may wait for a client that reads too slowly before it is shed.
        max_unread_bytes: messages that may wait for a session's thread before reading waits.
        idle_s: without a message a session ends.
        session_s: a session ends in any case.
        handshake_s: for a request to arrive.
        ping_s: between pings; a client that answers none for half of that is gone.
        close_s: for a client to answer a close.
    """

    max_sessions: int = 64
    max_connections: int = 256
    max_message_bytes: int = 2 << 20
    messages_per_s: float = 200.0
    flood_s: float = 30.0
    responses_per_min: float = 60.0
    max_audio_s: float = 120.0
    slots: int = 2
    queue: int = 16
    queue_s: float = 30.0
    max_unsent_bytes: int = 8 << 20
    max_unread_bytes: int = 8 << 20
    idle_s: float = 900.0
    session_s: float = 3600.0
    handshake_s: float = 10.0
    ping_s: float = 20.0
    close_s: float = 2.0

    def __post_init__(self) -> None:
        for f in fields(self):
            least = 0 if f.name == "queue" else 1 if f.type == "int" else 1e-3
            check_number(f"Limits: {f.name}", getattr(self, f.name), least, 1e12, f"a number from {least} up")


class Bucket:
    """A token bucket: `rate` a second, `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = burst, clock()

    @property
    def left(self) -> float:
        self._fill()
        return self._left

    @property
    def full_in_s(self) -> float:
        return (self._burst - self.left) / self._rate

    def take(self) -> bool:
        """One, if there is one."""
        self._fill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def borrow(self) -> float:
        """One, in any case. Returns for how many seconds the next one should wait."""
        self._fill()
        self._left -= 1
        return max(0.0, -self._left / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now


class Slots:
    """Places to generate, first come first served."""

    def __init__(self, count: int, queue: int, queue_s: float) -> None:
        self._queue, self._queue_s = queue, queue_s
        self._changed = threading.Condition()
        self._free = self.count = count
        self._waiting: deque[object] = deque()

    @property
    def taken(self) -> int:
        return self.count - self._free

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextlib.contextmanager
    def one(self, given_up: Callable[[], bool]) -> Iterator[bool]:
        """A place, for as long as the body runs; False if `given_up` said so while it was waited for (see `wake`).

        Raises:
            BusyError: the queue is full, or it took too long.
        """
        got = self._take(given_up)
        try:
            yield got
        finally:
            if got:
                with self._changed:
                    self._free += 1
                    self._changed.notify_all()

    def wake(self) -> None:
        """Have those who wait look whether they gave up."""
        with self._changed:
            self._changed.notify_all()

    def _take(self, given_up: Callable[[], bool]) -> bool:
        me = object()
        until = time.monotonic() + self._queue_s
        with self._changed:
            if (not self._free or self._waiting) and len(self._waiting) >= self._queue:
                raise BusyError(
                    f"The server is busy: {self.taken} responses are made and {self.waiting} wait. Try again later."
                )
            self._waiting.append(me)
            try:
                while not (self._free and self._waiting[0] is me):
                    if given_up():
                        return False
                    if not self._changed.wait(until - time.monotonic()):
                        raise BusyError(
                            f"The server is busy: no place became free in {self._queue_s:g} s. Try again later."
                        )
                if given_up():
                    return False
                self._free -= 1
                return True
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()
