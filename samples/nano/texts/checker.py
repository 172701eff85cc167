"""Whether an answer did its task: the exact tool call, or the right facts and no others.

An answer in words succeeds when it calls nothing, says every fact of its turn, and names no number, thing, place or
state that neither the right answer nor the user's question has. So "Kitchen light on." passes for "The kitchen light
is on.", and "It's off in the hall." does not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from edge_sdk.errors import Error
from edge_sdk.events import ToolCall
from samples.nano.texts import grammar
from samples.nano.texts.dialogues import Dialogue, Turn
from samples.nano.texts.numbers import canonical

# Words that say which of a few: one that is wrong makes the answer wrong.
_CLOSED = ("rooms", "devices", "cities", "weekdays", "months", "conditions", "shopping", "chores", "names")
_OTHERS = ("on", "off", "yes", "no", "today", "tomorrow", "morning", "afternoon", "evening", "minus")
_TWICE_AS_LONG, _SPARE_WORDS = 2, 6  # an answer that lists everything is none


@dataclass(frozen=True)
class Result:
    """`reason` is "" for a success."""

    success: bool
    reason: str = ""


def score(dialogue: Dialogue, turn: int, answer_text: str, tool_calls: Sequence[ToolCall] = ()) -> Result:
    """Judge what a model answered in place of `dialogue.turns[turn]`, an assistant's turn.

    Raises:
        Error: there is no assistant's turn.
    """
    if not 0 <= turn < len(dialogue.turns) or dialogue.turns[turn].role != "assistant":
        raise Error(f"'{dialogue.id}' has no assistant's turn {turn}")
    wanted = dialogue.turns[turn]
    if wanted.tool_calls or tool_calls:
        return _calls(wanted.tool_calls, tool_calls)
    asked = next(t.text for t in reversed(dialogue.turns[:turn]) if t.role == "user")
    return _words(wanted, asked, answer_text)


def task_of(dialogue: Dialogue, turn: int) -> str:
    """What the user wanted in this turn, "timers.set": tables of success are by this."""
    return next(t.act for t in reversed(dialogue.turns[: turn + 1]) if t.role == "user")


def _calls(wanted: Sequence[ToolCall], made: Sequence[ToolCall]) -> Result:
    expected, found = ([_call(c) for c in calls] for calls in (wanted, made))
    return Result(True) if found == expected else Result(False, f"called {found}, expected {expected}")


def _call(call: ToolCall) -> str:
    """As JSON, so that equal calls are equal: 5.0 is 5, and what is added or multiplied stands in any order."""
    values = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in call.arguments.items()}
    if call.name == "calculate" and values.get("operation") in ("plus", "times"):
        a, b = sorted((values.get("a"), values.get("b")), key=str)
        values |= {"a": a, "b": b}
    return json.dumps([call.name, values], sort_keys=True)


def _words(wanted: Turn, asked: str, answer: str) -> Result:
    said, right = canonical(answer), canonical(wanted.text)
    for fact in wanted.facts:
        if not any(_holds(said, canonical(way)) for way in fact.split("|")):
            return Result(False, f"does not say {fact!r}")
    if len(said) > _TWICE_AS_LONG * len(right) + _SPARE_WORDS:
        return Result(False, f"{len(said)} words for an answer of {len(right)}")
    allowed = _named(right) | _named(canonical(asked)) if wanted.facts else _named(said)
    # The opposite of what is right is wrong, though the question may name it: "is it on or off?"
    wrong = (_named(said) - allowed) | (_opposites(right) & _named(said))
    return Result(False, f"says {sorted(wrong)}") if wrong else Result(True)


def _holds(said: Sequence[str], fact: Sequence[str]) -> bool:
    n = len(fact)
    return any(list(said[at : at + n]) == list(fact) for at in range(len(said) - n + 1))


def _opposites(right: Sequence[str]) -> set[str]:
    pairs = (("on", "off"), ("off", "on"), ("yes", "no"), ("no", "yes"))
    return {other for word, other in pairs if word in right and other not in right}


def _named(said: Sequence[str]) -> set[str]:
    """Numbers and the words of closed sets; the longest that fit: "dining room" is no "room"."""
    found, at = set(), 0
    while at < len(said):
        length = next((n for n in range(_longest(), 0, -1) if tuple(said[at : at + n]) in _names()), 0)
        if length:
            found.add(" ".join(said[at : at + length]))
        elif said[at].lstrip("-")[:1].isdigit():
            found.add(said[at])
        at += length or 1
    return found


@lru_cache
def _names() -> frozenset[tuple[str, ...]]:
    closed = [word for section in _CLOSED for word in grammar.words(section)]
    return frozenset(tuple(canonical(word)) for word in (*closed, *_OTHERS))


@lru_cache
def _longest() -> int:
    return max(map(len, _names()))
