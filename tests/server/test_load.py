"""Fifty who are there and four who talk, at once, on the tests' random bundle; and what is left when they are gone.

The server is another process: what it holds is its own.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import tolerances
from tests.bench.server import load, resident_mb, sessions, thread_count
from tests.server.running import run, serve

WARM_ROUNDS, ROUNDS = 8, 8  # of 54 sessions each; until every arena of the allocator has had its busiest moment


@pytest.mark.slow
def test_fifty_idle_and_four_speaking() -> None:
    with serve("--seed", "1") as server:
        pid = server.process.pid
        for _ in range(WARM_ROUNDS):
            run(load(server.port, 50, 4, 1), seconds=300)
        time.sleep(1)
        held, threads = [resident_mb(pid)], thread_count(pid)
        errors: list[str] = []
        for _ in range(ROUNDS):
            result = run(load(server.port, 50, 4, 1), seconds=300)
            errors += result.errors
            assert result.turns == 4
            held.append(resident_mb(pid))
        assert len(errors) <= tolerances.SERVER_ODD_TURNS, errors
        time.sleep(1)
        half = ROUNDS // 2
        print(
            f"{result}; {errors}; {threads} threads; MB after each round of 54 sessions: {[round(mb) for mb in held]}"
        )
        assert run(sessions(server.port)) == 0
        assert thread_count(pid) <= threads + 1  # the loop's pool of workers is filled up one by one
        assert min(held[half:]) - held[0] < tolerances.SERVER_GROWTH_MB
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        assert descriptors < 64
