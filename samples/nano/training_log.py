"""A training run's clock and its log file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

from edge_sdk.files import write_file

LOG = "log.jsonl"
SAVE_MINUTES = 4.0


class Clock:
    """When to stop and when to save, in time that runs."""

    def __init__(self, minutes: float | None) -> None:
        self.begin = self.last_save = self.last = time.monotonic()
        self.limit_s = math.inf if minutes is None else 60 * minutes
        self.longest_s = 0.0  # of a step but the first, which warms up

    def step_done(self) -> None:
        now = time.monotonic()
        if self.last != self.begin:
            self.longest_s = max(self.longest_s, now - self.last)
        self.last = now

    def is_over(self) -> bool:
        return time.monotonic() - self.begin + self.longest_s > self.limit_s

    def wants_save(self) -> bool:
        due = time.monotonic() - self.last_save > 60 * SAVE_MINUTES
        if due:
            self.last_save = time.monotonic()
        return due


class Log:
    """`log.jsonl`: every so many steps the means since the last line. Lines past the step taken up are dropped."""

    def __init__(self, path: Path, step: int, every: int) -> None:
        self.path, self.every = path, every
        self.step, self.begin = step, time.monotonic()
        self.rows: list[dict[str, float]] = []
        self.mean = math.nan
        if path.exists():
            write_file(path, b"".join(_lines_until(path, step)))

    def add(self, step: int, values: dict[str, float]) -> None:
        self.step = step
        self.rows.append(values)
        if step % self.every == 0:
            self.write()

    def write(self) -> None:
        if not self.rows:
            return
        columns = {key: [row[key] for row in self.rows if key in row] for row in self.rows for key in row}
        means = {key: sum(values) / len(values) for key, values in columns.items()}
        means["learning_rate"] = self.rows[-1]["learning_rate"]
        now = time.monotonic()
        line = {"step": self.step, **means, "seconds_per_step": (now - self.begin) / len(self.rows)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.rows, self.begin, self.mean = [], now, means["loss"]


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed run wrote half
