"""A turn of a dialogue -> one training sequence, its prompt written by the SDK's own prompt code."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.conversation import Conversation
from edge_sdk.conversation import Turn as HistoryTurn
from edge_sdk.errors import Error
from edge_sdk.events import ToolCall
from edge_sdk.mel import log_mel
from edge_sdk.prompt import SYSTEM_SPEECH, SYSTEM_TEXT, Clip, Template, system_message
from edge_sdk.tokenizer import Tokenizer
from edge_sdk.tools import CLOSE, OPEN
from samples.nano.model.batch import Array, Sequence
from samples.nano.stages.layout import Layout, first_steps, reply_grid
from samples.nano.texts.dialogues import Dialogue, Turn

_LEFT_OUT = 0.05  # of the rows of a clip that is hurried


@dataclass(frozen=True)
class Heard:
    """What a user said: float32 mel [n_mels, frames], normalised, and its placeholders.

    `encoded`: what a frozen encoder makes of it, as a `Sequence` has it, and `window`, of which of its windows each row
    is; the mel is then empty.
    """

    mel: Array
    placeholders: int
    encoded: Array | None = None
    window: Array | None = None

    @classmethod
    def of(cls, pcm: Array, model: ModelConfig) -> Heard:
        """pcm float32 [n] at the mel's rate (16 kHz)."""
        return cls(log_mel(pcm, model.mel), model.placeholder_count(len(pcm)))

    @classmethod
    def kept(cls, rows: Array, placeholders: int, model: ModelConfig) -> Heard:
        """From the encoder's rows of a whole clip, one for 40 ms."""
        window = np.arange(len(rows)) * 2 // model.encoder.n_window
        return cls(np.empty((0, 0), np.float32), placeholders, rows, window)

    def later(self, rows: int, group_size: int, hurried: int = 0) -> Heard:
        """The same, begun `rows` 25 Hz rows (40 ms each) later where it is encoded: other rows make a group.

        Args:
            hurried: a seed; a row of twenty is left out. 0: none is.
        """
        if self.encoded is None or not (rows or hurried) or len(self.encoded) <= 2 * group_size:
            return self
        stays = np.arange(len(self.encoded)) >= rows
        if hurried:
            stays[rows:] = np.random.default_rng(hurried).random(len(stays) - rows) >= _LEFT_OUT
        window = None if self.window is None else self.window[stays]
        left = self.encoded[rows:] if stays[rows:].all() else self.encoded[stays]
        return Heard(self.mel, -(-len(left) // group_size), left, window)

    def then(self, other: Heard, group_size: int) -> Heard:
        """Both, one after another, where both are encoded."""
        if self.encoded is None or other.encoded is None:
            raise Error("only what is encoded can be heard one after another: run python -m samples.nano hear")
        rows, window = np.concatenate([self.encoded, other.encoded]), None
        if self.window is not None and other.window is not None:
            window = np.concatenate([self.window, other.window + self.window[-1] + 1])
        return Heard(self.mel, -(-len(rows) // group_size), rows, window)


class Prompter:
    """Dialogues -> ids, by the tokenizer and the template of a checkpoint folder."""

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        self.model = model
        self.tokenizer = Tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self.template = Template(source, self.tokenizer, model)

    def prompt(self, dialogue: Dialogue, turn: int, heard: Mapping[int, Heard], *, speech: bool) -> Array:
        """Ids int64 [P] of everything before the assistant's turn number `turn`.

        Args:
            heard: the turns that are sound, by number; the rest are text.
            speech: the reply is spoken; else the system prompt asks for text alone.
        """
        conversation = Conversation(
            self.template,
            system_message(system_words(dialogue.system, speech), dialogue.tools),
            capacity=1 << 20,
            reserve=0,
            drop=False,
        )
        turns = [history(t, self.clip(heard.get(n))) for n, t in enumerate(dialogue.turns[:turn])]
        return conversation.render(turns).ids

    def clip(self, heard: Heard | None) -> Clip | None:
        """As many rows as there are placeholders; what is in them does not change the ids."""
        if heard is None:
            return None
        return Clip.of(np.zeros((heard.placeholders, self.model.backbone.hidden_size), np.float32), 0.0)

    def pieces(self, ids: Array) -> list[str]:
        """The text of each id."""
        return [self.tokenizer.decode([i]) for i in ids.tolist()]

    def reply_ids(self, turn: Turn) -> tuple[Array, Array]:
        """(ids of what is said, ids of the calls with their tags), int64."""
        added = self.tokenizer.added_ids
        calls: list[int] = []
        for call in turn.tool_calls:
            inner = call.raw.removeprefix(OPEN).removesuffix(CLOSE)
            calls += [added[OPEN], *self.tokenizer.encode_plain(inner), added[CLOSE]]
        return np.array(self.tokenizer.encode_plain(turn.text), np.int64), np.array(calls, np.int64)


def history(turn: Turn, clip: Clip | None = None) -> HistoryTurn:
    """A turn as the SDK's history has it; a user's, said in `clip` if there is one, else written."""
    if turn.role == "assistant":
        said: tuple[str | ToolCall, ...] = ((turn.text,) if turn.text else ()) + tuple(turn.tool_calls)
        return HistoryTurn("assistant", text=turn.text, said=said)
    return HistoryTurn(turn.role, text="" if clip else turn.text, clip=clip)


def system_words(system: str | None, speech: bool) -> str:
    """The system prompt; where the reply is text alone, the SDK's own words for that take the place of the others."""
    if system is None:
        return SYSTEM_SPEECH if speech else SYSTEM_TEXT
    return system if speech else system.replace(SYSTEM_SPEECH, SYSTEM_TEXT, 1)


def written(
    prompter: Prompter,
    dialogue: Dialogue,
    turn: int,
    heard: Mapping[int, Heard] | None = None,
    *,
    prompt_weight: float,
    replies_weight: float = 0.0,
) -> Sequence:
    """A reply in text alone.

    Args:
        prompt_weight: share of the prompt's own ids in the loss: a backbone from nothing learns the language from them.
        replies_weight: of the earlier replies in the prompt, where that is more.
    """
    found = heard or {}
    ids = prompter.prompt(dialogue, turn, found, speech=False)
    said, calls = prompter.reply_ids(dialogue.turns[turn])
    weight = np.full(len(ids) - 1, prompt_weight, np.float32)
    if replies_weight > prompt_weight:
        # In text alone they were generated as they stand there, from their first id on.
        weight = np.maximum(weight, earlier_replies(ids, prompter.model, 0) * replies_weight)
    return Sequence(
        prompt_ids=ids,
        text_ids=np.concatenate([said, calls, [prompter.model.text_ids.eos[0]]]).astype(np.int64),
        prompt_weight=weight,
        **clips(found),
    )


def spoken(
    prompter: Prompter,
    dialogue: Dialogue,
    turn: int,
    heard: Mapping[int, Heard],
    codes: Array | None,
    layout: Layout,
    starts_s: Items[float] = (),
) -> Sequence:
    """A reply in text and speech.

    Args:
        codes: int [T25] of the reply's sound; None where nothing is said (a tool call alone).
        starts_s: when each of its words begins, for a layout by words; none where it is not known.
    """
    said, calls = prompter.reply_ids(dialogue.turns[turn])
    steps = None
    if layout.by_words and len(starts_s):
        steps = first_steps(prompter.model, prompter.pieces(said), starts_s, layout)
    text, groups, weights = reply_grid(prompter.model, said, calls, codes, layout, steps)
    prompt = prompter.prompt(dialogue, turn, heard, speech=True)
    return Sequence(
        prompt_ids=prompt,
        prompt_weight=history_weight(prompt, prompter.model, layout.history_weight),
        text_ids=text,
        groups=groups,
        text_weight=weights[0],
        speech_weight=weights[1],
        **clips(heard),
    )


def history_weight(prompt: Array, model: ModelConfig, weight: float) -> Array | None:
    """float32 [P - 1]: `weight` for what earlier replies of the prompt say, from their second id to their end; None if
    it is 0. Their first id does not count: a reply that is being spoken begins with audio_bos there."""
    return earlier_replies(prompt, model, 1) * np.float32(weight) if weight else None


def earlier_replies(prompt: Array, model: ModelConfig, first: int) -> Array:
    """float32 [P - 1]: 1 where the next id is of an earlier reply, from its id number `first` to its end, else 0."""
    # A prompt begins with the id that begins every message, and ends with what stands before a reply.
    start = int(np.flatnonzero(prompt == prompt[0])[-1])
    header = prompt[start:]
    out = np.zeros(len(prompt) - 1, np.float32)
    inside = None
    for at in range(len(prompt)):
        if inside is None and at < start and np.array_equal(prompt[at : at + len(header)], header):
            inside = at + len(header)
        elif inside is not None and at >= inside + first:
            out[at - 1] = 1.0  # position at - 1 predicts id at
        if inside is not None and at >= inside and prompt[at] == model.text_ids.eos[0]:
            inside = None
    return out


def clips(heard: Mapping[int, Heard]) -> dict[str, Any]:
    ordered = [heard[n] for n in sorted(heard)]
    placeholders = {"placeholders": tuple(h.placeholders for h in ordered)}
    rows = tuple(h.encoded for h in ordered if h.encoded is not None)
    if not rows:
        return {"mels": tuple(h.mel for h in ordered), **placeholders}
    window = tuple(h.window for h in ordered if h.window is not None)
    return {"encoded": rows, "window": window, **placeholders}
