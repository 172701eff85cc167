"""The conversation as the protocol has it: items, each with an id; and how they become the turns of a Chat.

One turn of the model may be several items (what it said, and each function it called); they are joined again here, in
the order in which they were made, so that the next prompt is the one the Chat itself would render.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_sdk.conversation import Turn
from edge_sdk.events import ToolCall
from edge_sdk.prompt import Clip
from edge_sdk.server.errors import ProtocolError
from edge_sdk.server.fields import MAX_NAME, Fields, unsupported
from edge_sdk.tools import CLOSE, OPEN, parse_arguments

MAX_ITEMS = 1024
ROOT = "root"


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass(frozen=True)
class Part:
    """What one decode step completed. `order` counts through a response: text and calls in one row."""

    order: int
    step: int
    said: str | ToolCall


@dataclass
class Item:
    """One item. `kind`: "user", "assistant", "system", "call" (a function's call), "output" (its result)."""

    id: str
    kind: str
    text: str = ""  # what was typed, or a function's result
    clip: Clip | None = None
    parts: list[Part] = field(default_factory=list)  # of "assistant" and "call"
    response_id: str = ""  # of what the model made
    spoken: bool = False
    audio_ms: float = 0.0  # of what the model spoke
    status: str = "completed"
    call_id: str = ""
    remembered: bool = True  # False once the context was too small for it

    @property
    def said(self) -> str:
        return "".join(p.said for p in self.parts if isinstance(p.said, str))

    def cut(self, end_ms: int, step_ms: float) -> None:
        """Forget what was not heard by then: text is kept up to the step that was being spoken, as `Chat.interrupt`
        does it."""
        self.parts = [p for p in self.parts if p.step <= int(end_ms // step_ms)]
        self.audio_ms = min(self.audio_ms, end_ms)

    def to_json(self) -> dict[str, Any]:
        base: dict[str, Any] = {"id": self.id, "object": "realtime.item", "status": self.status}
        if self.kind == "call":
            call = self.parts[0].said
            name, arguments = (call.name, call.arguments) if isinstance(call, ToolCall) else ("", {})
            return {
                **base, "type": "function_call", "call_id": self.call_id, "name": name,
                "arguments": json.dumps(arguments, ensure_ascii=False),
            }  # fmt: skip
        if self.kind == "output":
            return {**base, "type": "function_call_output", "call_id": self.call_id, "output": self.text}
        return {**base, "type": "message", "role": self.kind, "content": self._content()}

    def _content(self) -> list[dict[str, Any]]:
        """No sound is in it: none is kept."""
        if self.kind == "assistant":
            if self.status == "in_progress" and not self.parts:
                return []
            if self.spoken:
                return [{"type": "output_audio", "transcript": self.said}]
            return [{"type": "output_text", "text": self.said}]
        heard = [{"type": "input_audio", "transcript": None}] if self.clip else []
        typed = [{"type": "input_text", "text": self.text}] if self.text or not heard else []
        return heard + typed


class Items:
    """A conversation's items in order."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    def find(self, item_id: str) -> Item | None:
        return next((item for item in self._items if item.id == item_id), None)

    def check_room(self) -> None:
        if len(self._items) >= MAX_ITEMS:
            raise ProtocolError(
                f"The conversation has {MAX_ITEMS} items, the most there can be: delete some.", "too_many_items"
            )

    def insert(self, item: Item, after: str | None) -> str | None:
        """Behind the item of that id, "root" for the beginning, None for the end. Returns the id before it.

        Raises:
            ProtocolError: there is no such item.
        """
        at = len(self._items)
        if after == ROOT:
            at = 0
        elif after is not None:
            found = self.find(after)
            if found is None:
                raise ProtocolError(
                    f"Previous item '{after}' does not exist in the conversation.", "invalid_value", "previous_item_id"
                )
            at = self._items.index(found) + 1
        self._items.insert(at, item)
        return self._items[at - 1].id if at else None

    def remove(self, item: Item) -> None:
        self._items.remove(item)

    def turns(self) -> list[tuple[Turn, list[Item]]]:
        """The turns of a Chat, each with the items it is made of; what was forgotten is left out."""
        groups = itertools.groupby(_grouped(item for item in self._items if item.remembered), key=lambda pair: pair[0])
        return [(turn_of(items), items) for items in ([item for _, item in group] for _, group in groups)]

    def forget(self, kept: Sequence[Turn], made: Sequence[tuple[Turn, list[Item]]]) -> None:
        """Of the turns that were `made` only `kept` found room in the context."""
        alive = {id(turn) for turn in kept}
        for turn, items in made:
            if id(turn) not in alive:
                for item in items:
                    item.remembered = False


def _grouped(items: Iterable[Item]) -> Iterable[tuple[int, Item]]:
    """Number the items by the turn they belong to: a call joins what was said before it."""
    number, before = 0, None
    for item in items:
        joins = before is not None and before.kind in ("assistant", "call") and item.kind in ("assistant", "call")
        same = before is not None and item.response_id == before.response_id
        if not (joins and (item.kind == "call" or same)):
            number += 1
        yield number, item
        before = item


def turn_of(items: Sequence[Item]) -> Turn:
    first = items[0]
    if first.kind in ("assistant", "call"):
        # Parts of one response are in one row; what clients add to it stands behind.
        parts = sorted(
            ((n if item.response_id != first.response_id else 0, p.order, p) for n, item in enumerate(items)
             for p in item.parts),
            key=lambda row: row[:2],
        )  # fmt: skip
        said = tuple(p.said for _, _, p in parts)
        return Turn("assistant", text="".join(s for s in said if isinstance(s, str)), said=said)
    role = "tool" if first.kind == "output" else first.kind
    return Turn(role, text=first.text, clip=first.clip)


# -- reading


@dataclass
class NewItem:
    """An item as a client gives it; its sound is not encoded yet."""

    item: Item
    audio: str | None = None


def read_item(fields: Fields) -> NewItem:
    """A client's item.

    Raises:
        ProtocolError: it is of a kind, or holds something, that is not known here.
    """
    item_id = fields.name("id") or new_id("item")
    fields.any("object")
    fields.any("status")  # the protocol: it has no effect
    kind = fields.choice("type", ("message", "function_call", "function_call_output"), required=True)
    if kind == "function_call":
        made = NewItem(_read_call(fields, item_id))
    elif kind == "function_call_output":
        call_id = fields.name("call_id", required=True) or ""
        made = NewItem(Item(item_id, "output", text=fields.text("output", required=True) or "", call_id=call_id))
    else:
        made = _read_message(fields, item_id)
    fields.end()
    return made


def _read_call(fields: Fields, item_id: str) -> Item:
    name, call_id = fields.name("name", required=True) or "", fields.name("call_id") or new_id("call")
    text = fields.text("arguments", required=True) or ""
    try:
        arguments = parse_arguments(text)
    except ValueError as e:
        where = fields.path("arguments")
        raise ProtocolError(f"Invalid '{where}': expected a JSON object as a string ({e}).", param=where) from e
    inner = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    call = ToolCall(call_id, name, arguments, f"{OPEN}\n{inner}\n{CLOSE}")
    return Item(item_id, "call", parts=[Part(0, 0, call)], call_id=call_id)


_CONTENT = {
    "user": ("input_text", "input_audio"),
    "system": ("input_text",),
    "assistant": ("output_text", "text"),
}


def _read_message(fields: Fields, item_id: str) -> NewItem:
    role = fields.choice("role", tuple(_CONTENT), required=True)
    content = fields.list("content", ())
    texts: list[str] = []
    audio: str | None = None
    for n, value in enumerate(content or ()):
        part = Fields(value, f"{fields.path('content')}[{n}]")
        kind = part.text("type", required=True) or ""
        if kind not in _CONTENT[role]:
            raise unsupported(part.path("type"), kind, _CONTENT[role])
        if kind == "input_audio":
            if audio is not None or texts:
                raise ProtocolError(
                    f"Invalid '{part.where}': one sound, and text only behind it, is what the model was trained on.",
                    param=part.where,
                )
            audio = part.text("audio", required=True, most=1 << 26)
            part.any("transcript")
        else:
            texts.append(part.text("text", required=True) or "")
        part.any("id")
        part.end()
    text = "\n".join(texts)
    if not text and audio is None:
        where = fields.path("content")
        raise ProtocolError(f"Invalid '{where}': there is nothing in it.", param=where)
    if role == "assistant":
        return NewItem(Item(item_id, "assistant", parts=[Part(0, 0, text)], response_id=item_id))
    return NewItem(Item(item_id, role, text=text), audio)


def check_new_id(items: Items, item_id: str) -> None:
    if not 0 < len(item_id) <= MAX_NAME or item_id == ROOT or items.find(item_id):
        raise ProtocolError(f"Invalid 'item.id': '{item_id}' is taken already.", "item_create_duplicate_id", "item.id")
