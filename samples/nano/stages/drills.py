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
from collections.abc import Callable
from random import Random

import numpy as np

from edge_sdk.prompt import SYSTEM_SPEECH
from samples.nano.model.batch import Sequence
from samples.nano.stages.data import Corpus, Item
from samples.nano.stages.examples import Prompter, written
from samples.nano.texts import numbers
from samples.nano.texts.dialogues import Dialogue, Turn

COPIED = 4, 24  # ids, least and most
HEAR = "Write down what you hear."
READ = f"{SYSTEM_SPEECH} Say what is written."
FIGURES = "Figures in words, words in figures."


def hear_items(corpus: Corpus) -> list[Item]:
    """One for each different question that has sound, shortest first."""
    return _items(corpus, "user", HEAR, lambda text: corpus.mel(text, 0) is not None)


def read_items(corpus: Corpus) -> list[Item]:
    """One for each different reply that has codes, shortest first."""
    sounds = corpus.sounds
    return _items(corpus, "assistant", READ, lambda text: sounds is not None and sounds.reply(text) is not None)


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


def _items(corpus: Corpus, role: str, system: str, has_sound: Callable[[str], bool]) -> list[Item]:
    texts = dict.fromkeys(
        turn.text for item in corpus.items for turn in item.dialogue.turns if turn.role == role and turn.text
    )
    found = [
        Item(Dialogue(text, "train", "drill", system, (), (Turn("user", text), Turn("assistant", text))), 1)
        for text in texts
        if has_sound(text)
    ]
    return sorted(found, key=lambda item: item.size)
