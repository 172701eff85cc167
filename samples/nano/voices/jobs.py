"""What is to be said: every different reply once in the reply's voice, every different question by some user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

from samples.nano.texts.dialogues import Dialogue
from samples.nano.texts.store import read_dialogues, read_mixed
from samples.nano.voices.conditions import Conditions, draw_conditions
from samples.nano.voices.speakers import Speaker, draw_speaker

SETS = ("replies", "users")
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Job:
    """One clip. Without a speaker it is a reply."""

    text: str
    split: str
    speaker: Speaker | None = None
    conditions: Conditions | None = None
    take: int = 0


def reply_jobs(texts: Path, splits: Sequence[str] = SPLITS) -> list[Job]:
    return [Job(text, split) for split, text in _different(texts, "assistant", splits)]


def user_jobs(
    texts: Path,
    seed: int,
    engines: Sequence[str],
    *,
    splits: Sequence[str] = SPLITS,
    takes: int = 1,
    snr_db: float | None = None,
) -> list[Job]:
    """Who says it and where is told by the seed, the text and the take alone, so more texts change no clip.

    A text that both splits have (some sections are too small to be split) is spoken by both splits' people.
    """
    jobs = []
    for split, text in _different(texts, "user", splits):
        for take in range(takes):
            random = Random(f"{seed}/{split}/{text}/{take}")
            held_out = split == "held_out"
            speaker = draw_speaker(random, held_out, engines)
            jobs.append(Job(text, split, speaker, draw_conditions(random, held_out, snr_db), take))
    return jobs


def _different(texts: Path, role: str, splits: Sequence[str]) -> Iterator[tuple[str, str]]:
    for split in splits:
        seen: set[str] = set()
        more = read_mixed(texts) if split == "train" else ()
        for text in _said(chain(read_dialogues(texts / f"{split}.jsonl"), more), role):
            if text not in seen:
                seen.add(text)
                yield split, text


def _said(dialogues: Iterable[Dialogue], role: str) -> Iterator[str]:
    return (turn.text for d in dialogues for turn in d.turns if turn.role == role and turn.text)
