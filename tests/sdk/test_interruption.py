"""Barge-in: whoever leaves a reply, however and whenever, gets the chat back, and a history of what was heard."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import chat as chat_module
from edge_sdk import running
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import BusyError, Error
from edge_sdk.events import Done, TextDelta, ToolCall
from edge_sdk.generation import GenerationConfig
from edge_sdk.running import RunningReply
from edge_sdk.stream import ReplyStream
from tests import speech_goldens as goldens
from tests.bundles import RANDOM
from tests.forced import make_answers

SHORT = GenerationConfig(do_sample=False, max_new_tokens=4)
CALL = '<tool_call>\n{"name": "battery", "arguments": {"cell": 2}}\n</tool_call>'


@pytest.fixture(scope="module")
def bundle(speech_bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(speech_bundle_path) as opened:
        yield opened


@pytest.fixture
def chat(bundle: Bundle) -> Iterator[Chat]:
    with Chat(bundle, generation=endless(bundle), context_tokens=4000) as opened:
        yield opened


def endless(bundle: Bundle, most: int = 3000) -> GenerationConfig:
    """Far more events than a channel holds."""
    assert bundle.manifest.model
    eos = tuple((i,) for i in bundle.manifest.model.text_ids.eos)
    return GenerationConfig(seed=1, max_new_tokens=most, text_greedy=False, bad_words=eos)


def made(stream: ReplyStream) -> None:
    """Wait until all of a short reply is made."""
    stream._running.join()


def said(chat: Chat) -> str:
    return str(chat.history[-1]["text"])


# -- leaving


def test_leaving_the_loop_frees_the_chat_at_once(chat: Chat) -> None:
    for _ in chat.stream(text="Hi"):
        break
    assert chat.send(text="again", generation=SHORT).finish_reason == "length"


def test_an_error_in_the_loop_frees_the_chat_too(chat: Chat) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in chat.stream(text="Hi"):
            raise ZeroDivisionError
    chat.send(text="again", generation=SHORT)


def test_a_question_after_an_interruption_waits_for_its_end(chat: Chat) -> None:
    stream = chat.stream(text="Hi")
    next(stream)
    chat.interrupt()
    chat.send(text="again", generation=SHORT)
    stream.close()


ENDLESS = """
import edge_sdk, os, signal, sys, threading
chat = edge_sdk.Chat(sys.argv[1])
eos = tuple((i,) for i in chat.bundle.manifest.model.text_ids.eos)
config = edge_sdk.GenerationConfig(max_new_tokens=1500, text_greedy=False, bad_words=eos)
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS + program, str(RANDOM)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_keyboard_interrupts_send() -> None:
    program = """
for delay_s in (0.05, 1.0):
    try:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        chat.send(text="Hi", generation=config)
    except KeyboardInterrupt:
        again = chat.send(text="again", generation=config.replace(max_new_tokens=4))
        print(again.finish_reason)
"""
    assert run(program) == "length\n" * 2


def test_the_keyboard_may_interrupt_anywhere() -> None:
    """At 150 moments while a question is read, its reply started and its events taken: the chat has no second reply at
    its caches, and is free, also while the error is being handled. A moment inside a finalizer or a weak reference's
    callback is Python's to swallow (it has only `sys.unraisablehook` to tell); that question is then answered whole."""
    program = """
import faulthandler, random, sys
from edge_sdk.running import _running
faulthandler.dump_traceback_later(100, exit=True)
signal.signal(signal.SIGALRM, signal.default_int_handler)
moments, interrupted, swallowed = random.Random(1), 0, []
tell = sys.unraisablehook
sys.unraisablehook = lambda found: (swallowed.append if found.exc_type is KeyboardInterrupt else tell)(found)
with edge_sdk.Chat(chat.bundle, speech=False, context_tokens=1800, generation=config) as chat:
    chat.send(text="Hi", generation=config.replace(max_new_tokens=3))
    for _ in range(150):
        chat.reset()
        try:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0001, 0.008))
            chat.send(text="Hi")
        except KeyboardInterrupt:
            interrupted += 1
            before = set(_running)
            assert len(chat.send(text="again", generation=config.replace(max_new_tokens=3)).text_ids) == 3
            assert not before & _running, "two replies at once"
print(interrupted > 140, interrupted + len(swallowed))
"""
    assert run(program) == "True 150\n"


def interrupted_start(when: str) -> Any:
    """Thread.start with Ctrl-C in it: before there is a thread, when there is one, or in the wait for it, where it
    comes out of threading.Condition as another error."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name != "edge_sdk-reply":
            start(thread)
            return
        if when != "before":
            start(thread)
        if when != "masked":
            raise KeyboardInterrupt
        try:
            raise KeyboardInterrupt
        finally:
            threading.RLock().release()

    return interrupted


@pytest.mark.parametrize("when", ["before", "after", "masked"])
def test_the_keyboard_may_interrupt_the_start_of_a_reply(chat: Chat, when: str) -> None:
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted_start(when))
            with pytest.raises(KeyboardInterrupt):
                chat.send(text="Hi")
        assert not running._running
        assert chat.send(text="again", generation=SHORT).finish_reason == "length"


def test_a_thread_that_comes_after_all_does_nothing(chat: Chat) -> None:
    """Ctrl-C came when the thread was asked for; it begins when the question has been given up."""
    start, late = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        if thread.name != "edge_sdk-reply":
            start(thread)
            return
        late.append(thread)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.send(text="Hi")
    start(late[0])
    late[0].join(20)
    assert not late[0].is_alive()
    assert chat.history == []
    assert chat.send(text="again", generation=SHORT).finish_reason == "length"


def interrupted_behind_its_beginning(chat: Chat) -> Any:
    """Thread.start with Ctrl-C in it when the reply's thread is at work."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "edge_sdk-reply":
            while not chat._floor.current.begun:
                time.sleep(0.001)
            raise KeyboardInterrupt

    return interrupted


def test_a_turn_whose_reply_had_begun_touches_nothing_any_more(chat: Chat) -> None:
    """Ctrl-C in its finish: the word is given back, another reply may be at the caches and the history."""
    turn = chat.begin_turn()
    turn.feed(np.zeros(16000, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted_behind_its_beginning(chat))
        with pytest.raises(KeyboardInterrupt):
            turn.finish()
    with chat.stream(text="Hi") as stream:
        next(stream)
        history = len(chat.history)
        for call in (lambda: turn.feed(np.zeros(160, np.float32)), turn.prepare, turn.add, turn.finish):
            with pytest.raises(Error, match="lost the word"):
                call()
        turn.cancel()
        assert len(chat.history) == history
        with pytest.raises(BusyError):
            chat.send(text="again")
    assert chat.send(text="again", generation=SHORT).finish_reason == "length"


def test_a_second_interrupt_from_the_keyboard_does_not_free_a_chat_whose_reply_runs(chat: Chat) -> None:
    """The first comes when it has begun, the second before it is ended: two replies must not share the caches."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted_behind_its_beginning(chat))
        patch.setattr(RunningReply, "interrupt", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:  # which holds the stream: let go of, it would interrupt
            chat.send(text="Hi")
        with pytest.raises(BusyError):
            chat.send(text="again", generation=SHORT)
    del caught
    chat.interrupt()
    assert chat.send(text="again", generation=SHORT).finish_reason == "length"


def test_only_who_has_the_word_gives_it_back(chat: Chat) -> None:
    late = chat.begin_turn()
    late.cancel()
    turn = chat.begin_turn()
    late._release()
    with pytest.raises(BusyError):
        chat.send(text="Hi", generation=SHORT)
    turn.cancel()
    chat.send(text="Hi", generation=SHORT)


def test_a_chat_is_freed_without_the_collector(bundle: Bundle) -> None:
    """It holds the caches' memory."""
    chat = Chat(bundle, generation=SHORT, context_tokens=64)
    chat.send(text="Hi")
    gone = weakref.ref(chat)
    del chat
    assert gone() is None


def test_a_program_may_end_while_a_reply_runs() -> None:
    for _ in range(3):  # it went wrong most of the time
        assert run("stream = chat.stream(text='Hi', generation=config)\nnext(stream)") == ""


@pytest.mark.parametrize("config", [SHORT, None])
def test_two_threads_may_take_one_streams_events(chat: Chat, config: GenerationConfig | None) -> None:
    stream = chat.stream(text="Hi", generation=config)
    taken: list[list[Any]] = [[], []]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(stream)) for mine in taken]
    for thread in threads:
        thread.start()
    if config is None:
        time.sleep(0.2)
        chat.interrupt()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len([event for mine in taken for event in mine if isinstance(event, Done)]) == 1


# -- asyncio


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.3])
def test_a_cancelled_astream_leaves_nothing_running(
    chat: Chat, delay_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Chat._encode

    def slow(self: Chat, *args: Any) -> Any:
        time.sleep(0.1)
        return encode(self, *args)

    monkeypatch.setattr(Chat, "_encode", slow)

    async def talk() -> None:
        async for _ in chat.astream(goldens.recording("syn1p3")):
            pass

    async def main() -> None:
        task = asyncio.ensure_future(talk())
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)
        await asyncio.to_thread(chat.send, None, "again", generation=SHORT)

    asyncio.run(main())


def test_leaving_astream_does_not_hold_up_the_loop(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    close, closed_in = ReplyStream.close, []

    def noted(self: ReplyStream) -> None:
        closed_in.append(threading.current_thread())
        close(self)

    monkeypatch.setattr(ReplyStream, "close", noted)

    async def main() -> None:
        events = chat.astream(text="Hi")
        async for _ in events:
            break
        await events.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert len(closed_in) == 1
    assert closed_in[0] is not threading.main_thread()


# -- what the history keeps


@pytest.mark.parametrize("wait", [False, True])
def test_leaving_cuts_the_history_however_far_generation_was(chat: Chat, bundle: Bundle, wait: bool) -> None:
    stream = chat.stream(text="Hi", generation=endless(bundle, 30))
    taken = [next(stream), next(stream)]
    if wait:
        made(stream)
    stream.close()
    assert said(chat) == "".join(event.text for event in taken if isinstance(event, TextDelta)) != ""


@pytest.mark.parametrize("wait", [False, True])
def test_played_sound_cuts_the_history_however_far_generation_was(chat: Chat, bundle: Bundle, wait: bool) -> None:
    whole = [e for e in chat.stream(text="Hi", generation=endless(bundle, 30)) if isinstance(e, TextDelta)]
    chat.reset()
    stream = chat.stream(text="Hi", generation=endless(bundle, 30))
    for event in stream:
        if isinstance(event, TextDelta) and event.step >= 4:
            break
    if wait:
        made(stream)
    chat.interrupt(played_ms=650)
    rest = list(stream)
    assert [type(event) for event in rest] == [Done]
    assert stream.reply
    assert stream.reply.finish_reason == "interrupted"
    assert said(chat) == "".join(delta.text for delta in whole if delta.step <= 3) != ""


def test_a_whole_reply_can_be_cut_to_what_was_played_until_the_next_question(chat: Chat, bundle: Bundle) -> None:
    deltas = [e for e in chat.stream(text="Hi", generation=endless(bundle, 30)) if isinstance(e, TextDelta)]
    with pytest.raises(Error, match="nothing to answer"):
        chat.send()
    turn = chat.begin_turn()
    turn.feed(np.zeros(16000, np.float32))
    chat.interrupt()
    assert said(chat) == "".join(d.text for d in deltas)
    chat.interrupt(played_ms=650)
    kept = "".join(d.text for d in deltas if d.step <= 3)
    assert said(chat) == kept
    turn.cancel()
    chat.send(text="again", generation=SHORT)
    after = chat.history
    assert after[1]["text"] == kept
    chat.add("user", "more")
    chat.interrupt(played_ms=0)
    assert chat.history == [*after, {"role": "user", "text": "more", "audio_s": None, "tool_calls": []}]


def test_a_stream_that_is_left_after_the_next_question_cuts_nothing(chat: Chat, bundle: Bundle) -> None:
    stream = chat.stream(text="Hi", generation=endless(bundle, 30))
    made(stream)
    chat.send(text="again", generation=SHORT)
    history = chat.history
    stream.close()
    assert chat.history == history


@pytest.mark.parametrize("how", ["interrupt", "close"])
def test_an_interruption_while_the_question_is_read_counts(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    chat = Chat(bundle, generation=endless(bundle, 30), context_tokens=256)
    encode = Chat._encode

    def interrupted(self: Chat, *args: Any) -> Any:
        getattr(chat, how)()
        return encode(self, *args)

    monkeypatch.setattr(Chat, "_encode", interrupted)
    if how == "close":
        with pytest.raises(Error, match="closed"):
            chat.send(goldens.recording("syn1p3"))
        assert chat.history == []
        return
    assert chat.send(goldens.recording("syn1p3")).finish_reason == "interrupted"
    assert [turn["role"] for turn in chat.history] == ["user", "assistant"]
    chat.close()


def test_a_question_that_failed_leaves_the_last_reply_as_it_was(chat: Chat, bundle: Bundle) -> None:
    chat.send(text="Hi", generation=endless(bundle, 30))
    with pytest.raises(Error):
        chat.send("nowhere.wav")
    chat.interrupt(played_ms=0)
    assert said(chat) == ""


@pytest.mark.parametrize("played_ms", [float("inf"), float("nan"), -1, 10**400, 1j, True, "1", np.complex64(1)])
def test_what_was_played_must_be_a_number(chat: Chat, bundle: Bundle, played_ms: Any) -> None:
    with chat.stream(text="Hi", generation=endless(bundle, 30)) as stream:
        next(stream)
        for interrupt in (chat.interrupt, stream.interrupt):
            with pytest.raises(Error, match="played_ms must be a number of milliseconds, 0 or more, found"):
                interrupt(played_ms)
        assert len(list(stream)) > 1
    chat.interrupt(np.float32(0))


# -- with tools


def battery(cell: int) -> str:
    """Charge of a cell."""
    return "80 %"


def talking(bundle: Bundle, tools: list[Any]) -> Chat:
    config = GenerationConfig(do_sample=False, max_new_tokens=90)
    return Chat(bundle, speech=False, tools=tools, generation=config)


@pytest.mark.parametrize("wait", [False, True])
def test_a_delivered_call_stays_when_the_listener_leaves(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    with talking(bundle, [{"name": "battery", "parameters": {"type": "object"}}]) as chat:
        make_answers(monkeypatch, chat, ["Let me see. " + CALL + " Or not, and a few words more."])
        stream = chat.stream(text="How full?")
        taken = []
        for event in stream:
            taken.append(event)
            if isinstance(event, ToolCall):
                break
        if wait:
            made(stream)
        stream.close()
        assert [c["name"] for c in chat.history[-1]["tool_calls"]] == ["battery"]
        assert said(chat) == "Let me see. "


def test_an_interruption_cuts_every_round(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with talking(bundle, [battery]) as chat:
        make_answers(monkeypatch, chat, ["Let me see now. " + CALL, "It is at 80."])
        deltas = [e for e in chat.stream(text="How full?") if isinstance(e, TextDelta)]
        first = deltas[0].text
        assert deltas[0].step == 0
        chat.interrupt(played_ms=0)
        # The call was run, and that stays; what was said then was not heard.
        assert [turn["role"] for turn in chat.history] == ["user", "assistant", "tool"]
        assert chat.history[1]["text"] == first != "Let me see now. "
        assert len(chat.history[1]["tool_calls"]) == 1
        # The first request for a place counts.
        chat.interrupt(played_ms=1e6)
        assert chat.history[1]["text"] == first


def test_an_interruption_while_a_tool_runs_leaves_no_empty_turn(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(cell: int) -> str:
        chat.interrupt()
        with pytest.raises(BusyError):
            chat.send(text="from within")
        return "done"

    waits.__name__ = "battery"
    with talking(bundle, [waits]) as chat:
        make_answers(monkeypatch, chat, [CALL, "It is at 80."])
        assert chat.send(text="How full?").finish_reason == "interrupted"
        assert [turn["role"] for turn in chat.history] == ["user", "assistant", "tool"]
        assert chat.history[-1]["text"] == '"done"'


# -- a closed chat


def test_a_closed_chat_answers_nothing_more(bundle: Bundle) -> None:
    chat = Chat(bundle, generation=SHORT, context_tokens=256)
    turn = chat.begin_turn()
    turn.feed(np.full(16000, 0.1, np.float32))
    chat.close()
    with pytest.raises(Error, match="closed"):
        turn.finish()
    with pytest.raises(Error, match="closed"):
        chat.encode(goldens.recording("syn1p3"))


def test_closing_a_chat_ends_a_send_in_another_thread(chat: Chat) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(chat.send(text="Hi")))
    thread.start()
    time.sleep(0.3)
    chat.close()
    thread.join(20)
    assert [reply.finish_reason for reply in found] == ["interrupted"]


def test_a_failed_reply_frees_the_chat_although_nobody_listens(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "CHANNEL_EVENTS", 1)
    with Chat(bundle, generation=SHORT, context_tokens=256) as chat:
        make_answers(monkeypatch, chat, [])  # StopIteration, in the reply's thread
        stream = chat.stream(text="Hi")
        made(stream)
        assert chat.history == []
        stream.close()
        monkeypatch.undo()
        chat.send(text="Hi")
