"""The log: lines of JSON, and a reader who does not read."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from edge_sdk.server import logs
from tests.bundles import RANDOM
from tests.server.running import WAIT_S, run, serve


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"\n" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


@pytest.fixture
def record() -> logging.LogRecord:
    return logging.LogRecord("edge_sdk.server", logging.INFO, "", 0, "something", (), None)


def test_lines_that_nobody_reads_are_dropped_and_counted(
    record: logging.LogRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 10)
    dropped: list[int] = []
    with full_pipe() as (reader, writer):
        log = logs.LogWriter(os.fdopen(writer, "w", closefd=False), logs.JsonFormatter())
        log.dropped = lambda: dropped.append(1)
        began = time.monotonic()
        for _ in range(100):
            log.handle(record)
        assert time.monotonic() - began < WAIT_S  # it came back at all
        assert len(dropped) in (89, 90)  # one line may be on its way already
        while b"something" not in (found := os.read(reader, 1 << 16)):
            pass
        log.close()
        os.set_blocking(reader, False)
        try:
            while more := os.read(reader, 1 << 16):
                found += more
        except BlockingIOError:
            pass
    lines = [json.loads(line) for line in found.decode().split("\n") if line]
    told = [line["lines"] for line in lines if line.get("event") == "log_dropped"]
    assert sum(told) == len(dropped)
    assert len(lines) - len(told) == 100 - len(dropped)


def test_the_end_waits_for_no_reader(record: logging.LogRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CLOSE_S", 0.1)
    with full_pipe() as (reader, writer):
        log = logs.LogWriter(os.fdopen(writer, "w", closefd=False), logs.JsonFormatter())
        log.handle(record)
        log.close()
        log.close()
        assert log._thread.is_alive()
        while b"something" not in os.read(reader, 1 << 16):
            pass
        log._thread.join(WAIT_S)
        assert not log._thread.is_alive()


def test_a_reader_who_went_away_and_odd_records_end_nothing(record: logging.LogRecord) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = logs.LogWriter(os.fdopen(writer, "w"), logs.JsonFormatter())
    log.handle(record)
    odd = logging.LogRecord("edge_sdk.server", logging.INFO, "", 0, "%d", ("no number",), None)
    dropped: list[int] = []
    log.dropped = lambda: dropped.append(1)
    log.handle(odd)
    log.handle(record)
    log.close()
    assert dropped == [1]
    assert not log._thread.is_alive()


def test_a_stream_without_a_file(record: logging.LogRecord) -> None:
    stream = io.StringIO()
    log = logs.LogWriter(stream, logs.JsonFormatter())
    log.handle(record)
    log.close()
    assert json.loads(stream.getvalue())["message"] == "something"


def test_requests_that_are_none_are_no_errors_of_the_server() -> None:
    with serve() as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as peer:
            peer.sendall(b"GET /secret HTTP/1.1\r\nHost: localhost\r\nHost: secret\r\n\r\n")
            assert b" 400 " in peer.recv(64)
        (line,) = map(json.loads, server.end(signal.SIGTERM).splitlines())
        assert (line["level"], "exception" in line) == ("warning", False)
        assert "could not be read" in line["message"]
        assert "secret" not in json.dumps(line)


def test_a_server_whose_log_nobody_reads_goes_on_and_ends() -> None:
    async def check(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session:
            for _ in range(300):  # some 200 bytes of log each, behind a pipe that is full
                async with session.get(f"{url}/nowhere", headers={"Origin": "https://evil.example"}) as answer:
                    assert answer.status == 403
            async with session.ws_connect(f"{url}/v1/realtime") as peer:
                assert (await peer.receive_json(timeout=WAIT_S))["type"] == "session.created"

    with full_pipe() as (_, writer):
        command = [sys.executable, "-m", "edge_sdk.cli", "serve", str(RANDOM), "--port", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, text=True) as process:
            try:
                assert process.stdout
                run(check(json.loads(process.stdout.readline())["port"]))
                process.terminate()
                assert process.wait(WAIT_S) == 0
            finally:
                process.kill()
