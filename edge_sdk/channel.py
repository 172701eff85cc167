"""A bounded queue between the threads that make a reply and the one that takes its events."""

from __future__ import annotations

import threading
from collections import deque

from edge_sdk.events import AudioChunk, Done, Event


class Changes:
    """Lets threads wait until something under a lock has changed.

    Like threading.Condition, which is not used because the handler of a signal (Ctrl-C) may raise anywhere in its wait:
    then its lock stays held, or is released twice. Here the lock is taken by C code alone, and never while waiting.
    """

    def __init__(self) -> None:
        self._waiting: list[threading.Lock] = []

    def next(self) -> threading.Lock:
        """Called with the lock held: a lock that can be acquired, once the first is released, after the next change."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiting.append(waiter)
        return waiter

    def notify(self) -> None:
        """Called with the lock held: something has changed."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.release()


class Channel:
    """Events in order. A full channel makes the maker wait, `discard` lets it go on without a listener.

    The last thing in a channel is a Done or an exception.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[Event] = deque()
        self._last: Done | BaseException | None = None
        self.lock = threading.RLock()  # a stream may be collected, and interrupt, wherever its thread is
        self.changes = Changes()
        self._shut = False
        self.taken = 0  # text deltas and tool calls that the listener took
        self.ended = False  # the last item was taken

    def put(self, event: Event) -> None:
        """Append, waiting for room. After `shut` and `discard` events vanish here."""
        while True:
            with self.lock:
                if self._shut:
                    return
                if len(self._items) < self._capacity:
                    self._items.append(event)
                    self.changes.notify()
                    return
                room = self.changes.next()
            room.acquire()

    def end(self, last: Done | BaseException) -> None:
        """Append the last item, room or not."""
        with self.lock:
            self._last = last
            self.changes.notify()

    def shut(self) -> None:
        """Take no more events, but for the last item."""
        with self.lock:
            self._shut = True
            self.changes.notify()

    def discard(self) -> None:
        """`shut`, and drop what was not taken yet."""
        with self.lock:
            self._items.clear()
            self.shut()

    def get(self) -> Event | BaseException | None:
        """The next item, waiting for it; None after the last, for each of several threads that wait."""
        while True:
            with self.lock:
                if self._items:
                    event = self._items.popleft()
                    self.taken += not isinstance(event, AudioChunk)
                    self.changes.notify()
                    return event
                if self._last is not None or self.ended:
                    last, self._last, self.ended = self._last, None, True
                    self.changes.notify()  # for the others that wait
                    return last
                something = self.changes.next()
            something.acquire()
