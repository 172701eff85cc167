"""What a `response.create` asks for."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.server.errors import ProtocolError
from edge_sdk.server.fields import Fields, wrong_type
from edge_sdk.server.items import Item, Items, NewItem, read_item
from edge_sdk.server.settings import Settings, SettingsReader

_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512  # the protocol's
_MAX_INPUT = 256


@dataclass
class ResponseRequest:
    """`input`: answer this instead of the conversation; items of the conversation stand in it as they are."""

    settings: Settings
    in_conversation: bool = True
    input: list[NewItem | Item] | None = None
    metadata: dict[str, str] | None = None


def read_response(fields: Fields, settings: Settings, reader: SettingsReader, items: Items) -> ResponseRequest:
    """
    Raises:
        ProtocolError: what is wrong, and where.
    """
    in_conversation = fields.choice("conversation", ("auto", "none"), "auto") == "auto"
    metadata = _metadata(fields)
    given = fields.list("input", most=_MAX_INPUT)
    chosen = None if given is None else [_input(v, f"response.input[{n}]", items) for n, v in enumerate(given)]
    return ResponseRequest(reader.response(settings, fields), in_conversation, chosen, metadata)


def _input(value: object, where: str, items: Items) -> NewItem | Item:
    if isinstance(value, dict) and value.get("type") == "item_reference":
        fields = Fields({k: v for k, v in value.items() if k != "type"}, where)
        item_id = fields.name("id", required=True) or ""
        fields.end()
        item = items.find(item_id)
        if item is None:
            raise ProtocolError(f"Item with item_id '{item_id}' not found.", "invalid_value", f"{where}.id")
        return item
    return read_item(Fields(value, where))


def _metadata(fields: Fields) -> dict[str, str] | None:
    value = fields.any("metadata")
    if value is None:
        return None
    where = fields.path("metadata")
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise wrong_type(where, "an object of strings", value)
    if len(value) > _MAX_METADATA or any(len(k) > _MAX_KEY or len(v) > _MAX_VALUE for k, v in value.items()):
        raise ProtocolError(
            f"Invalid '{where}': at most {_MAX_METADATA} keys of {_MAX_KEY} characters with values of {_MAX_VALUE}.",
            param=where,
        )
    return dict(value)
