"""Drills: the two halves of a spoken exchange alone, where little stands in the prompt and all of a step teaches.

    hear    what was said is written down, in text alone
    read    what is written is said, word for word

A dialogue's prompt is mostly tools and turns before, which cost as much as its reply; a drill's is two lines.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_sdk.prompt import SYSTEM_SPEECH
from samples.nano.stages.data import Corpus, Item
from samples.nano.texts.dialogues import Dialogue, Turn

HEAR = "Write down what you hear."
READ = f"{SYSTEM_SPEECH} Say what is written."


def hear_items(corpus: Corpus) -> list[Item]:
    """One for each different question that has sound, shortest first."""
    return _items(corpus, "user", HEAR, lambda text: corpus.mel(text, 0) is not None)


def read_items(corpus: Corpus) -> list[Item]:
    """One for each different reply that has codes, shortest first."""
    sounds = corpus.sounds
    return _items(corpus, "assistant", READ, lambda text: sounds is not None and sounds.reply(text) is not None)


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
