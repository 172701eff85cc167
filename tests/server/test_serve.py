"""`edge-sdk serve` as its users run it: another process, its log, its end."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import Served, run, serve

TOKEN = "a-token-of-twenty-four-c"


async def turn(url: str, words: str) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as peer:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
        await peer.send_json({"type": "conversation.item.create", "item": item})
        await peer.send_json({"type": "response.create"})
        while (await peer.receive_json())["type"] != "response.done":
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_turn_the_metrics_the_log_and_the_end(number: signal.Signals) -> None:
    async def check(server: Served) -> str:
        place = server.place
        await turn(place["realtime"], "a secret word")
        async with (
            aiohttp.ClientSession() as session,
            session.get(place["page"] + "metrics") as metrics,
            session.ws_connect(place["realtime"]) as peer,
        ):
            families = {f.name: f for f in text_string_to_metric_families(await metrics.text())}
            samples = {s.name: s.value for f in families.values() for s in f.samples}
            assert samples["edge_sdk_sessions_opened_total"] == 1
            assert samples["edge_sdk_responses_total"] == 1
            assert samples["edge_sdk_queue_seconds_count"] == 1
            assert (await peer.receive_json())["type"] == "session.created"
            ended = asyncio.ensure_future(asyncio.to_thread(server.end, number))
            assert (await peer.receive()).type is aiohttp.WSMsgType.CLOSE
            assert peer.close_code == 1001
            return await ended

    with serve() as server:
        log = run(check(server))
        lines = [json.loads(line) for line in log.splitlines()]
        assert [line["event"] for line in lines][:3] == ["session_opened", "response", "session_closed"]
        assert all({"time", "level", "message"} <= set(line) for line in lines)
        assert "secret" not in log
        assert "words" not in log


def test_words_stand_in_the_log_if_asked_for() -> None:
    with serve("--log-words") as server:
        run(turn(server.place["realtime"], "Hi"))
        log = server.end(signal.SIGTERM)
        response = next(line for line in map(json.loads, log.splitlines()) if line["event"] == "response")
        assert isinstance(response["words"], str)


def test_the_token_comes_from_the_environment() -> None:
    async def check(place: dict[str, Any]) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await turn(place["realtime"], "Hi")
        await turn(f"{place['realtime']}?token={TOKEN}", "Hi")

    with serve(EDGE_SDK_TOKEN=TOKEN) as server:
        run(check(server.place))
        assert TOKEN not in server.end(signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--token", "x"], "at least 16"),
        (["--cert", "nowhere.pem"], "cannot be used"),
        (["--slots", "0"], "slots"),
        (["--port", "65536"], "from 0 to 65535"),
        (["nowhere.bundle"], "nowhere.bundle"),
        (["--host", "203.0.113.7", "--open-to-all"], "cannot listen"),
    ],
)
def test_what_cannot_be_served(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_sdk.cli", "serve", "--port", "0", *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
