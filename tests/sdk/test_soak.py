"""A long conversation with accidents; `python -m tests.soak` is the hour."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_nothing_grows_stays_or_is_lost() -> None:
    """In a process of its own, whose memory is this conversation's alone. One of the allocator's arenas: with the usual
    eight a core, memory also grows with how many threads happened to allocate side by side (docs/NOTES.md)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--minutes", "5"],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing grew, nothing stayed, nothing was lost" in done.stdout
