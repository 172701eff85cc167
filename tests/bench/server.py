"""A server under load: clients that are there, and clients that talk in real time, each in a session of its own.

    python -m tests.bench.server [--idle 50] [--speaking 4] [--turns 5] [--slots 2] [--bundle PATH]

Prints what a turn's first sound waits for, how late events are, and the server's memory and processor time; one line
of JSON last. The server is a process of its own; client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from tests.server.running import SPEECH, Client, client, quiet, recording, run, serve

TURN = np.concatenate([recording(SPEECH / "tts_hibari_q_time_london.flac"), quiet(900)])
PIECE_MS = 40


@dataclass(frozen=True)
class Place:
    port: int


@dataclass
class Result:
    turns: int
    errors: list[str]  # error events, and responses that failed or were cancelled, with what the server said
    first_sound_p50_ms: float  # from the end of the turn as the server heard it to the first sound at the client
    first_sound_p95_ms: float
    queue_p95_ms: float
    reply_of_idle_p95_ms: float  # an event of a client that does not talk, there and back


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def thread_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def sessions(port: int) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/health") as response:
        return int((await response.json())["sessions"])


async def load(port: int, idle: int, speaking: int, turns: int) -> Result:
    """`idle` clients, half of them with a conversation; `speaking` ones that take `turns` turns each."""
    place, echoes = Place(port), []
    async with contextlib.AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(client(place)) for _ in range(idle)]
        for peer in waiting[: idle // 2]:
            await peer.say("I am here")
        talks = asyncio.gather(*(_talk(place, turns) for _ in range(speaking)))
        while not talks.done():
            for peer in waiting[: 1 + idle // 10]:
                echoes.append(await _echo(peer))
            await asyncio.sleep(0.2)
        told = [turn for one in await talks for turn in one]
    p50, p95 = np.percentile([t[0] for t in told], (50, 95))
    return Result(
        len(told), [error for t in told for error in t[2]], round(float(p50), 1), round(float(p95), 1),
        round(float(np.percentile([t[1] for t in told], 95)), 1),
        round(float(np.percentile(echoes, 95)), 1) if idle else 0.0,
    )  # fmt: skip


async def _echo(peer: Client) -> float:
    began = time.monotonic()
    await peer.set()
    return 1000 * (time.monotonic() - began)


async def _talk(place: Place, turns: int) -> list[tuple[float, float, list[str]]]:
    """Per turn: first sound and queue in ms, what went wrong."""
    told = []
    async with client(place) as peer:
        for _ in range(turns):
            sending = asyncio.ensure_future(_in_real_time(peer))
            stopped = await peer.until("input_audio_buffer.speech_stopped")
            began = time.monotonic()
            events = stopped + await peer.until("response.output_audio.delta", "response.done")
            waited = 1000 * (time.monotonic() - began)
            if events[-1].type != "response.done":
                events += await peer.until("response.done")
            response = events[-1].response
            errors = [str(e.error) for e in events if e.type == "error"]
            if response.status in ("failed", "cancelled"):
                errors.append(f"{response.status}: {response.status_details}")
            told.append((waited, response.edge_sdk["timings"]["queue_ms"], errors))
            await sending
    return told


async def _in_real_time(peer: Client) -> None:
    size, began = 24 * PIECE_MS, time.monotonic()
    for n, at in enumerate(range(0, len(TURN), size)):
        await asyncio.sleep(max(0.0, began + n * PIECE_MS / 1000 - time.monotonic()))
        await peer.hear(TURN[at : at + size], piece_ms=PIECE_MS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("idle", 50), ("speaking", 4), ("turns", 5), ("slots", 2), ("max-new-tokens", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bundle")
    args = parser.parse_args()
    options = ["--slots", str(args.slots), "--max-new-tokens", str(args.max_new_tokens), "--seed", "1"]
    with serve(*options, *([args.bundle] if args.bundle else [])) as server:
        process = server.process
        empty = resident_mb(process.pid)
        began, cpu = time.monotonic(), cpu_s(process.pid)
        result = run(load(server.port, args.idle, args.speaking, args.turns), seconds=3600)
        report: dict[str, Any] = {
            **dataclasses.asdict(result), "idle": args.idle, "speaking": args.speaking, "slots": args.slots,
            "wall_s": round(time.monotonic() - began, 1), "server_cpu_s": round(cpu_s(process.pid) - cpu, 1),
            "server_mb_before": round(empty, 1), "server_mb_after": round(resident_mb(process.pid), 1),
        }  # fmt: skip
    for name, value in report.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
