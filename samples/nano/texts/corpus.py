"""All text that the model reads or writes, as the tokenizer and the first training take it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_sdk.errors import Error
from edge_sdk.prompt import SYSTEM_SPEECH, SYSTEM_TEXT, system_message
from samples.nano.texts.store import read_dialogues
from samples.nano.texts.tools import TOOLS

_FRAME = ("system", "user", "assistant")


def corpus(folder: Path, most: int = 20000) -> list[str]:
    """Texts of the folder that `python -m samples.nano texts` wrote, training alone; `most` dialogues of a kind."""
    stories = folder / "stories.txt"
    if not stories.is_file():
        raise Error(f"there is no '{stories}': run python -m samples.nano texts first")
    texts = [*_instructions(), *_turns(folder / "train.jsonl", most), *_turns(folder / "plain_train.jsonl", most)]
    return texts + stories.read_text(encoding="utf-8").splitlines()[:most]


def _instructions() -> Iterator[str]:
    """System prompts, with every function described."""
    yield from _FRAME
    for words in (SYSTEM_SPEECH, SYSTEM_TEXT):
        message = system_message(words, tuple(TOOLS.values()))
        yield "".join(piece[0] for piece in message.pieces if isinstance(piece, tuple))


def _turns(path: Path, most: int) -> Iterator[str]:
    for number, dialogue in enumerate(read_dialogues(path)):
        if number == most:
            return
        if dialogue.system:
            yield dialogue.system
        for turn in dialogue.turns:
            yield from (call.raw.partition("\n")[2].rpartition("\n")[0] for call in turn.tool_calls)
            if turn.text:
                yield turn.text
