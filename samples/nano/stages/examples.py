"""A turn of a dialogue -> one training sequence, its prompt written by the SDK's own prompt code.

The reply on the 5 Hz grid, as the device's loop makes it (docs/computation.md, One step):

    step     0          1 ... n                     n + 1      n + 2 ...
    text     audio_bos  words, then sil             audio_eos  tool calls, end of text
    speech   idle       the reply's codes, G each   eos        idle

n is as long as the longer of words and speech. An idle step's picks are never returned, but they enter the head's cache
and the next pick: all are taught to be the codec's pad id, so that the device's idle steps are those of the training.
"""

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
from samples.nano.texts.dialogues import Dialogue, Turn
from samples.nano.texts.grid import align, word_steps, words_of


@dataclass(frozen=True)
class Heard:
    """What a user said: float32 mel [n_mels, frames], normalised, and its placeholders."""

    mel: Array
    placeholders: int

    @classmethod
    def of(cls, pcm: Array, model: ModelConfig) -> Heard:
        """pcm float32 [n] at the mel's rate (16 kHz)."""
        return cls(log_mel(pcm, model.mel), model.placeholder_count(len(pcm)))


@dataclass(frozen=True)
class Layout:
    """How a reply lies on the grid, and what counts how much in the loss.

    Args:
        lead_steps: silent steps before the first code: text the head has seen when speech begins.
        by_words: an id stands a little before its word is heard; else all text stands in front, as upstream has it.
        sil_weight: of the text head's padding; at 1 it would be most of what is learned.
        idle_weight: of the picks that are never returned.
    """

    lead_steps: int = 0
    by_words: bool = False
    sil_weight: float = 0.1
    idle_weight: float = 0.1


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
    prompter: Prompter, dialogue: Dialogue, turn: int, heard: Mapping[int, Heard] | None = None, *, prompt_weight: float
) -> Sequence:
    """A reply in text alone.

    Args:
        prompt_weight: share of the prompt's own ids in the loss: a backbone from nothing learns the language from them.
    """
    found = heard or {}
    ids = prompter.prompt(dialogue, turn, found, speech=False)
    said, calls = prompter.reply_ids(dialogue.turns[turn])
    return Sequence(
        prompt_ids=ids,
        text_ids=np.concatenate([said, calls, [prompter.model.text_ids.eos[0]]]).astype(np.int64),
        prompt_weight=np.full(len(ids) - 1, prompt_weight, np.float32),
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
    steps = first_steps(prompter, said, starts_s, layout) if layout.by_words and len(starts_s) else None
    text, groups, weights = reply_grid(prompter.model, said, calls, codes, layout, steps)
    return Sequence(
        prompt_ids=prompter.prompt(dialogue, turn, heard, speech=True),
        text_ids=text,
        groups=groups,
        text_weight=weights[0],
        speech_weight=weights[1],
        **clips(heard),
    )


def clips(heard: Mapping[int, Heard]) -> dict[str, Any]:
    ordered = [heard[n] for n in sorted(heard)]
    return {"mels": tuple(h.mel for h in ordered), "placeholders": tuple(h.placeholders for h in ordered)}


def first_steps(prompter: Prompter, said: Array, starts_s: Items[float], layout: Layout) -> list[int]:
    """For `align`: the step before which each id of `said` does not stand."""
    step_s = prompter.model.step_ms / 1000
    words = words_of([prompter.tokenizer.decode([i]) for i in said.tolist()])
    return word_steps(words, [layout.lead_steps * step_s + s for s in starts_s], step_s=step_s)


def reply_grid(
    model: ModelConfig,
    said: Array,
    calls: Array,
    codes: Array | None,
    layout: Layout,
    steps: list[int] | None = None,
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Text ids [S], groups [S, G], and their weights in the loss, on the grid above.

    Args:
        steps: of each id of `said`, the one before which it does not stand, counted from the first that speaks.
    """
    ids, speech, size = model.text_ids, model.speech_ids, model.group_size
    if ids.sil is None:
        raise Error("config.json has no sil_index: replies cannot be padded to the length of their speech")
    if len(said) and (codes is None or not len(codes)):
        raise Error("a reply that says something has no speech codes")
    sound = np.zeros(0, np.int64) if codes is None or not len(said) else lengthen(codes, size, len(said), layout)
    n = len(sound) // size
    words = align(said.tolist(), n, ids.sil, steps)
    text = np.concatenate([[ids.audio_bos], words, [ids.audio_eos], calls, [ids.eos[0]]]).astype(np.int64)
    groups = np.full((len(text), size), speech.pad, np.int64)
    groups[1 : 1 + n] = sound.reshape(n, size)
    groups[1 + n] = speech.eos
    text_weight = np.where(text == ids.sil, layout.sil_weight, 1.0).astype(np.float32)
    speech_weight = np.full(groups.shape, layout.idle_weight, np.float32)
    speech_weight[1 : 2 + n] = 1.0
    return text, groups, (text_weight, speech_weight)


def lengthen(codes: Array, size: int, words: int, layout: Layout) -> Array:
    """Whole groups, at least as many as words: a recording ends in silence, so its last code is silence's."""
    codes = np.concatenate([np.full(layout.lead_steps * size, codes[-1]), codes]).astype(np.int64)
    groups = max(words, -(-len(codes) // size))
    return np.pad(codes, (0, groups * size - len(codes)), mode="edge")
