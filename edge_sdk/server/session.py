"""One conversation: a client's events in, the protocol's events out. All of it happens in the session's own thread,
but for what a response tells, which its thread sends itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from edge_sdk.chat import Chat
from edge_sdk.conversation import Turn
from edge_sdk.errors import Error
from edge_sdk.prompt import Clip
from edge_sdk.server import client_events as ask
from edge_sdk.server import sound, spelling
from edge_sdk.server.errors import ProtocolError
from edge_sdk.server.hearing import Hearing
from edge_sdk.server.items import Item, Items, NewItem, check_new_id, new_id, read_item, turn_of
from edge_sdk.server.limits import Bucket
from edge_sdk.server.response import Response
from edge_sdk.server.response_request import ResponseRequest, read_response
from edge_sdk.server.service import Chats, Service
from edge_sdk.server.settings import BETA_ONLY

log = logging.getLogger("edge_sdk.server")


class Session:
    """Call `open`, then `handle` for every message and `ended` for every response that `post` was given, then `close`;
    all from one thread.
    """

    def __init__(
        self,
        session_id: str,
        service: Service,
        send: Callable[[dict[str, Any]], None],
        post: Callable[[Response], None],
        *,
        beta: bool = False,
    ) -> None:
        """
        Args:
            send: takes an event for the client, from any thread.
            post: takes a response that ended, from its thread, and has `ended` called.
            beta: the client speaks the protocol's beta.
        """
        self.id = session_id
        self._service, self._send_out, self._post, self._beta = service, send, post, beta
        self._conversation_id = new_id("conv")
        self._expires_at = int(time.time() + service.limits.session_s)
        self._settings = service.default_settings()
        self._items = Items()
        self._chats = Chats(service, self._items)
        self._hearing = Hearing(self, self._settings, service.limits.max_audio_s)
        self._response: Response | None = None
        self._responses = Bucket(service.limits.responses_per_min / 60, service.limits.responses_per_min)

    # -- for the connection

    def open(self) -> None:
        self._send_session("session.created")
        if self._beta:
            self.send({"type": "conversation.created", "conversation": {
                "id": self._conversation_id, "object": "realtime.conversation"}})  # fmt: skip

    def handle(self, text: str) -> None:
        """One message. Whatever it holds, the session goes on."""
        event_id: str | None = None
        try:
            value = ask.parse_json(text)
            event_id = ask.event_id_of(value)
            self._act(ask.parse_event(value))
        except ProtocolError as e:
            self.refuse(e, event_id)
        except Error as e:
            self.refuse(ProtocolError(str(e), "model_error"), event_id)
        except Exception:
            log.exception("a message could not be handled", extra={"event": "internal_error", "session": self.id})
            message = "The server had an error while processing your request. It is in its log."
            self.refuse(ProtocolError(message, "internal_error", kind="server_error"), event_id)

    def ended(self, response: Response) -> None:
        """A response is over: its items join the conversation, and the client is told. Once for each."""
        if response is not self._response:
            return
        self._response = None
        response.output.finish(response.status)
        if response.in_conversation:
            before = response.after
            for item in response.items:
                # What it stood behind may have been deleted meanwhile.
                self._items.insert(item, before if before is None or self._items.find(before) else None)
                before = item.id
            if response.reply:
                self._chats.forget(response.settings)
        self._count(response)
        self.send({"type": "response.done", "response": self._response_json(response)})
        self._send_rate_limits()
        self._hearing.hear()

    def close(self) -> None:
        """Let go of everything. A response that runs is ended."""
        if self._response:
            self._response.cancel("client_cancelled")
        self._hearing.close()
        self._chats.close()

    # -- events out

    def send(self, event: dict[str, Any]) -> None:
        shown = spelling.to_beta(event) if self._beta else event
        if shown is not None:
            self._send_out({"event_id": new_id("event"), **shown})

    def refuse(self, error: ProtocolError, event_id: str | None = None) -> None:
        self._service.metrics.errors.labels(error.code).inc()
        self.send({"type": "error", "error": error.to_json(event_id)})

    def _send_session(self, kind: str) -> None:
        session = spelling.session_json(
            self._settings, self.id, self._service.model_name, self._expires_at, beta=self._beta
        )
        self.send({"type": kind, "session": session})

    def _send_rate_limits(self) -> None:
        left = self._responses
        limit = int(self._service.limits.responses_per_min)
        self.send({"type": "rate_limits.updated", "rate_limits": [
            {"name": "requests", "limit": limit, "remaining": int(left.left), "reset_seconds": round(left.full_in_s, 3)}
        ]})  # fmt: skip

    # -- events in

    def _act(self, event: ask.ClientEvent) -> None:
        match event:
            case ask.AudioAppend():
                self._hearing.append(event.audio)
            case ask.AudioCommit():
                self._hearing.commit()
            case ask.AudioClear():
                self._hearing.clear()
                self.send({"type": "input_audio_buffer.cleared"})
            case ask.SessionUpdate():
                self._update(event)
            case ask.ItemCreate():
                self._create_item(event)
            case ask.ItemRetrieve():
                item = self._item(event.item_id, "item_retrieve_invalid_item_id")
                self.send({"type": "conversation.item.retrieved", "item": item.to_json()})
            case ask.ItemDelete():
                item = self._item(event.item_id, "item_delete_invalid_item_id")
                self._hearing.step_aside()
                self._items.remove(item)
                self.send({"type": "conversation.item.deleted", "item_id": item.id})
            case ask.ItemTruncate():
                self._truncate(event)
            case ask.ResponseCreate():
                self._create_response(event)
            case ask.ResponseCancel():
                self._cancel(event)

    def _update(self, event: ask.SessionUpdate) -> None:
        if not event.session.has("type") and any(event.session.has(name) for name in BETA_ONLY):
            self._beta = True
        self._settings = self._service.reader.session(self._settings, event.session)
        self._hearing.step_aside()
        self._hearing.set(self._settings)
        self._send_session("session.updated")

    def _item(self, item_id: str, code: str) -> Item:
        item = self._items.find(item_id)
        if item is None:
            owner = self._response
            if owner and any(item.id == item_id for item in owner.items):
                raise ProtocolError(
                    f"Item '{item_id}' is still being made: cancel its response first.", code, "item_id"
                )
            raise ProtocolError(f"Item with item_id '{item_id}' not found.", code, "item_id")
        return item

    def _create_item(self, event: ask.ItemCreate) -> None:
        self._items.check_room()
        new = read_item(event.item)
        check_new_id(self._items, new.item.id)
        self._check_call(new.item)
        self._hearing.step_aside()
        self._encode(new)
        self.put(new.item, event.previous_item_id)

    def _check_call(self, item: Item) -> None:
        known = any(i.kind == "call" and i.call_id == item.call_id for i in self._items)
        if item.kind == "output" and not known:
            raise ProtocolError(
                f"Tool call ID '{item.call_id}' not found in conversation.", "invalid_tool_call_id", "item.call_id"
            )

    def _encode(self, new: NewItem) -> None:
        if new.audio is None:
            return
        pcm = sound.to_model(sound.decode(new.audio, self._settings.input_format, "item.content[0].audio"),
                             self._settings.input_format)  # fmt: skip
        chat = self.chat() or self.any_chat()
        rows = chat.encode(pcm, sound.MODEL_RATE_HZ)
        new.item.clip = Clip.of(rows, len(pcm) / sound.MODEL_RATE_HZ)

    def put(self, item: Item, after: str | None = None) -> None:
        """Into the conversation, and tell the client."""
        before = self._items.insert(item, after)
        shown = item.to_json()
        self.send({"type": "conversation.item.added", "previous_item_id": before, "item": shown})
        self.send({"type": "conversation.item.done", "previous_item_id": before, "item": shown})

    def _truncate(self, event: ask.ItemTruncate) -> None:
        item = self._item(event.item_id, "item_truncate_invalid_item_id")
        if item.kind != "assistant" or not item.spoken:
            raise ProtocolError(
                "Only what the assistant spoke can be truncated.", "item_truncate_invalid_item_id", "item_id"
            )
        if event.audio_end_ms > item.audio_ms:
            raise ProtocolError(
                f"Audio content of {item.audio_ms:.0f}ms is already shorter than {event.audio_end_ms}ms.",
                "invalid_value", "audio_end_ms",
            )  # fmt: skip
        self._hearing.step_aside()
        item.cut(event.audio_end_ms, self.any_chat().step_ms)
        self.send({"type": "conversation.item.truncated", "item_id": item.id, "content_index": 0,
                   "audio_end_ms": event.audio_end_ms})  # fmt: skip

    # -- responses

    @property
    def responding(self) -> bool:
        return self._response is not None

    @property
    def last_item_id(self) -> str | None:
        return self._items.last_id

    def chat(self) -> Chat | None:
        """The Chat that hears what is said, its history up to date; None while it answers."""
        return None if self._response else self._chats.ready(self._settings)

    def any_chat(self) -> Chat:
        return self._chats.opened(self._settings.speech)

    def _create_response(self, event: ask.ResponseCreate) -> None:
        request = read_response(event.response, self._settings, self._service.reader, self._items)
        self.respond(request)

    def respond(self, request: ResponseRequest | None = None, *, endpoint_ms: float = 0.0) -> None:
        """Answer the conversation, or the request's own input.

        Raises:
            ProtocolError: another response is on its way, there were too many, or there is nothing to answer.
        """
        request = request or ResponseRequest(self._settings)
        if self._response:
            raise ProtocolError(
                f"Conversation already has an active response in progress: {self._response.id}. Wait until the "
                "response is finished before creating a new one.", "conversation_already_has_active_response",
            )  # fmt: skip
        if not self._responses.take():
            raise ProtocolError(
                f"Too many responses: {self._service.limits.responses_per_min:g} a minute are allowed.",
                "rate_limit_exceeded", kind="rate_limit_error",
            )  # fmt: skip
        self._hearing.step_aside()
        settings, turns = request.settings, self._turns(request)
        chat = self._chats.ready(settings, turns)
        if not chat.turns or chat.turns[-1].role == "assistant":
            raise ProtocolError("There is nothing to answer: add an item first.", "nothing_to_answer")
        response = Response(
            settings, emit=self.send, slots=self._service.slots, in_conversation=request.in_conversation,
            after=self._items.last_id, metadata=request.metadata, endpoint_ms=endpoint_ms,
        )  # fmt: skip
        self._response = response
        self.send({"type": "response.created", "response": self._response_json(response, "in_progress")})
        response.start(chat, self._service.generation_for(settings), self._post)

    def _turns(self, request: ResponseRequest) -> list[Turn] | None:
        if request.input is None:
            return None
        turns: list[Turn] = []
        for part in request.input:
            if isinstance(part, NewItem):
                self._encode(part)
            turns.append(turn_of([part.item if isinstance(part, NewItem) else part]))
        return turns

    def cancel(self, reason: str) -> None:
        """End the response, if there is one, within a step."""
        if response := self._response:
            response.cancel(reason)
            self.ended(response)

    def _cancel(self, event: ask.ResponseCancel) -> None:
        found = self._response
        if found is None or event.response_id not in (None, found.id):
            raise ProtocolError("Cancellation failed: no active response found", "response_cancel_not_active")
        self.cancel("client_cancelled")

    def _response_json(self, response: Response, status: str = "") -> dict[str, Any]:
        made: dict[str, Any] = {
            "id": response.id, "object": "realtime.response", "status": status or response.status,
            "status_details": None if status else response.details(),
            "output": [item.to_json() for item in response.items] if not status else [],
            "conversation_id": self._conversation_id if response.in_conversation else None,
            "metadata": response.metadata, "usage": None if status else response.usage(),
        }  # fmt: skip
        made |= spelling.response_settings_json(response.settings, beta=self._beta)
        return made if status else {**made, "edge_sdk": {"timings": response.timings()}}

    def _count(self, response: Response) -> None:
        metrics, status = self._service.metrics, response.status
        metrics.responses.labels(status).inc()
        metrics.audio_out.inc(response.output.audio_s)
        metrics.queue_s.observe(response.queue_ms / 1000)
        if response.first_audio_ms is not None:
            metrics.first_audio_s.observe(response.first_audio_ms / 1000)
        words = {"words": "".join(i.said for i in response.items)} if self._service.log_words else {}
        timings = {k: round(v, 1) for k, v in response.timings().items() if v is not None}
        log.info("response", extra={"event": "response", "session": self.id, "response": response.id,
                                    "status": status, **timings, **words})  # fmt: skip

    @property
    def service(self) -> Service:
        return self._service

    @property
    def transcription_wanted(self) -> bool:
        return self._settings.transcription is not None
