"""A trace of a conversation for Chrome's and Perfetto's viewers (https://ui.perfetto.dev), by the link's clock.

The format is the Trace Event Format's JSON array: one event a line, written as they happen. An array that was never
closed is allowed, so a trace of a program that was killed can be read.
"""

from __future__ import annotations

import json
import os
import threading
from typing import IO, Any

from edge_sdk.checks import check_path
from edge_sdk.errors import Error

LANES = ("user", "endpointing", "model", "speaker")


class Trace:
    """Spans, marks and counters in lanes. Without a path it does nothing. Any thread may write."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Raises Error if the file cannot be written."""
        self._lock = threading.Lock()
        self._file: IO[str] | None = None
        if path is None:
            return
        try:
            self._file = check_path("the place for the trace", path).open("w", encoding="utf-8")
        except OSError as e:
            raise Error(f"the trace cannot be written to '{os.fspath(path)}': {e.strerror or e}") from e
        self._file.write("[\n")
        self._write({"name": "process_name", "ph": "M", "args": {"name": "edge_sdk assistant"}})
        for n, lane in enumerate(LANES):
            self._write({"name": "thread_name", "ph": "M", "tid": n, "args": {"name": lane}})

    def span(self, lane: str, name: str, began_s: float, ended_s: float, **about: Any) -> None:
        """Something that took from one time to another."""
        self._event(lane, name, "X", began_s, dur=max(round((ended_s - began_s) * 1e6), 0), args=about)

    def mark(self, lane: str, name: str, at_s: float, **about: Any) -> None:
        """Something that happened."""
        self._event(lane, name, "i", at_s, s="t", args=about)

    def count(self, name: str, at_s: float, **values: float) -> None:
        """A curve's next value."""
        self._event(LANES[0], name, "C", at_s, args=values)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.write('{"name": "end", "ph": "M", "pid": 1, "tid": 0}\n]\n')
                self._file.close()
                self._file = None

    def _event(self, lane: str, name: str, phase: str, at_s: float, **rest: Any) -> None:
        if self._file is not None:
            self._write({"name": name, "ph": phase, "ts": round(at_s * 1e6), "tid": LANES.index(lane), **rest})

    def _write(self, event: dict[str, Any]) -> None:
        with self._lock:
            if self._file is not None:
                self._file.write(json.dumps({"pid": 1, "tid": 0, **event}) + ",\n")
