"""Sentences that nobody would say: pieces of a grammar's, to be heard and read in drills.

A model that hears and reads the grammar's sentences alone soon knows them by heart, and takes another for one of those
(docs/NOTES.md). Of these no two are alike, and half of the pieces are found by a word, every word being as likely.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from random import Random

from samples.nano.texts.dialogues import Dialogue, Turn

PIECES = 2, 4  # of a sentence, least and most
WORDS = 1, 4  # of a piece
_TRIES = 20  # for one sentence that nothing else has
_ENDS = ".,?!;:"


def mixed(
    seed: int, count: int, questions: Sequence[str], replies: Sequence[str], without: Collection[str]
) -> Iterator[Dialogue]:
    """At most `count` exchanges, a question and a reply that have nothing to do with each other.

    Args:
        questions, replies: what they are cut from.
        without: sentences that must not come out, such as held-out ones.
    """
    random = Random(f"{seed}/mixed")
    seen = {_bare(text) for text in (*questions, *replies, *without)}
    asked, told = _Cutter(questions), _Cutter(replies)
    for number in range(count if questions and replies else 0):
        question, reply = asked.new(random, seen), told.new(random, seen)
        if question is None or reply is None:
            return  # there are no more
        turns = Turn("user", question), Turn("assistant", reply)
        yield Dialogue(f"mixed-{seed}-{number:06}", "train", "mixed", None, (), turns)


class _Cutter:
    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = [split for split in map(str.split, sentences) if split]
        self.places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, words in enumerate(self.sentences):
            for at, word in enumerate(words):
                self.places[_bare(word)].append((number, at))
        self.words = sorted(self.places)
        # As they stand inside of a sentence, so that its first word is small elsewhere and a name is not.
        self.inside = {_bare(word): word.strip(_ENDS) for words in self.sentences for word in words[1:]}

    def new(self, random: Random, seen: set[str]) -> str | None:
        """A sentence that is not in `seen`, which has it then; None if none is found."""
        for _ in range(_TRIES):
            pieces = [self.piece(random) for _ in range(random.randint(*PIECES))]
            text = " ".join(word for piece in pieces for word in piece)
            if _bare(text) not in seen:
                seen.add(_bare(text))
                return f"{text[:1].upper()}{text[1:]}."
        return None

    def piece(self, random: Random) -> list[str]:
        if random.random() < 0.5:
            number, at = random.choice(self.places[random.choice(self.words)])
        else:
            number = random.randrange(len(self.sentences))
            at = random.randrange(len(self.sentences[number]))
        words, long = self.sentences[number], random.randint(*WORDS)
        first = max(0, at - random.randrange(long))
        bare = map(_bare, words[first : max(at + 1, first + long)])
        return [self.inside.get(word, word) for word in bare]


def _bare(text: str) -> str:
    return " ".join(word.strip(_ENDS) for word in text.lower().split())
