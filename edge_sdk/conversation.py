"""The turns of a conversation: as the history shows them, as the template gets them, and which go when it is full."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_sdk.errors import ContextFullError
from edge_sdk.events import ToolCall
from edge_sdk.prompt import TOOL_RESPONSE_CLOSE, TOOL_RESPONSE_OPEN, Clip, Message, Prompt, Template
from edge_sdk.tools import CLOSE, OPEN

ROLES = ("user", "assistant", "tool")

log = logging.getLogger("edge_sdk.chat")


@dataclass(frozen=True)
class Turn:
    """One turn. An assistant's `said` keeps text and tool calls in the order they were generated."""

    role: str
    text: str = ""
    clip: Clip | None = None
    said: tuple[str | ToolCall, ...] = ()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(part for part in self.said if isinstance(part, ToolCall))

    def message(self) -> Message:
        """What the chat template gets. Nothing a user, a tool or an assistant said can name a special token; the tags
        of calls the model made, and those around a tool's result, are the frame's own and do."""
        if self.role == "tool":
            pieces = ((TOOL_RESPONSE_OPEN, True), (self.text, False), (TOOL_RESPONSE_CLOSE, True))
            return Message("user", pieces)
        if self.role == "system":  # in the middle: a client's, and no more trusted than the rest
            return Message("system", ((self.text, False),))
        if self.role == "assistant":
            return Message("assistant", tuple(p for part in self.said or (self.text,) for p in _pieces(part)))
        spoken: tuple[Any, ...] = (self.clip,) if self.clip else ()
        gap: tuple[Any, ...] = (("\n", True),) if self.clip and self.text else ()
        written: tuple[Any, ...] = ((self.text, False),) if self.text else ()
        return Message("user", spoken + gap + written)

    def record(self) -> dict[str, Any]:
        """As `Chat.history` shows it."""
        return {
            "role": self.role,
            "text": self.text,
            "audio_s": self.clip.seconds if self.clip else None,
            "tool_calls": [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in self.tool_calls],
        }


def _pieces(part: str | ToolCall) -> list[tuple[str, bool]]:
    if isinstance(part, str):
        return [(part, False)] if part else []
    inner = part.raw.removeprefix(OPEN).removesuffix(CLOSE)
    return [(OPEN, True), (inner, False), (CLOSE, True)]


class Conversation:
    """System prompt and turns, and how they become a prompt that fits."""

    def __init__(self, template: Template, system: Message, *, capacity: int, reserve: int, drop: bool) -> None:
        """
        Args:
            capacity: positions of the cache.
            reserve: positions kept free for the reply when old turns can be dropped for it.
            drop: let the oldest turns go when the context is full, instead of raising.
        """
        self._template, self._capacity, self._reserve, self._drop = template, capacity, reserve, drop
        self.system = system
        self.turns: list[Turn] = []

    def render(self, turns: Sequence[Turn] | None = None, *, generate: bool = True) -> Prompt:
        chosen = self.turns if turns is None else turns
        return self._template.render([self.system, *(t.message() for t in chosen)], generate=generate)

    def fit(self, turns: Sequence[Turn]) -> tuple[list[Turn], Prompt]:
        """The turns that fit, newest kept, and their prompt. Changes nothing.

        Raises:
            ContextFullError: the newest exchange alone is too long, or older turns may not be dropped.
        """
        borders = _exchanges(turns) if self._drop else [0]
        last = len(borders) - 1
        prompts: dict[int, Prompt] = {}

        def fits(first: int) -> bool:
            prompts[first] = self.render(turns[borders[first] :])
            return self._capacity - len(prompts[first]) >= (self._reserve if first < last else 1)

        # The more exchanges go, the shorter the prompt: so a few renderings tell how many have to.
        first = 0 if fits(0) else bisect_left(range(last + 1), True, lo=1, key=fits)
        if first <= last:
            return list(turns[borders[first] :]), prompts[first]
        raise ContextFullError(
            f"the conversation needs {len(prompts[last])} positions and at least one for the reply, the context has "
            f"{self._capacity}: "
            + ("reset() the chat, use on_full='drop', or " if not self._drop else "shorten this turn, or ")
            + "open the chat with a larger context_tokens"
        )

    def commit(self, turns: Sequence[Turn]) -> None:
        """Make these the conversation's turns; what was dropped is said in the log."""
        kept = {id(turn) for turn in turns}
        gone = sum(id(old) not in kept for old in self.turns)
        if gone:
            log.warning("context full: dropped the %d oldest turns, %d remain", gone, len(turns))
        self.turns = list(turns)


def _exchanges(turns: Sequence[Turn]) -> list[int]:
    """Where exchanges begin: an exchange is what lies from one user turn to the next."""
    return [0, *(n for n in range(1, len(turns)) if turns[n].role == "user")]
