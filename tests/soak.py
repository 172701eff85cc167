"""An hour of conversation in compressed time, with faults: nothing may grow, stay behind or be lost.

    python -m tests.soak [--minutes 60]

The user asks, talks over answers and coughs; the devices go away and come back, the speaker stalls, replies fail, tools
hang, and every few minutes the program ends and goes on with the conversation from its session. In the end every
question has one outcome, and memory, threads and open files are what they were after the first quarter.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.assistant_events import (
    Answered,
    AssistantEvent,
    Calling,
    Failed,
    Ignored,
    Level,
    Listening,
    Speaking,
    Thinking,
)
from edge_sdk.chat import Chat
from edge_sdk.generation import GenerationConfig
from tests import speech
from tests.bundles import RANDOM
from tests.forced import make_spoken_answers
from tests.room import Room
from tests.simulated import Conversation

QUESTIONS = ("tts_joe_q_weather", "tts_joe_cmd_off", "human_librivox_0880", "tts_joe_q_story", "human_librivox_0930")
CALL = '<tool_call>\n{"name": "lamp", "arguments": {}}\n</tool_call>'
CHAPTER_MINUTES = 4.0  # of the room's time, between two ends of the program
CONFIG = GenerationConfig(seed=1, max_new_tokens=100)
CONTEXT_TOKENS = 1024  # full within minutes: then old turns are dropped, and memory has no more reason to grow
ANSWERS = ("the light in the morning sun " * 3, "the light", "the " + CALL, "the light in the sun " * 5)


@dataclass
class Report:
    events: Counter[str] = field(default_factory=Counter)
    rss_mb: list[float] = field(default_factory=list)  # every tenth of the way
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    outcomes: dict[tuple[int, int], str] = field(default_factory=dict)  # by chapter and turn
    asked: set[tuple[int, int]] = field(default_factory=set)
    cut: int = 0  # answers that ended interrupted
    wall_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)  # threads of ours that did not end


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Life:
    """The user and the accidents, at random but repeatable."""

    def __init__(self, report: Report, minutes: float, seed: int) -> None:
        self.report, self.end_s = report, 60 * minutes
        self.random = random.Random(seed)
        self.fail_next = False
        self.chapter, self.before_s = 0, 0.0  # the room's time that earlier chapters took
        self._measured_s = 0.0

    def __call__(self, conversation: Conversation, event: AssistantEvent) -> None:
        if isinstance(event, Level):
            self._measure(self.before_s + event.at_s)
            return
        self.report.events[type(event).__name__] += 1
        if isinstance(event, Listening):
            self._speak(conversation)
        elif isinstance(event, Speaking):
            self._interfere(conversation)
        elif isinstance(event, Calling):
            self.report.faults["tool hangs"] += 1
        elif isinstance(event, Thinking):
            self.report.asked.add((self.chapter, event.turn))
        elif isinstance(event, (Answered, Failed, Ignored)):
            self._note(event)
        conversation.events.clear()

    def _note(self, event: Answered | Failed | Ignored) -> None:
        key = self.chapter, event.turn
        if key in self.report.outcomes:
            raise AssertionError(f"turn {key} has two outcomes: {self.report.outcomes[key]} and {event}")
        self.report.outcomes[key] = type(event).__name__
        self.report.cut += isinstance(event, Answered) and event.timings.interrupted

    def _speak(self, conversation: Conversation) -> None:
        self.fail_next = self.random.random() < 0.1
        conversation.say(speech.clip(self.random.choice(QUESTIONS)), self.random.uniform(0.3, 1.5))

    def _interfere(self, conversation: Conversation) -> None:
        chance = self.random.random()
        if chance < 0.25:
            conversation.say(speech.clip("tts_joe_barge_wait"), self.random.uniform(0.2, 2.0))
        elif chance < 0.35:
            conversation.say(speech.clip("tts_hibari_cmd_stop")[3000:5500], 0.5)
        elif chance < 0.45:
            self.report.faults["devices go away"] += 1
            conversation.room.unplug(self.random.uniform(0.5, 20.0))
        elif chance < 0.55:
            self.report.faults["speaker stalls"] += 1
            conversation.room.stall(self.random.uniform(0.5, 4.0))

    def _measure(self, at_s: float) -> None:
        if at_s >= self._measured_s:
            self._measured_s = at_s + self.end_s / 10
            gc.collect()
            self.report.rss_mb.append(round(rss_mb(), 1))
            self.report.threads.append(threading.active_count())
            self.report.files.append(open_files())


def soak(minutes: float, seed: int = 1) -> Report:
    report = Report()
    life = Life(report, minutes, seed)
    before, began = set(threading.enumerate()), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while life.before_s < life.end_s:
            limit_s = min(60 * CHAPTER_MINUTES, life.end_s - life.before_s)
            _live(life, Path(folder) / "session.bin", limit_s)
            gc.collect()  # the accidents tie the chat into a circle; a program that ends lets go of it at once
            life.before_s += limit_s
            life.chapter += 1
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    report.left = [t.name for t in set(threading.enumerate()) - before]
    report.wall_s = time.monotonic() - began
    return report


def _live(life: Life, session: Path, limit_s: float) -> None:
    """The program from its start to its end."""
    let_go = threading.Event()

    def lamp() -> None:
        let_go.wait(0.2)

    options: dict[str, Any] = {
        "generation": CONFIG, "context_tokens": CONTEXT_TOKENS, "tools": [lamp], "tool_timeout_s": 0.05,
    }  # fmt: skip
    again = session.exists()
    with (
        pytest.MonkeyPatch.context() as patch,
        Chat.restore(RANDOM, session, **options) if again else Chat(RANDOM, **options) as chat,
    ):
        if again:
            life.report.faults["program ends"] += 1
            assert chat.history, "the conversation before was not kept"
        backbone, step = chat._context.backbone, chat._context.backbone.step

        def breaks(*args: Any) -> Any:
            if life.fail_next:
                life.fail_next = False
                life.report.faults["reply fails"] += 1
                raise RuntimeError("an accident")
            return step(*args)

        patch.setattr(backbone, "step", breaks)
        make_spoken_answers(patch, chat, [life.random.choice(ANSWERS) for _ in range(10000)])
        room = Room(speaker_db=None, echo_cancellation="off", snr_db=30, seed=life.chapter)
        Conversation(chat, room, life, limit_s=limit_s, session=session).run()
        room.close()


def check(report: Report) -> None:
    """Raises AssertionError if something grew, stayed behind or was lost."""
    lost = report.asked - set(report.outcomes)
    assert not lost, f"questions without an outcome: {lost}"
    assert not report.left, f"threads that stay: {report.left}"
    assert report.cut == report.events["Interrupted"], (report.cut, report.events)
    assert report.events["Failed"] == report.faults["reply fails"], (report.faults, report.events)
    quarter = report.rss_mb[len(report.rss_mb) // 4 :]
    assert max(quarter) - quarter[0] < 40, f"memory grows: {report.rss_mb} MB"
    assert max(report.files) <= report.files[0] + 2, f"files stay open: {report.files}"
    assert max(report.threads) <= report.threads[0] + 4, f"threads stay: {report.threads}"  # a hanging tool, a timer
    assert report.events["Answered"] > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the room's time")
    minutes = parser.parse_args().minutes
    report = soak(minutes)
    print(
        f"{minutes:g} minutes of the room's in {report.wall_s:.0f} s, "
        f"{60 * minutes / report.wall_s:.1f} times real time"
    )
    print("events:", dict(report.events))
    print("faults:", dict(report.faults))
    print(f"questions: {len(report.asked)}, outcomes: {dict(Counter(report.outcomes.values()))}")
    print("memory MB:", report.rss_mb, "threads:", report.threads, "files:", report.files)
    check(report)
    print("nothing grew, nothing stayed, nothing was lost")


if __name__ == "__main__":
    main()
