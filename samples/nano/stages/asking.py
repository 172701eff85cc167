"""Questions of dialogues put to an exported checkpoint through edge_sdk.Chat, and their answers judged."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import edge_sdk
from edge_sdk.conversation import Turn as HistoryTurn
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.prompt import Clip
from samples.nano.model.replies import REPLIES
from samples.nano.stages.data import Item, Sounds
from samples.nano.stages.examples import history, system_words
from samples.nano.texts import checker

INPUT_RATE_HZ = 16000
CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Answered:
    """One question's answer. `reason` is why it is wrong, "" if it is right."""

    item: Item
    reply: edge_sdk.Reply
    success: bool
    reason: str

    def record(self) -> dict[str, Any]:
        """As a line of the answers' file."""
        return {
            "dialogue": self.item.dialogue.id,
            "turn": self.item.number,
            "task": checker.task_of(self.item.dialogue, self.item.number),
            "wanted": self.item.turn.text or [c.raw for c in self.item.turn.tool_calls],
            "text": self.reply.text,
            "calls": [c.raw for c in self.reply.tool_calls],
            "finish_reason": self.reply.finish_reason,
            "success": self.success,
            "reason": self.reason,
        }


@contextmanager
def exported(checkpoint: Path, vocoder: Path | None = None) -> Iterator[Path]:
    """The checkpoint as a bundle in fp32, for as long as it is needed."""
    folder = Path(mkdtemp(prefix="nano-"))
    try:
        yield export_bundle(checkpoint, vocoder, folder / "bundle", ExportOptions())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """A model that is not done writes broken tool calls: each would be a warning."""
    log = logging.getLogger("edge_sdk.tools")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def ask(
    bundle: Path, items: Sequence[Item], *, speech: bool, sounds: Sounds | None = None, threads: int | None = None
) -> Iterator[Answered]:
    """Greedy answers to each item's conversation as it was meant to go, the last turn left to the model.

    Args:
        speech: the answer is spoken; else text alone is asked for.
        sounds: where the users' turns are sound; None: they are text.
        threads: of each engine; None: every core.
    """
    greedy = edge_sdk.GenerationConfig(**REPLIES)
    chat = edge_sdk.Chat(bundle, speech=speech, generation=greedy, context_tokens=CONTEXT_TOKENS, threads=threads)
    with chat, quiet():
        for item in items:
            chat.configure(system=system_words(item.dialogue.system, speech), tools=list(item.dialogue.tools))
            chat.edit(turns(chat, item, sounds))
            reply = chat.send()
            result = checker.score(item.dialogue, item.number, reply.text, reply.tool_calls)
            yield Answered(item, reply, result.success, result.reason)


def turns(chat: edge_sdk.Chat, item: Item, sounds: Sounds | None) -> list[HistoryTurn]:
    """The conversation up to the item, its questions encoded by the model that is asked."""
    out = []
    for turn in item.dialogue.turns[: item.number]:
        pcm = sounds.question(turn.text, 0) if sounds is not None and turn.role == "user" else None
        clip = None if pcm is None else Clip.of(chat.encode(pcm, INPUT_RATE_HZ), len(pcm) / INPUT_RATE_HZ)
        out.append(history(turn, clip))
    return out
