"""The door: tokens, hosts, origins, headers; and that nothing of the disk can be had."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from websockets.exceptions import InvalidStatus

from edge_sdk.bundle import Bundle
from edge_sdk.errors import Error
from edge_sdk.server.access import Access, check_access
from edge_sdk.server.app import Server
from edge_sdk.server.service import Service
from tests.server.running import Running, client, run, serving

TOKEN = "a-token-of-twenty-four-c"


@pytest.fixture(scope="module")
def guarded(bundle: Bundle) -> Iterator[Running]:
    access = Access(TOKEN, hosts=("assistant.lan",), origins=("https://app.example",))
    with serving(bundle, access=access) as running:
        yield running


def get(running: Running, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), body


async def knock(running: Running, **options: Any) -> int:
    """The status of a websocket handshake."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(f"{running.url}/v1/realtime", **options) as socket:
                assert (await socket.receive_json())["type"] == "session.created"
                return 101
        except aiohttp.WSServerHandshakeError as e:
            return e.status


def test_a_token_by_header_protocol_or_query(guarded: Running) -> None:
    key = "openai-insecure-api-key."

    async def check() -> None:
        assert await knock(guarded) == 401
        assert await knock(guarded, headers={"Authorization": f"Bearer {TOKEN}"}) == 101
        assert await knock(guarded, headers={"Authorization": f"Bearer {TOKEN}x"}) == 401
        assert await knock(guarded, headers={"Authorization": TOKEN}) == 401
        assert await knock(guarded, protocols=("realtime", key + TOKEN)) == 101
        assert await knock(guarded, protocols=("realtime", key + TOKEN[:-1])) == 401
        assert await knock(guarded, params={"token": TOKEN}) == 101
        assert await knock(guarded, params={"token": "\u00fc" * 24}) == 401

    run(check())


def test_the_official_client_with_a_token(guarded: Running) -> None:
    async def check() -> None:
        async with client(guarded, token=TOKEN) as peer:
            assert peer.created.type == "session.created"
        with pytest.raises((InvalidStatus, openai.OpenAIError)):
            async with client(guarded, token="wrong"):
                pass

    run(check())


@pytest.mark.parametrize(
    ("path", "open_to_all"), [("/", False), ("/voices", False), ("/metrics", False), ("/health", True)]
)
def test_what_needs_the_token(guarded: Running, path: str, open_to_all: bool) -> None:
    assert get(guarded, path)[0] == (200 if open_to_all else 401)
    assert get(guarded, f"{path}?token={TOKEN}")[0] == 200


def test_pages_of_others_may_not_connect(guarded: Running, server: Running) -> None:
    async def check() -> None:
        assert await knock(server, origin=server.url) == 101
        for origin in ("https://evil.example", "null", f"https://127.0.0.1:{server.port}", "http://127.0.0.1:1"):
            assert await knock(server, origin=origin) == 403, origin
        given = {"params": {"token": TOKEN}}
        assert await knock(guarded, origin="https://app.example", **given) == 101
        assert await knock(guarded, origin="https://app.example.evil.example", **given) == 403

    run(check())


def test_names_that_are_not_ours(guarded: Running, server: Running) -> None:
    """DNS rebinding: the browser thinks it talks to evil.example."""
    for host in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example", "", "[", "127.0.0.1.nip.io"):
        assert get(server, "/health", Host=host)[0] in (400, 421), host
    for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80", "192.168.1.7"):
        assert get(server, "/health", Host=host)[0] == 200, host
    assert get(guarded, "/health", Host="assistant.lan")[0] == 200
    assert get(server, "/health", Host="assistant.lan")[0] == 421


def raw(running: Running, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as peer:
        peer.sendall(request)
        return peer.recv(64).split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /health HTTP/1.0\r\n\r\n", 421),
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil\r\n\r\n", 403),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
    ids=["no host", "by its address", "two hosts", "two origins", "two lengths", "star", "tls", "long"],
)
def test_requests_that_are_none(server: Running, monkeypatch: pytest.MonkeyPatch, request_: bytes, status: int) -> None:
    def ask() -> str:
        raise AssertionError("the DNS was asked")

    monkeypatch.setattr(socket, "getfqdn", lambda *_: ask())
    assert raw(server, request_).split()[1] == str(status).encode()


def test_every_answer_has_its_headers(server: Running) -> None:
    for path in ("/", "/page/app.js", "/health", "/nothing"):
        headers = get(server, path)[1]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_the_page_asks_for_nothing_from_elsewhere(server: Running) -> None:
    files = [b"/"] + [f"/page/{name}".encode() for name in server.server._page]
    assert len(files) >= 7
    for path in files:
        body = get(server, path.decode())[2]
        for word in (b"https://", b"//cdn", b"import(", b"eval(", b"innerHTML"):
            assert word not in body, (path, word)


@pytest.mark.parametrize(
    "path",
    ["/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/%2fetc%2fpasswd", "/etc/passwd",
     "/page/index.html%00", "/page/", "//etc/passwd", "/page/....//app.py", "/.env", "/v1/"],
)  # fmt: skip
def test_no_path_reaches_the_disk(server: Running, path: str) -> None:
    status, _, body = get(server, path)
    assert status == 404
    assert json.loads(body)["error"]["code"] == "not_found"


def test_the_index_is_the_page_and_only_get_is_known(server: Running) -> None:
    assert b"<title>edge_sdk" in get(server, "/")[2]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/", body=b"x" * 100_000)
    assert connection.getresponse().status == 405
    assert get(server, "/v1/realtime")[0] == 426
    assert get(server, "/v1/realtime?intent=transcription")[0] == 400


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "assistant.lan", ""])
def test_beyond_this_machine_a_token_or_a_word_is_needed(host: str) -> None:
    with pytest.raises(Error, match="can be reached from other machines"):
        check_access(host, None, open_to_all=False)
    check_access(host, TOKEN, open_to_all=False)
    check_access(host, None, open_to_all=True)


def test_loopback_needs_none_and_tokens_are_no_words() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        check_access(host, None, open_to_all=False)
    for token in ("short", "a token with spaces in it", "ü" * 30):
        with pytest.raises(Error, match="at least 16"):
            check_access("127.0.0.1", token, open_to_all=False)


def test_tls(bundle: Bundle, tmp_path: Path) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    async def check() -> None:
        server = Server(Service(bundle))
        await server.start(tls=context)
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"wss://localhost:{server.port}/v1/realtime", ssl=trusted) as socket,
            ):
                assert (await socket.receive_json())["type"] == "session.created"
        finally:
            await server.stop()
        await asyncio.sleep(0)

    run(check())
