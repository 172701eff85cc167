"""What a client is told when something is wrong: the protocol's `error` event."""

from __future__ import annotations

from typing import Any


class ProtocolError(Exception):
    """Becomes an `error` event; the session goes on.

    Attributes:
        code: the protocol's word for it, for programs.
        param: path of the field that is wrong, as in "session.audio.input.format.type".
        kind: "invalid_request_error", "rate_limit_error" or "server_error".
    """

    def __init__(
        self, message: str, code: str = "invalid_value", param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.code, self.param, self.kind = code, param, kind

    def to_json(self, event_id: str | None = None) -> dict[str, Any]:
        """The event's `error`; `event_id` is the client's event it answers."""
        return {
            "type": self.kind, "code": self.code, "message": str(self), "param": self.param, "event_id": event_id
        }  # fmt: skip


class BusyError(ProtocolError):
    """Every place to generate is taken, and the queue for them is full or too slow."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "server_busy", kind="server_error")
