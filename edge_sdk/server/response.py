"""One response on its way, in its own thread: waits for a place to generate, and tells what the Chat makes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from edge_sdk.chat import Chat
from edge_sdk.errors import Error
from edge_sdk.events import AudioChunk, Reply, TextDelta, ToolCall
from edge_sdk.generation import GenerationConfig
from edge_sdk.server.errors import BusyError
from edge_sdk.server.items import Item, new_id
from edge_sdk.server.limits import Slots
from edge_sdk.server.output import Emit, Output
from edge_sdk.server.settings import Settings
from edge_sdk.stream import ReplyStream

log = logging.getLogger("edge_sdk.server")


class Response:
    """Made and finished by the session's thread; in between it runs in its own.

    Attributes:
        in_conversation: its items become part of the conversation, behind the item `after`.
        heard_at: when the sound it answers was complete, as `time.perf_counter` has it; else when it was asked for.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        emit: Emit,
        slots: Slots,
        in_conversation: bool,
        after: str | None,
        metadata: dict[str, str] | None,
        endpoint_ms: float = 0.0,
    ) -> None:
        self.id = new_id("resp")
        self.settings, self.in_conversation, self.after, self.metadata = settings, in_conversation, after, metadata
        self.endpoint_ms = endpoint_ms
        self.queue_ms = 0.0
        self.first_audio_ms: float | None = None  # from when it was asked for to its first sound's event
        self.output = Output(
            emit, self.id, speech=settings.speech, form=settings.output_format, in_conversation=in_conversation,
            previous=after,
        )  # fmt: skip
        self.reply: Reply | None = None
        self.error: BaseException | None = None
        self.cancelled: str | None = None  # why: "client_cancelled" or "turn_detected"
        self._slots = slots
        self._lock = threading.Lock()
        self._stream: ReplyStream | None = None
        self._thread: threading.Thread | None = None
        self._asked_at = time.perf_counter()

    @property
    def items(self) -> list[Item]:
        return self.output.items

    def start(self, chat: Chat, config: GenerationConfig, ended: Callable[[Response], None]) -> None:
        """Answer what the chat's history ends with; `ended` is called from the response's thread at its end."""

        def run() -> None:
            try:
                self._run(chat, config)
            except BaseException as e:
                self.error = e
            ended(self)

        self._thread = threading.Thread(target=run, name="edge_sdk-response", daemon=True)
        self._thread.start()

    def cancel(self, reason: str) -> None:
        """End it within a step, and wait for that. The first reason counts."""
        with self._lock:
            self.cancelled = self.cancelled or reason
            stream = self._stream
        if stream:
            stream.interrupt()
        self._slots.wake()
        self.join()

    def join(self) -> None:
        if self._thread:
            self._thread.join()

    def _run(self, chat: Chat, config: GenerationConfig) -> None:
        with self._slots.one(lambda: self.cancelled is not None) as got:
            self.queue_ms = 1000 * (time.perf_counter() - self._asked_at)
            if not got:
                return
            with chat.stream(generation=config) as stream:
                with self._lock:
                    self._stream = stream
                if self.cancelled:
                    stream.interrupt()
                self._tell(stream)
                self.reply = stream.reply

    def _tell(self, stream: ReplyStream) -> None:
        step = 0
        for event in stream:
            if isinstance(event, TextDelta):
                step = event.step
                self.output.text(event)
            elif isinstance(event, AudioChunk):
                self.output.audio(event)
                if self.first_audio_ms is None:
                    self.first_audio_ms = 1000 * (time.perf_counter() - self._asked_at)
            elif isinstance(event, ToolCall):
                self.output.call(event, step)

    # -- how it ended

    @property
    def status(self) -> str:
        if self.cancelled:
            return "cancelled"
        if self.error is not None or self.reply is None:
            return "failed"
        return "incomplete" if self.reply.finish_reason in ("length", "context") else "completed"

    def details(self) -> dict[str, Any]:
        """The protocol's `status_details`."""
        status = self.status
        found: dict[str, Any] = {"type": status}
        if status == "cancelled":
            found["reason"] = self.cancelled
        elif status == "incomplete":
            found["reason"] = "max_output_tokens"
        elif status == "failed":
            found["error"] = _error_json(self.error)
        return found

    def usage(self) -> dict[str, Any] | None:
        """Positions and ids, as the model counts them: a text id a step, speech ids in groups."""
        if self.reply is None:
            return None
        timings = self.reply.timings
        text, speech = len(self.reply.text_ids), len(self.reply.speech_ids)
        return {
            "input_tokens": timings.prompt_tokens, "output_tokens": text + speech,
            "total_tokens": timings.prompt_tokens + text + speech,
            "input_token_details": {"cached_tokens": timings.reused_tokens},
            "output_token_details": {"text_tokens": text, "audio_tokens": speech},
        }  # fmt: skip

    def timings(self) -> dict[str, float | None]:
        """Where the time went, ms; no part of the protocol."""
        timings = self.reply.timings if self.reply else None
        return {
            "endpoint_ms": self.endpoint_ms,
            "queue_ms": self.queue_ms,
            "encode_ms": timings.encode_ms if timings else None,
            "prefill_ms": timings.prefill_ms if timings else None,
            "first_token_ms": timings.ttft_ms if timings else None,
            "first_audio_ms": self.first_audio_ms,
            "total_ms": timings.total_ms if timings else None,
            "audio_s": self.output.audio_s,
            "step_p50_ms": timings.step_p50_ms if timings else None,
        }


def _error_json(error: BaseException | None) -> dict[str, str]:
    if isinstance(error, BusyError):
        return {"type": error.kind, "code": error.code, "message": str(error)}
    if isinstance(error, Error):
        return {"type": "invalid_request_error", "code": "model_error", "message": str(error)}
    log.error("a response failed", exc_info=error, extra={"event": "response_failed"})
    return {"type": "server_error", "code": "internal_error", "message": "The server had an error. It is in its log."}
