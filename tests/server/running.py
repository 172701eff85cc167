"""A server in this process, in a thread of its own, and the official client as its peer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import openai
import soundfile
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from edge_sdk.audio import StreamResampler
from edge_sdk.bundle import Bundle
from edge_sdk.generation import GenerationConfig
from edge_sdk.server.access import Access
from edge_sdk.server.app import Server
from edge_sdk.server.limits import Limits
from edge_sdk.server.service import Service
from tests.bundles import RANDOM

WAIT_S = 30.0
SPEECH = Path(__file__).parents[1] / "audio" / "speech"


class Place(Protocol):
    """Where a server listens."""

    @property
    def port(self) -> int: ...


@dataclass
class Running:
    server: Server
    loop: asyncio.AbstractEventLoop

    @property
    def service(self) -> Service:
        return self.server.service

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sessions(self) -> int:
        return len(self.server._connections)


def endless(bundle: Bundle, most: int) -> GenerationConfig:
    """Replies of `most` steps, the same every time."""
    assert bundle.manifest.model
    eos = tuple((i,) for i in bundle.manifest.model.text_ids.eos)
    return GenerationConfig(seed=1, max_new_tokens=most, text_greedy=False, bad_words=eos)


@contextlib.contextmanager
def serving(
    bundle: Bundle, *, limits: Limits | None = None, access: Access | None = None, steps: int = 12, **service: Any
) -> Iterator[Running]:
    made = Service(bundle, limits or Limits(), generation=endless(bundle, steps), **service)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-server")
    thread.start()

    def wait(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(WAIT_S)

    async def make() -> Server:
        server = Server(made, access)
        await server.start()
        return server

    try:
        server = wait(make())
        try:
            yield Running(server, loop)
        finally:
            wait(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass
class Served:
    """`edge-sdk serve` in a process of its own, and what it printed."""

    process: subprocess.Popen[str]
    place: dict[str, Any]
    errors: IO[str]

    @property
    def port(self) -> int:
        return int(self.place["port"])

    def end(self, number: int) -> str:
        """Ask it to end; its log."""
        self.process.send_signal(number)
        assert self.process.wait(WAIT_S) == 0
        self.errors.seek(0)
        return self.errors.read()


@contextlib.contextmanager
def serve(*arguments: str, **environment: str) -> Iterator[Served]:
    command = [
        sys.executable,
        "-m",
        "edge_sdk.cli",
        "serve",
        str(RANDOM),
        "--port",
        "0",
        "--json",
        "--max-new-tokens",
        "8",
    ]
    # The log goes to a file: a pipe that nobody reads fills up, and then the server waits.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
        ) as process,
    ):
        try:
            assert process.stdout
            yield Served(process, json.loads(process.stdout.readline()), errors)
        finally:
            process.kill()


def run(work: Coroutine[Any, Any, Any], seconds: float = 4 * WAIT_S) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, seconds)

    return asyncio.run(bounded())


@contextlib.asynccontextmanager
async def client(place: Place, *, token: str = "none", beta: bool = False) -> AsyncIterator[Client]:
    headers = {"OpenAI-Beta": "realtime=v1"} if beta else {}
    async with _api(place.port, token).realtime.connect(
        model="any", extra_headers=headers, websocket_connection_options={"open_timeout": WAIT_S}
    ) as connection:
        made = Client(connection)
        made.created = await made.next()
        yield made


@functools.cache
def _api(port: int, token: str) -> openai.AsyncOpenAI:
    """Making one reads all certificates there are, which takes longer than a session."""
    here = f"127.0.0.1:{port}/v1"
    return openai.AsyncOpenAI(
        api_key=token, base_url=f"http://{here}", websocket_base_url=f"ws://{here}", max_retries=0
    )


class Client:
    """The official connection, and what tests ask of it again and again."""

    def __init__(self, connection: AsyncRealtimeConnection) -> None:
        self.connection = connection
        self.created: Any = None

    async def next(self) -> Any:
        return await asyncio.wait_for(self.connection.recv(), WAIT_S)

    async def until(self, *kinds: str) -> list[Any]:
        """Events up to the first of one of these kinds, which is the last."""
        events = []
        while True:
            events.append(await self.next())
            if events[-1].type in kinds:
                return events

    async def one(self, kind: str) -> Any:
        return (await self.until(kind))[-1]

    async def send(self, kind: str, **fields: Any) -> None:
        await self.connection.send({"type": kind, **fields})  # type: ignore[arg-type, misc]

    async def set(self, **session: Any) -> Any:
        await self.send("session.update", session={"type": "realtime", **session})
        return (await self.until("session.updated", "error"))[-1]

    async def manual(self) -> None:
        assert (await self.set(audio={"input": {"turn_detection": None}})).type == "session.updated"

    async def say(self, text: str, **fields: Any) -> Any:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        await self.send("conversation.item.create", item=item, **fields)
        return (await self.one("conversation.item.done")).item

    async def hear(self, pcm: np.ndarray[Any, Any], piece_ms: int = 100) -> None:
        """Append int16 at 24 kHz in pieces."""
        size = 24 * piece_ms
        for at in range(0, len(pcm), size):
            data = base64.b64encode(pcm[at : at + size].astype("<i2").tobytes()).decode()
            await self.connection.input_audio_buffer.append(audio=data)

    async def answer(self, **response: Any) -> list[Any]:
        """Ask for a response; its events, response.done last."""
        await self.send("response.create", **({"response": response} if response else {}))
        return await self.until("response.done", "error")


def recording(path: Any, *, rate: int = 24000) -> np.ndarray[Any, Any]:
    pcm, own = soundfile.read(path, dtype="float32")
    resampler = StreamResampler(own, rate)
    out = np.concatenate([resampler.feed(pcm), resampler.finish()]) if own != rate else pcm
    return np.rint(out * 32767).clip(-32768, 32767).astype(np.int16)


def quiet(ms: int) -> np.ndarray[Any, Any]:
    return np.zeros(24 * ms, np.int16)
