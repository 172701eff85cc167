"""A reply on the 5 Hz grid, as the device's loop makes it (docs/computation.md, One step):

    step     0          1 ... n                     n + 1      n + 2 ...
    text     audio_bos  words, then sil             audio_eos  tool calls, end of text
    speech   idle       the reply's codes, G each   eos        idle

n is as long as the longer of words and speech. An idle step's picks are never returned, but they enter the head's cache
and the next pick: all are taught to be the codec's pad id, so that the device's idle steps are those of the training.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.errors import Error
from samples.nano.model.batch import Array
from samples.nano.texts.grid import align, word_steps, words_of


@dataclass(frozen=True)
class Layout:
    """How a reply lies on the grid, and what counts how much in the loss.

    Args:
        lead_steps: silent steps before the first code: text the head has seen when speech begins.
        by_words: an id stands a little before its word is heard; else all text stands in front, as upstream has it.
        sil_weight: of the text head's padding; at 1 it would be most of what is learned.
        idle_weight: of the picks that are never returned.
        history_weight: of the ids of earlier replies in the prompt.
    """

    lead_steps: int = 0
    by_words: bool = False
    sil_weight: float = 0.1
    idle_weight: float = 0.1
    history_weight: float = 0.0


def first_steps(model: ModelConfig, pieces: Items[str], starts_s: Items[float], layout: Layout) -> list[int]:
    """For `align`: the step before which each id of a reply does not stand.

    Args:
        pieces: the text of each id.
        starts_s: when each word begins in the sound.
    """
    step_s = model.step_ms / 1000
    return word_steps(words_of(pieces), [layout.lead_steps * step_s + s for s in starts_s], step_s=step_s)


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
