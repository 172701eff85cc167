"""Greedy replies straight from the training form: the whole sequence again for every pick. Slow, and plain.

What the device makes with its caches must be the same ids (tests/nano/test_model_export.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

import numpy as np
import torch

from samples.nano.model.batch import Array, Sequence, activity, collate
from samples.nano.model.language import LanguageHalf


@torch.no_grad()
def answer(
    model: LanguageHalf, prompt: Sequence, *, steps: int, first: Items[int] = (), speech: bool = True
) -> tuple[Array, Array, Array]:
    """Text ids [S] and picks [S, G] of the reply to a prompt, and which groups are returned, bool [S].

    Args:
        prompt: its `text_ids` and `groups` are not read.
        steps: at most.
        first: text ids that are forced at the beginning (audio_bos).
    """
    config = model.config
    text = np.zeros(0, np.int64)
    groups = np.zeros((0, config.group_size), np.int64)
    device = next(model.parameters()).device
    for step in range(steps):
        text, groups = np.append(text, 0), np.append(groups, np.full((1, config.group_size), 0), axis=0)
        batch = collate([replace(prompt, text_ids=text, groups=groups if speech else None)], config).to(device)
        hidden = model.hidden(batch)
        if speech:
            for j in range(config.group_size):
                groups[step, j] = pick(model, prompt, text, groups, hidden, j)
        chosen = int(model.text_logits(hidden[0, -1]).argmax())
        text[step] = first[step] if step < len(first) else chosen
        stop = int(text[step]) in config.text_ids.eos
        if speech and activity(text, groups, config)[0][step] and (groups[step] == config.speech_ids.eos).any():
            text[step] = config.text_ids.audio_eos
        if stop:
            break
    return text, groups, activity(text, groups, config)[0] if speech else np.zeros(len(text), bool)


def pick(model: LanguageHalf, prompt: Sequence, text: Array, groups: Array, hidden: torch.Tensor, sub_step: int) -> int:
    """The head's choice for the last step's pick `sub_step`; those before it stand in `groups`."""
    batch = collate([replace(prompt, text_ids=text, groups=groups)], model.config).to(hidden.device)
    rows = model.head_hidden(batch, hidden)[0, len(hidden[0]) * model.config.group_size - model.config.group_size :]
    return int(model.speech_logits(rows[sub_step]).argmax())
