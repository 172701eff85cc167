"""Tools that hang, fail and are interrupted: the reply goes on, the model is told, the chat stays usable."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import Error
from edge_sdk.events import ToolCall
from edge_sdk.generation import GenerationConfig
from edge_sdk.running import RunningReply
from edge_sdk.tool_worker import MOST_STUCK, ToolWorker
from edge_sdk.tools import make_tools
from tests.forced import make_answers

CALL = '<tool_call>\n{"name": "slow", "arguments": {}}\n</tool_call>'
NEVER_S = 3600.0


@pytest.fixture(scope="module")
def bundle(speech_bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(speech_bundle_path) as opened:
        yield opened


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging tool waits for; let go at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


def tool(function: Any) -> Any:
    function.__name__ = "slow"
    return make_tools([function])[0]


def talking(bundle: Bundle, function: Any, timeout_s: float | None) -> Chat:
    config = GenerationConfig(do_sample=False, max_new_tokens=90)
    function.__name__ = "slow"
    return Chat(bundle, speech=False, tools=[function], tool_timeout_s=timeout_s, generation=config)


def test_a_result_in_time_is_the_result() -> None:
    worker = ToolWorker(NEVER_S)
    assert worker.run(tool(lambda: "done"), {}, RunningReply(1)) == '"done"'
    assert ToolWorker(None).run(tool(lambda: "done"), {}, RunningReply(1)) == '"done"'


def test_one_that_hangs_is_told_and_the_reply_goes_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    with talking(bundle, lambda: gate.wait(NEVER_S), 0.05) as chat:
        make_answers(monkeypatch, chat, [CALL, "Sorry."])
        assert chat.send(text="Do it.").text == "Sorry."
        assert "no result within 0.05 s" in json.loads(chat.history[2]["text"])["error"]


def test_an_interruption_does_not_wait_for_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    began = threading.Event()

    def hangs() -> None:
        began.set()
        gate.wait(NEVER_S)

    with talking(bundle, hangs, None) as chat:
        make_answers(monkeypatch, chat, ["Let me see. " + CALL, "never said", "Yes."])
        stream = chat.stream(text="Do it.")
        assert began.wait(30)
        chat.interrupt(played_ms=1e6)
        *_, done = list(stream)
        assert done.reply.finish_reason == "interrupted"  # type: ignore[union-attr]
        assert [turn["role"] for turn in chat.history] == ["user", "assistant", "tool"]
        assert "user interrupted" in json.loads(chat.history[2]["text"])["error"]
        make_answers(monkeypatch, chat, ["Yes."])
        assert chat.send(text="Are you there?").text == "Yes."


def test_a_tool_that_is_nearly_done_is_heard(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def quick() -> str:
        began.set()
        while not chat._floor.current.interrupted:
            time.sleep(0.001)
        return "done"

    with talking(bundle, quick, None) as chat:
        make_answers(monkeypatch, chat, [CALL, "never said"])
        stream = chat.stream(text="Do it.")
        assert began.wait(30)
        chat.interrupt()
        list(stream)
        assert chat.history[2]["text"] == '"done"'


def test_calls_after_an_interruption_are_not_made(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counts() -> None:
        made.append(1)
        chat.interrupt()

    with talking(bundle, counts, None) as chat:
        make_answers(monkeypatch, chat, [CALL + CALL, "never said"])
        events = list(chat.stream(text="Do it."))
        assert len([e for e in events if isinstance(e, ToolCall)]) <= 2
        assert made == [1]
        assert "before it was called" in json.loads(chat.history[3]["text"])["error"]


def test_a_tool_that_never_returns_is_not_called_for_ever(gate: threading.Event) -> None:
    worker, hanging = ToolWorker(0.001), tool(lambda: gate.wait(NEVER_S))
    running = RunningReply(1)
    for _ in range(MOST_STUCK):
        assert "no result" in worker.run(hanging, {}, running)
    assert "have not returned" in worker.run(hanging, {}, running)
    gate.set()
    give_up = time.monotonic() + 30
    while "have not returned" in worker.run(hanging, {}, running) and time.monotonic() < give_up:
        time.sleep(0.001)
    assert "true" in ToolWorker(NEVER_S).run(hanging, {}, running)


def test_no_thread_is_an_error_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = ToolWorker(None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        for _ in range(MOST_STUCK + 1):
            assert "can't start new thread" in worker.run(tool(lambda: 1), {}, RunningReply(1))
    assert worker.run(tool(lambda: 1), {}, RunningReply(1)) == "1"


def test_a_program_that_wants_to_end_may() -> None:
    def leave() -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        ToolWorker(None).run(tool(leave), {}, RunningReply(1))


@pytest.mark.parametrize("bad", [0, -1, "soon", float("inf"), True, 1e9])
def test_a_limit_that_makes_no_sense_is_refused(bad: Any) -> None:
    with pytest.raises(Error, match="tool_timeout_s"):
        ToolWorker(bad)
