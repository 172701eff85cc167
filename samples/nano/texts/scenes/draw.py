"""Turns from the grammar: phrasings and values of one side, "train" or "held out", and never of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from edge_sdk.errors import Error
from edge_sdk.events import ToolCall
from samples.nano.texts import grammar
from samples.nano.texts.dialogues import Turn

T = TypeVar("T")
_TRIES = 2000


class Draw:
    """Everything random about a dialogue."""

    def __init__(self, random: Random, held_out: bool) -> None:
        self.random, self.held_out = random, held_out

    def values(self, act: str, make: Callable[[Random], T]) -> T:
        """What `make` draws, drawn again until it is of our side."""
        for _ in range(_TRIES):
            value = make(self.random)
            if grammar.is_held_out(act, value) == self.held_out:
                return value
        raise Error(f"'{act}': in {_TRIES} draws no values of the {'held-out' if self.held_out else 'training'} side")

    def one_of(self, act: str, choices: Sequence[T]) -> T:
        return self.values(act, lambda random: random.choice(choices))

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def ask(self, act: str, values: object = None, **slots: str) -> Turn:
        """A user's turn. `values`: what `self.values` gave for this act, as the turn's record of it."""
        template = self.random.choice(grammar.phrasings(f"ask {act}", self.held_out))
        text = self._framed(act, grammar.choose(template, self.random).format(**slots))
        noted = "" if values is None else repr(values)
        return Turn("user", grammar.sentence(text), template=f"ask {act}: {template}", values=noted)

    def _framed(self, act: str, text: str) -> str:
        """Around a request "please ...", around a question "hey, ...?", around an answer nothing."""
        kind = "question" if text.endswith("?") else "request"
        if act in _ANSWERS or (kind == "request" and text.split()[0] not in grammar.words("imperatives")):
            return text
        return self.random.choice(grammar.lines(f"around {kind}")).format(text.removesuffix("?"))

    def say(self, act: str, facts: Sequence[str], **slots: str) -> Turn:
        """The assistant's answer. Slots that begin with a capital begin the sentence."""
        template = self.random.choice(grammar.lines(f"say {act}"))
        given = slots | {name.capitalize(): _capital(text) for name, text in slots.items()}
        text = grammar.sentence(template.format(**given))
        return Turn("assistant", text, facts=tuple(facts), template=f"say {act}: {template}")

    def call(self, *calls: ToolCall) -> Turn:
        return Turn("assistant", "", calls)

    def result(self, text: str) -> Turn:
        return Turn("tool", text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# What answers the assistant, and small talk: "could you goodbye" says nobody.
_ANSWERS = {
    "timers.length", "timers.time", "timers.change", "home.more", "home.room", "weather.city", "sums.then_plus",
    "sums.then_minus", "units.then", "lists.more", "lists.what", "timers.vague", "home.vague", "timers.alarm_vague",
    "talk.hello", "talk.how", "talk.name", "talk.thanks", "talk.bye", "talk.human", "talk.i_am", "talk.again",
    "talk.noise", "talk.me",
}  # fmt: skip
