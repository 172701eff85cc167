"""Conversations in a simulated room: the real assistant and a real bundle, a scripted user, compressed time.

The room's clock runs as fast as it is read while the model rests, and in real time while it works, so that latencies
are those of the machine the test runs on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk.assistant import Assistant
from edge_sdk.assistant_events import AssistantEvent, Level, Listening
from edge_sdk.audio_link import AudioLink, Heard
from edge_sdk.chat import Chat
from tests import speech
from tests.room import REPLY_DB, Room, speech_level_db

TICK_S = 0.01
GLANCE_S = 0.0005


class Paced:
    """A link whose clock waits for the model: everything but `read` is the link's own."""

    def __init__(self, link: Any) -> None:
        self.link = link
        self.busy: Callable[[], bool] = lambda: False
        self._read_at = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def read(self, timeout_s: float | None = None) -> Heard | None:
        # No longer than it works: what was heard last occupies it for less than a tick as long as the user speaks.
        while self.busy() and (left_s := self._read_at + TICK_S - time.monotonic()) > 0:
            time.sleep(min(left_s, GLANCE_S))
        self._read_at = time.monotonic()
        heard: Heard | None = self.link.read(timeout_s)
        return heard


class Voiced:
    """A link whose speaker gets a recorded voice, as long as what the bundle made: that is noise, whose echo is
    neither cancelled nor mistaken for speech as an assistant's would be."""

    NAMES = ("tts_hibari_chat_sad", "tts_hibari_q_pause", "tts_hibari_cmd_timer10", "tts_hibari_q_time_london")

    def __init__(self, link: Any) -> None:
        self.link = link
        voice = speech.scene(*(part for name in self.NAMES for part in (name, 0.15)))
        self._voice = voice * 10 ** ((REPLY_DB - speech_level_db(voice)) / 20)
        self._at = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def play(self, pcm: Any, sample_rate: int) -> None:
        count = round(len(pcm) * speech.RATE / sample_rate)
        self.link.play(self._voice[(self._at + np.arange(count)) % len(self._voice)], speech.RATE)
        self._at += count


class Conversation:
    """Runs an assistant in a room. `events` is all it told but for levels; `user` reacts to each, and may `say`.

    It ends when `user` calls `stop`, or after `limit_s` of the room's time, which is then said by `timed_out`.
    """

    def __init__(
        self,
        chat: Chat,
        room: Room,
        user: Callable[[Conversation, AssistantEvent], None],
        *,
        limit_s: float = 120.0,
        voiced: bool = False,
        **options: Any,
    ) -> None:
        self.room, self.chat, self._user, self._limit_s = room, chat, user, limit_s
        self.link = Paced(Voiced(room) if voiced else room)
        link: AudioLink = self.link  # type: ignore[assignment]
        self.assistant = Assistant(chat, link, on_event=self._take, **options)
        self.link.busy = lambda: self.assistant.busy
        self.events: list[AssistantEvent] = []
        self.spoken: list[tuple[float, float]] = []  # when the user's sayings began and ended
        self.timed_out = False

    def say(self, pcm: Any, after_s: float = 0.2) -> tuple[float, float]:
        """The user speaks, from `after_s` from now on."""
        self.spoken.append(self.room.say(pcm, self.room.now() + after_s))
        return self.spoken[-1]

    def stop(self) -> None:
        self.assistant.stop()

    def run(self) -> Conversation:
        self.assistant.run()
        return self

    @property
    def idle(self) -> bool:
        """The assistant listens, and hears nobody."""
        return bool(self.events) and isinstance(self.events[-1], Listening)

    def of(self, kind: type[Any]) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]

    def _take(self, event: AssistantEvent) -> None:
        if isinstance(event, Level):
            if event.at_s > self._limit_s:
                self.timed_out = True
                self.stop()
        else:
            self.events.append(event)
        self._user(self, event)
