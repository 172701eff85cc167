"""Text on the 5 Hz grid of a spoken reply: one id a step, `sil` where no word is due.

A step of the backbone writes one text id and speaks one group of codes (200 ms). Upstream's replies begin with the text
at once, a word or two a step ahead of the voice, and are silent in text until the voice is done.
"""

from __future__ import annotations

from collections.abc import Sequence


def align(text_ids: Sequence[int], groups: int, sil: int, first_steps: Sequence[int] | None = None) -> list[int]:
    """Text ids for `groups` steps of speech.

    Args:
        text_ids: of the reply, without special tokens.
        groups: steps in which the reply is spoken.
        sil: the id that stands where no text is due.
        first_steps: for each id the step before which it should not stand, ascending (see `word_steps`); None puts all
            text in front ("lead"), as upstream does.

    Returns:
        One id a step: `groups` of them, or, where the text is longer than the speech, as many as the text has. Speech
        then needs `missing_groups` of silence behind it, since nothing but `sil` may stand in the step that ends it:
        its id is overwritten by audio_eos. An id is never dropped, and never put behind another that follows it.
    """
    if first_steps is not None and len(first_steps) != len(text_ids):
        raise ValueError(f"{len(first_steps)} first steps for {len(text_ids)} text ids")
    steps = max(groups, len(text_ids))
    out = [sil] * steps
    at = 0
    for n, token in enumerate(text_ids):
        latest = steps - (len(text_ids) - n)  # leaves a step for each id that follows
        at = min(max(at, first_steps[n] if first_steps else 0), latest)
        out[at] = token
        at += 1
    return out


def missing_groups(text_ids: Sequence[int], groups: int) -> int:
    """Groups of silence to speak behind a reply whose text is longer than its sound."""
    return max(0, len(text_ids) - groups)


def word_steps(
    words_of_ids: Sequence[int], starts_s: Sequence[float], lead_s: float = 0.4, step_s: float = 0.2
) -> list[int]:
    """First steps for `align`: each id stands `lead_s` before its word is heard, so that the head knows what comes.

    Args:
        words_of_ids: the word each text id belongs to, ascending (see `words_of`).
        starts_s: when each word begins in the sound.
    """
    return [max(0, int((starts_s[min(word, len(starts_s) - 1)] - lead_s) / step_s)) for word in words_of_ids]


def words_of(pieces: Sequence[str]) -> list[int]:
    """The number of the word (as `str.split` counts) that each piece of a text belongs to; pieces join to the text."""
    out, word, inside = [], -1, False
    for piece in pieces:
        for char in piece:
            if not char.isspace() and not inside:
                word += 1
            inside = not char.isspace()
        out.append(max(word, 0))
    return out
