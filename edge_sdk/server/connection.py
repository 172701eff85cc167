"""One websocket: reads, bounds and paces what comes in, sends what goes out, and ends in every way a client can."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from edge_sdk.server.items import new_id
from edge_sdk.server.limits import Bucket
from edge_sdk.server.service import Service
from edge_sdk.server.worker import Outbox, Worker

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger("edge_sdk.server")

_POLL_S = 0.01  # while a session's inbox is full


class Connection:
    """`serve` is its whole life."""

    def __init__(self, service: Service, socket: web.WebSocketResponse, request: web.Request, *, beta: bool) -> None:
        self._service, self._socket, self._request = service, socket, request
        self._limits = service.limits
        self._outbox = Outbox(asyncio.get_running_loop(), self._limits.max_unsent_bytes)
        self._worker = Worker(service, self._outbox, beta=beta)
        self._bucket = Bucket(self._limits.messages_per_s, 2 * self._limits.messages_per_s)
        self._paced_since: float | None = None
        self._end: tuple[int, str] | None = None  # close code, and why
        self.id = self._worker.id

    async def serve(self) -> None:
        began = time.monotonic()
        log.info("session opened", extra={"event": "session_opened", "session": self.id})
        self._service.metrics.sessions.inc()
        self._service.metrics.sessions_opened.inc()
        self._worker.start()
        reading = asyncio.ensure_future(self._read())
        writing = asyncio.ensure_future(self._write())
        watching = asyncio.ensure_future(self._outbox.full.wait())
        try:
            done, _ = await asyncio.wait(
                {reading, writing, watching}, timeout=self._limits.session_s, return_when=asyncio.FIRST_COMPLETED
            )
            if watching in done:
                self._shed("slow_reader")
            elif not done:
                self._say_error("session_expired", f"Your session hit the limit of {self._limits.session_s:g} s.")
                self._end = (1001, "session_expired")
        finally:
            await self._finish(reading, writing, watching)
            self._service.metrics.sessions.dec()
            log.info("session closed", extra={
                "event": "session_closed", "session": self.id, "seconds": round(time.monotonic() - began, 3),
                "reason": self._end[1] if self._end else "client",
            })  # fmt: skip

    async def end(self, code: int, reason: str) -> None:
        """From outside: the server goes away."""
        self._end = (code, reason)
        with contextlib.suppress(TimeoutError, ConnectionError, RuntimeError):
            await asyncio.wait_for(self._socket.close(code=code, message=reason.encode()), self._limits.close_s)

    # -- in

    async def _read(self) -> None:
        from aiohttp import WSMsgType

        while self._end is None:
            try:
                message = await self._socket.receive(timeout=self._limits.idle_s)
            except TimeoutError:
                self._say_error("session_idle", f"Nothing came for {self._limits.idle_s:g} s.")
                self._end = (1001, "idle")
                return
            if message.type is WSMsgType.TEXT:
                await self._take(message.data)
            elif message.type is WSMsgType.BINARY:
                self._say_error("invalid_message", "Events are text messages of JSON, this one was binary.")
                await self._pace()
            else:
                if message.type is WSMsgType.ERROR:  # too large, malformed, or no answer to a ping
                    self._shed(type(message.data).__name__)
                return

    async def _take(self, text: str) -> None:
        self._service.metrics.messages.inc()
        self._service.metrics.received_bytes.inc(len(text))
        await self._pace()
        while not self._worker.has_room and self._end is None:
            await asyncio.sleep(_POLL_S)
        self._worker.put(text)

    async def _pace(self) -> None:
        """Reading waits for a client that is too fast: what it sends then stays in its own socket."""
        wait_s = self._bucket.borrow()
        if not wait_s:
            self._paced_since = None
            return
        now = time.monotonic()
        self._paced_since = self._paced_since or now
        if now - self._paced_since > self._limits.flood_s:
            self._say_error("rate_limit_exceeded", f"More than {self._limits.messages_per_s:g} messages a second.")
            self._shed("flood")
            return
        await asyncio.sleep(wait_s)

    # -- out

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            while (text := await self._outbox.get()) is not None:
                await self._socket.send_str(text)
                self._service.metrics.sent_bytes.inc(len(text))

    def _say_error(self, code: str, message: str) -> None:
        self._service.metrics.errors.labels(code).inc()
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": None, "event_id": None}
        self._outbox.put({"type": "error", "event_id": new_id("event"), "error": error})

    def _shed(self, reason: str) -> None:
        self._end = self._end or (1008, reason)
        self._service.metrics.shed.labels(reason).inc()
        log.warning("client cut off", extra={"event": "shed", "session": self.id, "reason": reason})

    # -- the end

    async def _finish(self, reading: Any, writing: Any, watching: Any) -> None:
        """The session's thread first: it may have to end a reply, and has last words."""
        for task in (reading, watching):
            task.cancel()
        await asyncio.to_thread(self._worker.stop)
        await asyncio.sleep(0)  # what the thread has put last
        self._outbox.close()
        code, reason = self._end or (1000, "")
        with contextlib.suppress(TimeoutError, ConnectionError, RuntimeError):
            await asyncio.wait_for(self._say_goodbye(writing, code, reason), self._limits.close_s)
        writing.cancel()
        await asyncio.gather(reading, writing, watching, return_exceptions=True)
        if self._request.transport is not None:
            self._request.transport.abort()  # a client that does not read would keep it open

    async def _say_goodbye(self, writing: Any, code: int, reason: str) -> None:
        if not self._outbox.full.is_set():
            await writing
            await self._socket.close(code=code, message=reason.encode())
