"""Ctrl-C where it must not come between any two lines: an exception out of a lock's middle leaves it held for good."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def ends_with(stop: Callable[[], None]) -> Iterator[None]:
    """Within, Ctrl-C calls `stop`, which may do no more than set a flag; KeyboardInterrupt is raised when the block has
    ended. A second Ctrl-C is raised where it comes, should the end take too long.

    As asyncio.run does, in the main thread alone, and only where Python's own handler would raise.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pressed = True
        stop()

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def terminated_by(stop: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM calls `stop`: a service manager's way to end a program. In the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
