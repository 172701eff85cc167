"""The server: its routes, its door, its beginning and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from edge_sdk import __version__
from edge_sdk.checks import check_whole
from edge_sdk.errors import Error
from edge_sdk.server.access import PROTOCOL, Access
from edge_sdk.server.connection import Connection
from edge_sdk.server.page import headers_for, read_page
from edge_sdk.server.service import Service

if TYPE_CHECKING:
    import ssl

    from aiohttp import web

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("edge_sdk.server")

_SWEEP_S = 0.25
_OPEN_PATHS = ("/health",)  # no token asked: whoever restarts the server looks there
_PAGE_FILES = "/page/"  # nor here: nothing secret is in them
_BETA_HEADER, _BETA_PROTOCOL = "realtime=v1", "openai-beta.realtime-v1"


class Server:
    """Sessions on one Service. `start`, then `stop`; both in the same event loop."""

    def __init__(self, service: Service, access: Access | None = None) -> None:
        try:
            from aiohttp import web
        except ImportError as e:
            raise Error("the server needs the package aiohttp: pip install 'edge_sdk[server]'") from e
        self.service, self.access = service, access or Access()
        self.port = 0
        self._web = web
        self._page = read_page()
        self._connections: set[Connection] = set()
        self._greeted: set[int] = set()  # sockets on which a whole request came
        self._opening = 0
        self._began = time.monotonic()
        self._stopping = False

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(middlewares=[guard], client_max_size=1024)
        app.router.add_get("/", self._index)
        app.router.add_get(_PAGE_FILES + "{name}", self._file)
        app.router.add_get("/voices", self._voices)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/realtime", self._realtime)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=5, lingering_time=0)

    async def start(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Listen. `port` 0 takes a free one, which is then in `port`.

        Raises:
            Error: the address cannot be had.
        """
        check_whole("port", port, 0, 1 << 16, "an integer from 0 to 65535")
        await self._runner.setup()
        factory = self._runner.server
        if factory is None:
            raise Error("the server could not be set up")  # setup has raised before this can happen
        try:
            self._server = await asyncio.get_running_loop().create_server(
                factory, host, port, ssl=tls, ssl_handshake_timeout=self.service.limits.handshake_s if tls else None
            )
        except OSError as e:
            await self._runner.cleanup()
            raise Error(f"cannot listen on {host} port {port}: {e.strerror or e}") from e
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweeping = asyncio.ensure_future(self._sweep())

    async def stop(self) -> None:
        """Nobody new; those who are here are told, and their sessions ended."""
        self._stopping = True
        self._server.close()
        self._sweeping.cancel()
        await asyncio.gather(*(c.end(1001, "server_stopping") for c in self._connections), return_exceptions=True)
        patience_s = self.service.limits.close_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone(), 5 * patience_s)
        await self._runner.cleanup()

    async def _all_gone(self) -> None:
        while self._connections:
            await asyncio.sleep(0.01)

    # -- the door

    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._greeted.add(id(request.protocol))
        refused = self._refusal(request)
        if refused is None:
            try:
                response = await handler(request)
            except self._web.HTTPException as e:  # no such path, or method
                response = self._problem(e.status, e.reason, "not_found")
        else:
            status, message, reason = refused
            self.service.metrics.refused.labels(reason).inc()
            log.warning("refused", extra={"event": "refused", "reason": reason, "path": request.path[:64]})
            response = self._problem(status, message, reason)
        if not response.prepared:
            response.headers.update(headers_for(request.headers.get("Host", "")))
            response.force_close()  # a socket that is kept would have to be watched
        return response

    def _refusal(self, request: web.Request) -> tuple[int, str, str] | None:
        """Status, message, reason."""
        host = request.headers.get("Host", "")  # not request.host: without the header that asks the DNS, and waits
        if not self.access.knows_host(host):
            return 421, "This server is not called so. See --allow-host.", "unknown_host"
        origins = request.headers.getall("Origin", [None])
        if not all(self.access.knows_origin(origin, host, request.scheme) for origin in origins):
            return 403, "Pages of other servers may not come here. See --allow-origin.", "foreign_origin"
        asks = request.path not in _OPEN_PATHS and not request.path.startswith(_PAGE_FILES)
        if asks and not self.access.has_token(request.headers, request.query):
            return 401, "A token is needed, and it was missing or wrong.", "invalid_api_key"
        return None

    def _problem(self, status: int, message: str, code: str) -> web.Response:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return self._web.json_response(
            {"error": {"type": kind, "code": code, "message": message, "param": None}}, status=status
        )

    async def _sweep(self) -> None:
        """Close sockets that never said what they want, and the newest silent ones when there are too many."""
        since: dict[int, float] = {}
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            sockets = {id(c): c for c in self._runner.server.connections} if self._runner.server else {}
            self._greeted &= sockets.keys()
            since = {key: since.get(key, now) for key in sockets if key not in self._greeted}
            surplus = len(sockets) - self.service.limits.max_connections
            silent = sorted(since, key=since.__getitem__, reverse=True)
            for n, key in enumerate(silent):
                transport = sockets[key].transport
                if transport and (n < surplus or now - since[key] > self.service.limits.handshake_s):
                    self.service.metrics.shed.labels("silent").inc()
                    transport.abort()

    # -- routes

    async def _index(self, request: web.Request) -> web.Response:
        return self._page_file("index.html")

    async def _file(self, request: web.Request) -> web.Response:
        return self._page_file(request.match_info["name"])

    def _page_file(self, name: str) -> web.Response:
        if name not in self._page:
            return self._problem(404, "There is no such page.", "not_found")
        kind, body = self._page[name]
        return self._web.Response(body=body, content_type=kind, charset="utf-8")

    async def _voices(self, request: web.Request) -> web.Response:
        service = self.service
        return self._web.json_response({"voices": list(service.voices), "model": service.model_name})

    async def _health(self, request: web.Request) -> web.Response:
        return self._web.json_response(
            {
                "status": "stopping" if self._stopping else "ok",
                "version": __version__,
                "model": self.service.model_name,
                "sessions": len(self._connections),
                "uptime_s": round(time.monotonic() - self._began, 1),
            }
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return self._web.Response(
            body=self.service.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        limits = self.service.limits
        if request.query.get("intent", "conversation") != "conversation" or "call_id" in request.query:
            return self._problem(400, "There are conversations only: no transcription, no calls.", "unsupported_intent")
        if self._stopping or self._opening + len(self._connections) >= limits.max_sessions:
            self.service.metrics.refused.labels("server_busy").inc()
            return self._problem(503, f"The server is busy: {limits.max_sessions} sessions are open.", "server_busy")
        socket = self._web.WebSocketResponse(
            protocols=(PROTOCOL,), heartbeat=limits.ping_s, max_msg_size=limits.max_message_bytes, compress=False,
            timeout=limits.close_s, autoclose=False,
        )  # fmt: skip
        if not socket.can_prepare(request).ok:
            return self._problem(426, "This is a websocket: connect with one.", "websocket_expected")
        self._opening += 1
        try:
            await socket.prepare(request)
            connection = Connection(self.service, socket, request, beta=_speaks_beta(request.headers))
            self._connections.add(connection)
        finally:
            self._opening -= 1
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
        return socket


def _speaks_beta(headers: Any) -> bool:
    protocols = [p.strip() for p in headers.get("Sec-WebSocket-Protocol", "").split(",")]
    return _BETA_HEADER in headers.get("OpenAI-Beta", "") or _BETA_PROTOCOL in protocols
