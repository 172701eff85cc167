"""A session's thread, and the two queues between it and the event loop; neither side ever waits for the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
from collections import deque
from typing import Any

from edge_sdk.server.items import new_id
from edge_sdk.server.response import Response
from edge_sdk.server.service import Service
from edge_sdk.server.session import Session

log = logging.getLogger("edge_sdk.server")


class Outbox:
    """Events for one client. Any thread puts, the loop takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most_bytes: int) -> None:
        self._loop, self._most = loop, most_bytes
        self._events: deque[str] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._closed = False
        self.full = asyncio.Event()  # the client does not read

    def put(self, event: dict[str, Any]) -> None:
        text = json.dumps(event)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there any more
            self._loop.call_soon_threadsafe(self._put, text)

    def _put(self, text: str) -> None:
        if self._closed:
            return
        if self._bytes + len(text) > self._most:
            self.full.set()
            self.close()
            return
        self._events.append(text)
        self._bytes += len(text)
        self._changed.set()

    def close_soon(self) -> None:
        """`close`, from any thread, behind what was put."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.close)

    def close(self) -> None:
        """Nothing more is taken; what is there can still be had."""
        self._closed = True
        self._changed.set()

    async def get(self) -> str | None:
        """The next event, waiting for it; None at the end."""
        while not self._events:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        text = self._events.popleft()
        self._bytes -= len(text)
        return text


class Worker:
    """Runs one session. Messages are taken in order; a full inbox is the reader's to wait for."""

    def __init__(self, service: Service, outbox: Outbox, *, beta: bool) -> None:
        self._inbox: queue.SimpleQueue[str | Response | None] = queue.SimpleQueue()
        self._most = service.limits.max_unread_bytes
        self._lock = threading.Lock()
        self._unread = 0
        self._service, self._outbox, self._beta = service, outbox, beta
        self.id = new_id("sess")
        self._thread = threading.Thread(target=self._run, name="edge_sdk-session", daemon=True)
        self._stopping = False

    def start(self) -> None:
        self._thread.start()

    @property
    def has_room(self) -> bool:
        return self._unread < self._most

    def put(self, text: str) -> None:
        with self._lock:
            self._unread += len(text) + 64  # small messages count too
        self._inbox.put(text)

    def stop(self) -> None:
        """End the session and wait for its thread. What was not handled yet is dropped."""
        self._stopping = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        session: Session | None = None
        try:
            # Made here: opening the voice detector takes its time, which is not the loop's.
            session = Session(self.id, self._service, self._outbox.put, self._inbox.put, beta=self._beta)
            session.open()
            while (message := self._inbox.get()) is not None and not self._stopping:
                if isinstance(message, Response):
                    session.ended(message)
                    continue
                with self._lock:
                    self._unread -= len(message) + 64
                session.handle(message)
        except BaseException:
            log.exception("a session broke off", extra={"event": "session_failed", "session": self.id})
            error = {
                "type": "server_error", "code": "internal_error", "param": None, "event_id": None,
                "message": "The session broke off. Its reason is in the server's log.",
            }  # fmt: skip
            self._outbox.put({"type": "error", "event_id": new_id("event"), "error": error})
        finally:
            if session:
                session.close()
            self._outbox.close_soon()
