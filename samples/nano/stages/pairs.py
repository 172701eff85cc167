"""Pairs for DPO out of the grammar: a turn's own reply is chosen, one to another request of the same kind rejected.

The report's tasks that a grammar can make, each with its share of the pairs:

    noise          people, rooms and noises of the rendering; rejected is the reply to other values, as if misheard
    instructions   the system prompt asks for something; rejected is a reply to the same request without that prompt
    calls          a tool is to be called; rejected is another call, or a reply that calls nothing

What is rejected is wrong by the grammar's checker (or disobeys the prompt): another wording of the right answer is not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random

from edge_sdk.errors import Error
from samples.nano.model import batch as batches
from samples.nano.model.batch import Batch
from samples.nano.stages.data import MOST_TAKES, Corpus, Item
from samples.nano.texts import checker

KINDS = ("noise", "instructions", "calls")
TRIES = 30  # replies looked at for one that is wrong


def kind(item: Item) -> str:
    if item.turn.tool_calls:
        return "calls"
    return "instructions" if item.dialogue.system is not None else "noise"


def act(item: Item) -> str:
    """What the turn is about: the user's last request and the reply, by the grammar's names."""
    return f"{checker.task_of(item.dialogue, item.number)}/{item.turn.act}/{bool(item.turn.tool_calls)}"


def wrong(item: Item, other: Item) -> bool:
    """The other's reply would be wrong here."""
    if kind(item) == "instructions" and other.dialogue.system is None and other.turn.text != item.turn.text:
        return True
    return not checker.score(item.dialogue, item.number, other.turn.text, other.turn.tool_calls).success


class Pairs:
    """Items by kind and by what they are about."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.by_kind: dict[str, list[Item]] = defaultdict(list)
        self.by_act: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            self.by_kind[kind(item)].append(item)
            self.by_act[act(item)].append(item)

    def rejected(self, item: Item, random: Random) -> Item | None:
        """A reply that would be wrong here, the nearest kind of wrong first; None if there is none."""
        for pool in (self.by_act[act(item)], self.by_kind[kind(item)], self.by_kind["noise"]):
            for other in random.sample(pool, min(TRIES, len(pool))):
                if wrong(item, other):
                    return other
        return None

    def draw(self, shares: Mapping[str, float], random: Random) -> tuple[Item, Item]:
        """(chosen, rejected): whose reply is right, whose is wrong."""
        present = [k for k in KINDS if self.by_kind[k] and shares.get(k, 0.0) > 0]
        if not present:
            raise Error(f"none of the texts is of a kind that was asked for: {dict(shares)}")
        for _ in range(TRIES):
            chosen = random.choice(self.by_kind[random.choices(present, [shares[k] for k in present])[0]])
            other = self.rejected(chosen, random)
            if other is not None:
                return chosen, other
        raise Error("the replies are too much alike: none is wrong in place of another; write more texts")


def preference_batches(corpus: Corpus, pairs: int, seed: int, shares: Mapping[str, float]) -> Callable[[int], Batch]:
    """Batches of `pairs` pairs by step: chosen, rejected, chosen, ..."""
    found = Pairs(corpus.items)

    def at(step: int) -> Batch:
        random = Random(f"{seed}/pairs/{step}")
        made = []
        for _ in range(pairs):
            chosen, rejected = found.draw(shares, random)
            take = random.randrange(MOST_TAKES)
            made += [corpus.spoken(chosen, take=take), corpus.spoken(chosen, rejected, take=take)]
        return batches.collate(made, corpus.prompter.model)

    return at
