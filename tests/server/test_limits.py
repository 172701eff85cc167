"""Clients that take too much, or go away: they are paced, told or cut off, and the others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from typing import Any

import aiohttp
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import Error
from edge_sdk.server.errors import BusyError
from edge_sdk.server.limits import Bucket, Limits, Slots
from tests.server.running import SPEECH, Client, Running, client, quiet, recording, run, serving

QUESTION = recording(SPEECH / "tts_hibari_q_time_london.flac")


async def gone(running: Running, sessions: int = 0) -> None:
    """Wait until the server has let go of all but so many sessions, and of their threads."""
    for _ in range(1000):
        if running.sessions == sessions and threads("edge_sdk-") <= 2 * sessions:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{running.sessions} sessions, {[t.name for t in threading.enumerate()]}")


def threads(prefix: str) -> int:
    return sum(t.name.startswith(prefix) for t in threading.enumerate())


async def healthy(running: Running) -> None:
    async with client(running) as peer:
        await peer.say("Hi")
        assert (await peer.answer(max_output_tokens=2))[-1].response.status == "incomplete"


# -- places to generate


def test_responses_wait_for_a_place_or_are_told_that_there_is_none(bundle: Bundle) -> None:
    async def check(running: Running) -> None:
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(client(running)) for _ in range(3)]
            for peer in peers:
                await peer.say("Hi")
            await peers[0].send("response.create")
            await peers[0].one("response.output_audio_transcript.delta")
            await peers[1].send("response.create")  # waits
            await peers[1].one("response.created")
            while not running.service.slots.waiting:
                await asyncio.sleep(0.01)
            failed = (await peers[2].answer())[-1].response
            assert (failed.status, failed.status_details.error.code) == ("failed", "server_busy")
            await peers[0].send("response.cancel")
            await peers[1].one("response.output_audio_transcript.delta")  # its turn
            await peers[2].send("response.create")
            await peers[2].one("response.created")
            await peers[2].send("response.cancel")  # while it waits
            assert (await peers[2].one("response.done")).response.status == "cancelled"
            assert running.service.slots.waiting == 0
        await gone(running)
        assert running.service.slots.taken == 0

    with serving(bundle, limits=Limits(slots=1, queue=1), steps=3000) as running:
        run(check(running))


def test_who_waits_too_long_is_told() -> None:
    slots = Slots(1, 4, 0.05)
    with slots.one(lambda: False) as got:
        assert got
        with pytest.raises(BusyError, match="no place became free"), slots.one(lambda: False):
            pass
    with slots.one(lambda: False) as got:
        assert got


def test_places_are_given_in_order() -> None:
    slots, order = Slots(1, 8, 30), []

    def work(n: int) -> None:
        with slots.one(lambda: False):
            order.append(n)

    with slots.one(lambda: False):
        workers = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for n, worker in enumerate(workers):
            worker.start()
            while slots.waiting <= n:
                time.sleep(0.001)
    for worker in workers:
        worker.join()
    assert order == list(range(6))


def test_a_bucket() -> None:
    now = [0.0]
    bucket = Bucket(10, 2, lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    assert bucket.borrow() == 0.1
    now[0] = 1.0
    assert bucket.left == 2


def test_limits_are_checked() -> None:
    with pytest.raises(Error, match="slots"):
        Limits(slots=0)
    with pytest.raises(Error, match="idle_s"):
        Limits(idle_s=float("nan"))


# -- too much


def test_one_session_too_many(bundle: Bundle) -> None:
    async def check(running: Running) -> None:
        async with client(running), aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{running.url}/v1/realtime")
            assert refused.value.status == 503
        await gone(running)
        await healthy(running)

    with serving(bundle, limits=Limits(max_sessions=1)) as running:
        run(check(running))


def test_too_many_responses_a_minute(bundle: Bundle) -> None:
    async def check(running: Running) -> None:
        async with client(running) as peer:
            await peer.say("Hi")
            await peer.answer(max_output_tokens=1)
            limits = (await peer.one("rate_limits.updated")).rate_limits
            assert (limits[0].name, limits[0].limit, limits[0].remaining) == ("requests", 1, 0)
            await peer.say("Hi")
            error = (await peer.answer())[-1].error
            assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")

    with serving(bundle, limits=Limits(responses_per_min=1)) as running:
        run(check(running))


def test_a_message_that_is_too_large_ends_its_session(bundle: Bundle) -> None:
    async def check(running: Running) -> None:
        async with aiohttp.ClientSession() as session:
            peer = await session.ws_connect(f"{running.url}/v1/realtime")
            with contextlib.suppress(ConnectionError):
                await peer.send_str("x" * 200_000)
            while (await peer.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        await gone(running)
        await healthy(running)

    with serving(bundle, limits=Limits(max_message_bytes=100_000)) as running:
        run(check(running))


def test_sound_over_the_buffers_size_is_refused_and_what_is_there_stays(bundle: Bundle) -> None:
    async def check(running: Running) -> None:
        async with client(running) as peer:
            await peer.manual()
            await peer.hear(quiet(3000), piece_ms=1000)
            assert (await peer.next()).error.code == "input_audio_buffer_full"
            await peer.send("input_audio_buffer.commit")
            assert (await peer.one("input_audio_buffer.committed")).item_id

    with serving(bundle, limits=Limits(max_audio_s=2.5)) as running:
        run(check(running))


def test_a_flood_is_paced_and_then_cut_off(bundle: Bundle) -> None:
    async def flood(running: Running) -> int:
        async with aiohttp.ClientSession() as session:
            peer = await session.ws_connect(f"{running.url}/v1/realtime")

            async def read() -> None:
                async for _ in peer:
                    pass

            reading = asyncio.ensure_future(read())
            with contextlib.suppress(ConnectionError, RuntimeError):
                for _ in range(100_000):
                    if peer.closed:
                        break
                    await peer.send_str("{}")
            await reading
            return peer.close_code or 0

    async def check(running: Running) -> None:
        flooding = asyncio.ensure_future(flood(running))
        await healthy(running)
        await flooding
        await gone(running)
        assert b'edge_sdk_shed_total{reason="flood"} 1.0' in running.service.metrics.text()

    with serving(bundle, limits=Limits(messages_per_s=50, flood_s=1.0)) as running:
        run(check(running))


def test_who_does_not_read_is_cut_off(bundle: Bundle) -> None:
    async def check(running: Running) -> None:
        raw = websocket(running.port, receive_buffer=4096)
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
        text(raw, {"type": "conversation.item.create", "item": item})
        text(raw, {"type": "response.create"})
        await healthy(running)
        await gone(running)
        assert b'edge_sdk_shed_total{reason="slow_reader"} 1.0' in running.service.metrics.text()
        raw.close()

    with serving(bundle, limits=Limits(max_unsent_bytes=100_000, close_s=0.5), steps=3000) as running:
        run(check(running))


def test_silence_ends_a_session_and_so_does_time(bundle: Bundle) -> None:
    async def check(running: Running, code: str) -> None:
        async with client(running) as peer:
            assert (await peer.one("error")).error.code == code
        await gone(running)

    with serving(bundle, limits=Limits(idle_s=0.2)) as running:
        run(check(running, "session_idle"))
    with serving(bundle, limits=Limits(session_s=0.2)) as running:
        run(check(running, "session_expired"))


def test_sockets_that_say_nothing_are_closed(bundle: Bundle) -> None:
    """Half a request, byte by byte, and none at all."""

    async def check(running: Running) -> None:
        silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
        for n, one in enumerate(silent):
            one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "[: n * 2])
        await healthy(running)
        for one in silent:
            one.settimeout(10)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.to_thread(one.recv, 1) == b""
            one.close()

    with serving(bundle, limits=Limits(handshake_s=0.5)) as running:
        run(check(running))


def test_who_answers_no_ping_is_gone(bundle: Bundle) -> None:
    async def check(running: Running) -> None:
        raw = websocket(running.port)
        await asyncio.sleep(0.1)
        assert running.sessions == 1
        await gone(running)
        raw.close()

    with serving(bundle, limits=Limits(ping_s=0.3, close_s=0.3)) as running:
        run(check(running))


# -- going away


async def _connected(peer: Client) -> None:
    pass


async def _speaking(peer: Client) -> None:
    await peer.hear(QUESTION)


async def _committed(peer: Client) -> None:
    await peer.manual()
    await peer.hear(QUESTION)
    await peer.send("input_audio_buffer.commit")
    await peer.one("conversation.item.done")


async def _asked(peer: Client) -> None:
    await peer.say("Hi")
    await peer.send("response.create")


async def _answered(peer: Client) -> None:
    await _asked(peer)
    await peer.one("response.output_audio.delta")


async def _interrupting(peer: Client) -> None:
    await _answered(peer)
    await peer.hear(QUESTION[: len(QUESTION) // 2])


STATES = (_connected, _speaking, _committed, _asked, _answered, _interrupting)


@pytest.mark.parametrize("state", STATES, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("politely", [True, False], ids=["closes", "vanishes"])
def test_a_client_vanishes(bundle: Bundle, state: Any, politely: bool) -> None:
    async def check(running: Running) -> None:
        async with client(running) as peer:
            await state(peer)
            if not politely:
                peer.connection._connection.transport.abort()
        await gone(running)
        assert running.service.slots.taken == 0
        await healthy(running)

    with serving(bundle, limits=Limits(slots=1), steps=2000) as running:
        run(check(running))


@pytest.mark.parametrize("state", STATES, ids=lambda f: f.__name__.strip("_"))
def test_the_server_stops(bundle: Bundle, state: Any) -> None:
    async def check() -> None:
        with serving(bundle, steps=2000) as running:
            async with client(running) as peer:
                await state(peer)
                stopped = asyncio.run_coroutine_threadsafe(running.server.stop(), running.loop)
                with pytest.raises(Exception, match="1001"):
                    while True:
                        await peer.next()
                await asyncio.to_thread(stopped.result, 20)
            await gone(running)

    run(check())


# -- sockets without manners


def websocket(port: int, receive_buffer: int = 0) -> socket.socket:
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.connect(("127.0.0.1", port))
    raw.sendall(
        b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    return raw


def text(raw: socket.socket, event: Any) -> None:
    data = json.dumps(event).encode()
    raw.sendall(bytes([0x81, 0x80 | 126]) + len(data).to_bytes(2, "big") + bytes(4) + data)
