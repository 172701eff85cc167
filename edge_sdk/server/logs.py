"""The server's log: a JSON object a line, without what users say."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

MOST_LINES = 4096  # that wait for somebody to read them
CLOSE_S = 1.0
_OWN = "edge_sdk.server"
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """What `extra=` gave stands beside time, level and message.

    Messages of other parts can quote what was said: of theirs only the wording is shown, unless `words`.
    """

    def __init__(self, *, words: bool = False) -> None:
        super().__init__()
        self._words = words

    def format(self, record: logging.LogRecord) -> str:
        own = record.name == _OWN
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if own or self._words else str(record.msg),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
            line["where"] = self._frames(record)
            if self._words:
                line["error"] = str(record.exc_info[1])
        return json.dumps(line, default=str)

    def _frames(self, record: logging.LogRecord) -> list[str]:
        """Places in the code, without the values that an exception's text may hold."""
        trace = record.exc_info[2] if record.exc_info else None
        found = []
        while trace:
            code = trace.tb_frame.f_code
            found.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        return found[-12:]


class LogWriter(logging.Handler):
    """Writes a line for each record, from a thread of its own: whoever reads the log, or does not, holds nobody up.

    Lines that find no room while nobody reads are dropped, counted (`dropped` is called for each), and their number is
    told in the log once it is read again.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.dropped: Callable[[], None] | None = None
        self._write = _writer(stream)
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._missed = 0
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="edge_sdk-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except Exception:  # an argument whose text cannot be made: no reason to end what was being done
            line = ""
        with self._changed:
            taken = bool(line) and not self._ending and len(self._lines) < MOST_LINES
            if taken:
                self._lines.append(line)
                self._changed.notify()
            else:
                self._missed += 1
        if not taken and self.dropped:
            self.dropped()

    def close(self) -> None:
        """Write what is left, if somebody reads it; waits for that no longer than `CLOSE_S`."""
        with self._changed:
            again, self._ending = self._ending, True
            self._changed.notify()
        if not again:
            self._thread.join(CLOSE_S)
        super().close()

    def _work(self) -> None:
        while (line := self._next()) is not None:
            with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the file is closed: go on without
                self._write(line)

    def _next(self) -> str | None:
        with self._changed:
            while not self._lines:
                if self._ending:
                    return None
                self._changed.wait()
            line = self._lines.popleft()
            missed, self._missed = self._missed, 0
        if missed:
            note = logging.LogRecord(_OWN, logging.WARNING, "", 0, "log lines were dropped: nobody read them", (), None)
            note.event, note.lines = "log_dropped", missed
            line += self.format(note) + "\n"
        return line


def _writer(stream: TextIO) -> Callable[[str], object]:
    """Past the stream's own buffer where it has a file: a thread that waits in there would hold a lock that the
    interpreter needs at its end."""
    try:
        file = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream.write

    def write(text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(file, data) :]

    return write


def _as_the_clients_fault(record: logging.LogRecord) -> bool:
    """A request that is none is no error of the server, and any client could fill the log with its traceback."""
    from aiohttp.http_exceptions import HttpProcessingError

    kind = record.exc_info[0] if record.exc_info else None
    if kind and issubclass(kind, HttpProcessingError):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args, record.exc_info = f"a request could not be read: {kind.__name__}", (), None
    return True


def set_up(stream: TextIO, *, words: bool = False, level: int = logging.INFO) -> LogWriter:
    """Have the process's log written as JSON. Close what it returns at the end."""
    handler = LogWriter(stream, JsonFormatter(words=words))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_OWN).setLevel(level)
    logging.getLogger("aiohttp.server").addFilter(_as_the_clients_fault)
    return handler
