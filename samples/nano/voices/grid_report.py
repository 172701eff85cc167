"""How replies fit the 5 Hz grid: text ids against steps of speech, and how far text is ahead of the voice."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from edge_sdk.tokenizer import Tokenizer
from samples.nano.texts.grid import missing_groups, words_of
from samples.nano.voices.shards import Clip

STEP_S = 0.2


def grid_report(clips: Iterable[Clip], tokenizer: Tokenizer) -> dict[str, Any]:
    """Figures over rendered replies, with all text in front (`align` without times).

    A word is late if the voice begins it before the head has seen all its ids: an id in step n is the head's input from
    step n + 1 on.
    """
    replies = longer = words = late = ids = 0
    seconds, fill, leads = 0.0, 0.0, []
    for clip in clips:
        numbers = tokenizer.encode_plain(clip.text)
        length_s = len(clip.spoken.pcm) / clip.spoken.rate
        steps = math.ceil(length_s / STEP_S)
        replies, ids, seconds = replies + 1, ids + len(numbers), seconds + length_s
        longer += missing_groups(numbers, steps) > 0
        fill = max(fill, len(numbers) / steps)
        last = {w: n for n, w in enumerate(words_of([tokenizer.decode([i]) for i in numbers]))}
        ahead = [start - (last[w] + 1) * STEP_S for w, start in enumerate(clip.spoken.word_starts_s)]
        words, late, leads = words + len(ahead), late + sum(a < 0 for a in ahead), leads + ahead
    return {
        "replies": replies,
        "ids_a_second": round(ids / seconds, 2),
        "most_ids_a_step": round(fill, 2),
        "text_longer_than_speech": longer,
        "words": words,
        "late_words": late,
        "least_lead_s": round(min(leads), 2) if leads else None,
        "middle_lead_s": round(sorted(leads)[len(leads) // 2], 2) if leads else None,
    }
