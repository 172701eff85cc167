"""A reply as the protocol tells it: items that are added, grow by deltas, and are done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from edge_sdk.events import AudioChunk, TextDelta, ToolCall
from edge_sdk.server.items import Item, Part, new_id
from edge_sdk.server.sound import SoundWriter

Emit = Callable[[dict[str, Any]], None]


class Output:
    """The items of one response. Used by its thread until `finish`."""

    def __init__(
        self, emit: Emit, response_id: str, *, speech: bool, form: str, in_conversation: bool, previous: str | None
    ) -> None:
        """
        Args:
            speech: the answer is spoken, its text is a transcript.
            form: the sound's format.
            in_conversation: the items become part of it, behind the item `previous`.
        """
        self._emit, self._response_id, self._speech, self._form = emit, response_id, speech, form
        self._in_conversation, self._previous = in_conversation, previous
        self._before: dict[str, str | None] = {}  # the item before each
        self._message: Item | None = None
        self._writer: SoundWriter | None = None
        self._parts = 0
        self.items: list[Item] = []

    @property
    def audio_s(self) -> float:
        return self._writer.seconds if self._writer else 0.0

    def text(self, delta: TextDelta) -> None:
        message = self._open_message()
        message.parts.append(Part(self._next_part(), delta.step, delta.text))
        kind = "response.output_audio_transcript.delta" if self._speech else "response.output_text.delta"
        self._content(kind, message, delta=delta.text)

    def audio(self, chunk: AudioChunk) -> None:
        message = self._open_message()
        if self._writer is None:
            self._writer = SoundWriter(chunk.sample_rate, self._form)
        self._sound(message, self._writer.write(chunk.pcm))

    def call(self, call: ToolCall, step: int) -> None:
        """A call is complete when it is known: its arguments come in one piece."""
        call = dataclasses.replace(call, id=new_id("call"))
        item = Item(
            new_id("item"), "call", parts=[Part(self._next_part(), step, call)], response_id=self._response_id,
            call_id=call.id, status="in_progress",
        )  # fmt: skip
        blank = {**item.to_json(), "arguments": ""}
        self._add(item, blank)
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        about = {"call_id": call.id, "item_id": item.id}
        self._say("response.function_call_arguments.delta", item, **about, delta=arguments)
        self._say("response.function_call_arguments.done", item, **about, name=call.name, arguments=arguments)
        item.status = "completed"
        self._done(item)

    def finish(self, status: str) -> None:
        """Nothing comes any more; `status` is the response's."""
        message = self._message
        if message is None:
            return
        message.status = "completed" if status == "completed" else "incomplete"
        if self._writer:
            if status in ("completed", "incomplete"):  # made to its end, and not cut off
                self._sound(message, self._writer.finish())
            message.audio_ms = 1000 * self._writer.seconds
        if self._speech:
            self._content("response.output_audio.done", message)
            self._content("response.output_audio_transcript.done", message, transcript=message.said)
            part = {"type": "audio", "transcript": message.said}
        else:
            self._content("response.output_text.done", message, text=message.said)
            part = {"type": "text", "text": message.said}
        self._content("response.content_part.done", message, part=part)
        self._done(message)

    # -- inside

    def _open_message(self) -> Item:
        if self._message is None:
            self._message = Item(
                new_id("item"), "assistant", response_id=self._response_id, spoken=self._speech, status="in_progress"
            )
            self._add(self._message, self._message.to_json())
            part = {"type": "audio", "transcript": ""} if self._speech else {"type": "text", "text": ""}
            self._content("response.content_part.added", self._message, part=part)
        return self._message

    def _add(self, item: Item, shown: dict[str, Any]) -> None:
        self.items.append(item)
        self._say("response.output_item.added", item, item=shown)
        if self._in_conversation:
            self._emit({"type": "conversation.item.added", "previous_item_id": self._previous, "item": shown})
            self._before[item.id], self._previous = self._previous, item.id

    def _done(self, item: Item) -> None:
        self._say("response.output_item.done", item, item=item.to_json())
        if self._in_conversation:
            self._emit(
                {"type": "conversation.item.done", "previous_item_id": self._before[item.id], "item": item.to_json()}
            )

    def _sound(self, message: Item, data: str) -> None:
        if data:
            self._content("response.output_audio.delta", message, delta=data)

    def _content(self, kind: str, item: Item, **more: Any) -> None:
        self._say(kind, item, item_id=item.id, content_index=0, **more)

    def _say(self, kind: str, about: Item, /, **more: Any) -> None:
        self._emit({"type": kind, "response_id": self._response_id, "output_index": self.items.index(about), **more})

    def _next_part(self) -> int:
        self._parts += 1
        return self._parts - 1
