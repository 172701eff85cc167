"""A session without a network: events in, events out, and the Chat behind it to look at."""

from __future__ import annotations

import json
import queue
from typing import Any

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.server.response import Response
from edge_sdk.server.service import Service
from edge_sdk.server.session import Session
from tests.server.running import WAIT_S, endless


class Driven:
    def __init__(self, bundle: Bundle, *, steps: int = 12, **service: Any) -> None:
        self.service = Service(bundle, generation=endless(bundle, steps), **service)
        self.events: list[dict[str, Any]] = []
        self._ended: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self.session = Session("sess_test", self.service, self.events.append, self._ended.put)
        self.session.open()
        self.last: Response | None = None

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *exc: object) -> None:
        self.session.close()

    def do(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """One event; what it made at once."""
        before = len(self.events)
        self.session.handle(json.dumps({"type": kind, **fields}))
        return self.events[before:]

    def say(self, text: str, role: str = "user", **fields: Any) -> str:
        kind = "output_text" if role == "assistant" else "input_text"
        item = {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
        return str(self.do("conversation.item.create", item=item, **fields)[-1]["item"]["id"])

    def answer(self, **response: Any) -> list[dict[str, Any]]:
        """Ask, and wait for the end; all its events."""
        before = len(self.events)
        self.do("response.create", response=response)
        self.last = self._ended.get(timeout=WAIT_S)
        self.session.ended(self.last)
        return self.events[before:]

    @property
    def chat(self) -> Chat:
        """With the history that the next question will have."""
        chat = self.session.chat()
        assert chat is not None
        return chat

    def prompt(self) -> list[int]:
        return [int(i) for i in self.chat._conversation.render().ids]
