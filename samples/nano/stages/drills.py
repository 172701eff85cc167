"""Drills: the two halves of a spoken exchange alone, where little stands in the prompt and all of a step teaches.

    hear    what was said is written down, in text alone
    read    what is written is said, word for word
    copy    ids drawn at random stand twice: what comes next can only be copied. Dialogues alone teach phrases long
            before that: asked for a bank transfer, the model adds a car wash
    figures numbers and times in words where figures are given, as after a call, and the other way, as in one

A dialogue's prompt is mostly tools and turns before, which cost as much as its reply; a drill's is two lines.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from random import Random

import numpy as np

from edge_sdk.prompt import SYSTEM_SPEECH
from samples.nano.model.batch import Sequence
from samples.nano.stages.data import Corpus, Item
from samples.nano.stages.examples import Prompter, written
from samples.nano.texts import numbers
from samples.nano.texts.dialogues import Dialogue, Turn

COPIED = 4, 24  # ids, least and most
OFTEN = 100  # so many items with a word are enough
MOST_TIMES = 24  # an item's, lest a batch be made of few: it is drawn from items of similar length
HEAR = "Write down what you hear."
READ = f"{SYSTEM_SPEECH} Say what is written."
FIGURES = "Figures in words, words in figures."


def hear_items(corpus: Corpus, more: Iterable[Dialogue] = ()) -> list[Item]:
    """Every different question that has sound, shortest first; those with rare words several times (`evened`).

    `more`: dialogues for drills alone.
    """
    return _items(corpus, more, "user", HEAR, lambda text: corpus.mel(text, 0) is not None)


def read_items(corpus: Corpus, more: Iterable[Dialogue] = ()) -> list[Item]:
    """Every different reply that has codes, shortest first; those with rare words several times (`evened`).

    `more`: dialogues for drills alone.
    """
    sounds = corpus.sounds
    return _items(corpus, more, "assistant", READ, lambda text: sounds is not None and sounds.reply(text) is not None)


def words_of(corpus: Corpus) -> list[int]:
    """The ids that users and replies are made of."""
    texts = {turn.text for item in corpus.items for turn in item.dialogue.turns if turn.role != "tool"}
    return sorted({i for text in texts for i in corpus.prompter.tokenizer.encode_plain(text)})


def copies(words: list[int], count: int, random: Random) -> list[Sequence]:
    """As many sequences of one length: ids, and the same ids again, of which all but the first count."""
    length = random.randint(*COPIED)
    drawn = [np.array([random.choice(words) for _ in range(length)], np.int64) for _ in range(count)]
    weight = np.r_[0.0, np.ones(length - 1)].astype(np.float32)
    return [Sequence(ids, ids, text_weight=weight) for ids in drawn]


def figures(prompter: Prompter, count: int, random: Random) -> list[Sequence]:
    """As many sequences in text alone."""
    made = []
    for _ in range(count):
        name, value, said = _number(random)
        figure = json.dumps({name: value})
        asked, answer = (figure, f"It's {said}.") if random.random() < 0.5 else (f"{said.capitalize()}.", figure)
        turns = Turn("user", asked), Turn("assistant", answer)
        made.append(written(prompter, Dialogue(name, "train", "drill", FIGURES, (), turns), 1, prompt_weight=0.0))
    return made


def _number(random: Random) -> tuple[str, int | float | str, str]:
    """(what it is, in figures, in words): half of them times, the others mostly below a hundred."""
    if random.random() < 0.5:
        hour, minute = random.randrange(24), random.choice((random.randrange(60), random.randrange(0, 60, 5)))
        return "time", f"{hour:02}:{minute:02}", f"{numbers.clock(hour, minute)} {numbers.part_of_day(hour)}"
    kind = random.choice(("minutes", "degrees", "value", "amount"))
    if kind == "amount":
        tenths = random.randrange(1, 300)
        whole, rest = divmod(tenths, 10)
        return kind, tenths / 10 if rest else whole, numbers.speak(tenths / 10, 1)
    low, high = {"minutes": (1, 99), "degrees": (-9, 45), "value": random.choice(((0, 99), (100, 999)))}[kind]
    value = random.randint(low, high)
    return kind, value, numbers.speak(value)


def _items(
    corpus: Corpus, more: Iterable[Dialogue], role: str, system: str, has_sound: Callable[[str], bool]
) -> list[Item]:
    said = chain((item.dialogue for item in corpus.items), more)
    texts = dict.fromkeys(turn.text for dialogue in said for turn in dialogue.turns if turn.role == role and turn.text)
    found = [
        Item(Dialogue(text, "train", "drill", system, (), (Turn("user", text), Turn("assistant", text))), 1)
        for text in texts
        if has_sound(text)
    ]
    return sorted(evened(found), key=lambda item: item.size)


def evened(items: Iterable[Item]) -> list[Item]:
    """Each item so often that its rarest word is met about as often as one that `OFTEN` items have.

    Values make most sentences different: of 14,902 replies two have a "toaster", one a "city" and 2,084 a "twenty". A
    model that had read each as often said "timer" for "toaster".
    """
    found = [(item, set(re.findall(r"[\w']+", item.turn.text.lower()))) for item in items]
    count = Counter(word for _, words in found for word in words)
    out = []
    for item, words in found:
        rarest = min((count[word] for word in words), default=OFTEN)
        out += [item] * min(MOST_TIMES, max(1, round(OFTEN / rarest)))
    return out
