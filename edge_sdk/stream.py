"""ReplyStream: what a listener holds of a reply."""

from __future__ import annotations

from edge_sdk.checks import check_played
from edge_sdk.events import AudioChunk, Done, Reply, TextDelta, ToolCall
from edge_sdk.running import RunningReply


class ReplyStream:
    """The events of one reply, as they are made. Leaving the loop early, or `close`, interrupts the reply."""

    def __init__(self, running: RunningReply) -> None:
        self._running = running
        self._closed = False
        self.reply: Reply | None = None  # set when the Done event was taken

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> TextDelta | AudioChunk | ToolCall | Done:
        event = None if self._closed else self._running.next()
        if event is None:
            raise StopIteration
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Done):
            self.reply = event.reply
        return event

    def interrupt(self, played_ms: float | None = None) -> None:
        """Have the reply end within one step. What was not taken yet is dropped; the next event is Done."""
        self._running.interrupt(None if played_ms is None else check_played(played_ms))

    def close(self) -> None:
        """End the reply if it still runs, and wait for it. Safe to call again."""
        self._closed = True
        self._running.interrupt()
        self._running.join()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if running := getattr(self, "_running", None):
            running.interrupt()
