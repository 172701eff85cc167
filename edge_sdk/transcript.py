"""What one reply said, part by part with the step that completed it: so the history can be cut to what was heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edge_sdk.conversation import Turn
from edge_sdk.events import ToolCall


@dataclass
class _Round:
    """From one prefill to the end of that generation; a reply with tools has several."""

    first: int  # number of its first part, counted through the reply
    parts: list[tuple[int, str | ToolCall]] = field(default_factory=list)
    turn: Turn | None = None  # what it is in the history
    answered: bool = False  # its calls were run


class Transcript:
    """Parts in the order in which the listener gets them."""

    def __init__(self, step_ms: float) -> None:
        self._step_ms = step_ms
        self._rounds: list[_Round] = []

    def begin_round(self) -> None:
        self._rounds.append(_Round(sum(len(r.parts) for r in self._rounds)))

    def add(self, step: int, part: str | ToolCall) -> None:
        self._rounds[-1].parts.append((step, part))

    @property
    def calls(self) -> list[ToolCall]:
        """Of the current round."""
        return [part for _, part in self._rounds[-1].parts if isinstance(part, ToolCall)]

    def end_round(self) -> Turn:
        """The assistant's turn for the history."""
        current = self._rounds[-1]
        current.turn = _with_said(Turn("assistant"), tuple(part for _, part in current.parts))
        return current.turn

    def mark_answered(self) -> None:
        self._rounds[-1].answered = True

    def cut(self, turns: Sequence[Turn], taken: int, played_ms: float | None) -> list[Turn]:
        """`turns` with what was not heard taken out of this reply's. May be called again, with other bounds.

        Text counts as heard up to what was played, or with None if it is among the first `taken` parts. A call stays
        if the listener took it or it was run: that happened, whatever was heard.
        """
        out: list[Turn] = []
        for turn in turns:
            said = next((r for r in self._rounds if r.turn is turn), None)
            if said is not None:
                turn = said.turn = _with_said(turn, self._heard(said, taken, played_ms))
                if not turn.said and out and out[-1].role == "tool":
                    continue  # nothing was said to a tool's result; after a question the empty turn keeps its place
            out.append(turn)
        return out

    def _heard(self, said: _Round, taken: int, played_ms: float | None) -> tuple[str | ToolCall, ...]:
        last = None if played_ms is None else int(played_ms // self._step_ms)
        kept = []
        for number, (step, part) in enumerate(said.parts, said.first):
            heard = number < taken if last is None else step <= last
            if heard or (isinstance(part, ToolCall) and (said.answered or number < taken)):
                kept.append(part)
        return tuple(kept)


def _with_said(turn: Turn, said: tuple[str | ToolCall, ...]) -> Turn:
    return replace(turn, text="".join(part for part in said if isinstance(part, str)), said=said)
