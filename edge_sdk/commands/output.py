"""How commands print: JSON for programs, aligned tables and a progress line for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    # An escape of the stream's own would not be JSON.
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not unicode, indent=1))


def print_table(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> None:
    """Columns as wide as needed; numbers to the right."""
    lines = [[_cell(c) for c in row] for row in ([header] if header else []) + list(rows)]
    if not lines:
        return
    widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(max(map(len, lines)))]
    number = [
        all(isinstance(row[n], (int, float)) for row in rows if n < len(row) and row[n] not in (None, ""))
        for n in range(len(widths))
    ]
    for line in lines:
        cells = [c.rjust(w) if number[n] else c.ljust(w) for n, (c, w) in enumerate(zip(line, widths, strict=False))]
        print("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
    return str(value)


def progress() -> Callable[[str, int, int], None]:
    """A line that is overwritten, where standard error is a terminal; else nothing."""
    if not sys.stderr.isatty():
        return lambda what, done, total: None

    def show(what: str, done: int, total: int) -> None:
        filled = 20 * done // max(total, 1)
        end = "\n" if done >= total else ""
        print(f"\r[{'#' * filled}{'.' * (20 - filled)}] {what:<30}", end=end, file=sys.stderr, flush=True)

    return show


def human_bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
