"""Pairs for DPO out of the grammar: a turn's own reply is chosen, one to another request of the same kind rejected.

The report's tasks that a grammar can make, each with its share of the pairs:

    noise          the question has noise and a room; rejected is the reply to other values, as if it was misheard
    instructions   the system prompt asks for something; rejected is a reply to the same request without that prompt
    calls          a tool is to be called; rejected is another call, or a reply that calls nothing
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random

from edge_sdk.errors import Error
from samples.nano.model import batch as batches
from samples.nano.model.batch import Batch
from samples.nano.stages.data import Corpus, Item

KINDS = ("noise", "instructions", "calls")


def kind(item: Item) -> str:
    if item.turn.tool_calls:
        return "calls"
    return "instructions" if item.dialogue.system is not None else "noise"


def differs(a: Item, b: Item) -> bool:
    return (a.turn.text, [c.raw for c in a.turn.tool_calls]) != (b.turn.text, [c.raw for c in b.turn.tool_calls])


class Pairs:
    """Finds a rejected reply for an item."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.by_kind: dict[str, list[Item]] = defaultdict(list)
        self.by_act: dict[str, list[Item]] = defaultdict(list)
        self.items = items
        for item in items:
            self.by_kind[kind(item)].append(item)
            self.by_act[act(item)].append(item)
        if not any(self.rejections(item) for item in items[:1000]):
            raise Error("all replies are the same: there is nothing to prefer")

    def rejections(self, item: Item) -> list[Item]:
        """Replies that would be wrong here, the nearest kind of wrong there is."""
        same_act = [other for other in self.by_act[act(item)] if differs(item, other)]
        if kind(item) == "instructions":
            plain = [other for other in same_act if other.dialogue.system is None]
            return plain or same_act or [other for other in self.by_kind["noise"] if differs(item, other)]
        return same_act or [other for other in self.by_kind[kind(item)] if differs(item, other)]

    def draw(self, shares: Mapping[str, float], random: Random) -> tuple[Item, Item]:
        """(chosen, rejected): whose reply is right, whose is wrong."""
        present = [k for k in KINDS if self.by_kind[k] and shares.get(k, 0.0) > 0]
        if not present:
            raise Error(f"none of the texts is of a kind that was asked for: {dict(shares)}")
        while True:
            chosen = random.choice(self.by_kind[random.choices(present, [shares[k] for k in present])[0]])
            wrong = self.rejections(chosen)
            if wrong:
                return chosen, random.choice(wrong)


def act(item: Item) -> str:
    """What the turn is about: the user's last request, by the grammar's name for it."""
    asked = [t.act for t in item.dialogue.turns[: item.number] if t.role == "user"]
    return f"{asked[-1] if asked else ''}/{item.turn.act}/{bool(item.turn.tool_calls)}"


def preference_batches(corpus: Corpus, pairs: int, seed: int, shares: Mapping[str, float]) -> Callable[[int], Batch]:
    """Batches of `pairs` pairs by step: chosen, rejected, chosen, ..."""
    found = Pairs(corpus.items)

    def at(step: int) -> Batch:
        random = Random(f"{seed}/pairs/{step}")
        made = []
        for _ in range(pairs):
            chosen, rejected = found.draw(shares, random)
            noisy = kind(chosen) == "noise"
            made += [corpus.spoken(chosen, noisy=noisy), corpus.spoken(chosen, rejected, noisy=noisy)]
        return batches.collate(made, corpus.prompter.model)

    return at
