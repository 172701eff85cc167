"""What clients send: JSON text -> one frozen dataclass an event, checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from edge_sdk.server.errors import ProtocolError
from edge_sdk.server.fields import Fields, unsupported, wrong_type

MAX_AUDIO_MS = 1 << 40


@dataclass(frozen=True)
class ClientEvent:
    """Any event; `event_id` is the client's own name for it, which an error repeats."""

    event_id: str | None


@dataclass(frozen=True)
class SessionUpdate(ClientEvent):
    session: Fields


@dataclass(frozen=True)
class AudioAppend(ClientEvent):
    audio: str  # base64


@dataclass(frozen=True)
class AudioCommit(ClientEvent):
    pass


@dataclass(frozen=True)
class AudioClear(ClientEvent):
    pass


@dataclass(frozen=True)
class ItemCreate(ClientEvent):
    item: Fields
    previous_item_id: str | None


@dataclass(frozen=True)
class ItemRetrieve(ClientEvent):
    item_id: str


@dataclass(frozen=True)
class ItemDelete(ClientEvent):
    item_id: str


@dataclass(frozen=True)
class ItemTruncate(ClientEvent):
    item_id: str
    audio_end_ms: int


@dataclass(frozen=True)
class ResponseCreate(ClientEvent):
    response: Fields


@dataclass(frozen=True)
class ResponseCancel(ClientEvent):
    response_id: str | None


def parse_json(text: str) -> Any:
    """JSON as the standard has it, without NaN and Infinity."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        why = str(e)
        if isinstance(e, RecursionError):
            why = "it is nested too deep"
        elif "int_max_str_digits" in why:
            why = "a number has too many digits"
        raise ProtocolError(f"Could not parse the event as JSON: {why}.", "invalid_json") from e


def event_id_of(value: Any) -> str | None:
    """For the answer to an event that may be of no use otherwise."""
    found = value.get("event_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and len(found) <= 512 else None


def parse_event(value: Any) -> ClientEvent:
    """A parsed message -> its event.

    Raises:
        ProtocolError: what is wrong with it, and in which field.
    """
    if not isinstance(value, dict):
        raise wrong_type("", "an object", value)
    fields = Fields(value, "")
    kind = fields.text("type", required=True) or ""
    read = _READERS.get(kind)
    if read is None:
        raise unsupported("type", kind, tuple(_READERS))
    event = read(fields, fields.text("event_id", most=512))
    fields.end()
    return event


def _session_update(fields: Fields, event_id: str | None) -> ClientEvent:
    return SessionUpdate(event_id, _required(fields, "session"))


def _append(fields: Fields, event_id: str | None) -> ClientEvent:
    return AudioAppend(event_id, fields.text("audio", required=True, most=1 << 26) or "")


def _item_create(fields: Fields, event_id: str | None) -> ClientEvent:
    return ItemCreate(event_id, _required(fields, "item"), fields.name("previous_item_id"))


def _item_truncate(fields: Fields, event_id: str | None) -> ClientEvent:
    fields.whole("content_index", None, 0, 0, required=True)
    end_ms = fields.whole("audio_end_ms", None, 0, MAX_AUDIO_MS, required=True)
    return ItemTruncate(event_id, _item_id(fields), end_ms or 0)


def _response_create(fields: Fields, event_id: str | None) -> ClientEvent:
    return ResponseCreate(event_id, fields.object("response") or Fields({}, "response"))


def _required(fields: Fields, name: str) -> Fields:
    found = fields.object(name)
    if found is None:
        raise ProtocolError(f"Missing required parameter: '{name}'.", "missing_required_parameter", name)
    return found


def _item_id(fields: Fields) -> str:
    return fields.name("item_id", required=True) or ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_READERS: dict[str, Callable[[Fields, str | None], ClientEvent]] = {
    "session.update": _session_update,
    "input_audio_buffer.append": _append,
    "input_audio_buffer.commit": lambda fields, event_id: AudioCommit(event_id),
    "input_audio_buffer.clear": lambda fields, event_id: AudioClear(event_id),
    "conversation.item.create": _item_create,
    "conversation.item.retrieve": lambda fields, event_id: ItemRetrieve(event_id, _item_id(fields)),
    "conversation.item.delete": lambda fields, event_id: ItemDelete(event_id, _item_id(fields)),
    "conversation.item.truncate": _item_truncate,
    "response.create": _response_create,
    "response.cancel": lambda fields, event_id: ResponseCancel(event_id, fields.name("response_id")),
}
