"""Ctrl-C is kept until a block has ended; a second one is not."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from edge_sdk.keyboard import ends_with, terminated_by


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_the_block_ends_before_it_is_raised() -> None:
    stopping, ended = threading.Event(), False
    with pytest.raises(KeyboardInterrupt), ends_with(stopping.set):
        press()
        assert stopping.wait(5)
        ended = True
    assert ended
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_is_raised_at_once() -> None:
    stopping = threading.Event()
    with pytest.raises(KeyboardInterrupt), ends_with(stopping.set):
        press()
        assert stopping.wait(5)
        press()
        time.sleep(5)
        pytest.fail("it was not raised")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_block_s_own_error_goes_before() -> None:
    with pytest.raises(ZeroDivisionError), ends_with(lambda: None):
        press()
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_s_own_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with ends_with(lambda: seen.append(0)):
            press()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_other_threads_are_left_alone() -> None:
    done: list[str] = []

    def run() -> None:
        with ends_with(lambda: None), terminated_by(lambda: None):
            done.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert done == ["ran"]


def test_sigterm_stops_within_and_is_what_it_was_after() -> None:
    before, stopping = signal.getsignal(signal.SIGTERM), threading.Event()
    with terminated_by(stopping.set):
        press(signal.SIGTERM)
        assert stopping.wait(5)
    assert signal.getsignal(signal.SIGTERM) == before
