"""Dialogues and their sound -> batches. The batch of a step is told by the seed and the step's number alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.errors import Error
from samples.nano.model import batch as batches
from samples.nano.model.batch import Array, Batch
from samples.nano.stages.examples import Heard, Prompter, spoken, written
from samples.nano.stages.layout import Layout
from samples.nano.texts.dialogues import Dialogue, Turn

MOST_TAKES = 1 << 16
Drill = Callable[[int, Random], list[batches.Sequence]]  # so many sequences
LONGEST_SLIP = 5  # codes: 200 ms, a short syllable
NEIGHBOURS = 8  # a batch is drawn from so many times its size of sequences of similar length


class Sounds(Protocol):
    """What was rendered and encoded. A turn that is not there is text, a reply that is not there is left out.

    `takes`: by how many people, in how many places, a question was said, at most.
    """

    takes: int

    def question(self, text: str, take: int) -> Array | None:
        """PCM float32 [n], 16 kHz, of a user's words; take 0, 1, ..."""

    def reply(self, text: str) -> Array | None:
        """Speech codes int [T25]."""

    def starts_s(self, text: str) -> Sequence[float]:
        """When each word of a reply begins, seconds; empty where it is not known."""


@dataclass(frozen=True)
class Item:
    """One assistant turn."""

    dialogue: Dialogue
    number: int

    @property
    def turn(self) -> Turn:
        return self.dialogue.turns[self.number]

    @property
    def size(self) -> int:
        """What it costs, roughly: characters up to its end."""
        turns = self.dialogue.turns[: self.number + 1]
        said = sum(len(t.text) + sum(len(c.raw) for c in t.tool_calls) for t in turns)
        return said + sum(len(str(tool)) for tool in self.dialogue.tools)


class Corpus:
    """Every assistant turn of the dialogues, shortest first."""

    def __init__(
        self,
        prompter: Prompter,
        dialogues: Iterable[Dialogue],
        sounds: Sounds | None,
        layout: Layout,
        longest: int | None = None,
    ) -> None:
        """`longest`: ids of a turn's prompt, written; turns with longer ones are left out. None: all are taken."""
        self.prompter, self.sounds, self.layout = prompter, sounds, layout
        self.mels: dict[tuple[str, int], Heard] = {}  # 115 MB an hour; computing them anew would outlast a GPU's step
        found = (Item(d, n) for d in dialogues for n, turn in enumerate(d.turns) if turn.role == "assistant")
        fitting = (i for i in found if self.has_sound(i) and (longest is None or self.prompt_ids(i) <= longest))
        self.items = sorted(fitting, key=lambda item: item.size)
        if not self.items:
            raise Error("no dialogue has a reply to learn from: write texts, render and encode them first")

    def prompt_ids(self, item: Item) -> int:
        return len(self.prompter.prompt(item.dialogue, item.number, {}, speech=True))

    def has_sound(self, item: Item) -> bool:
        """Whether it can be trained on: what it says has codes (or there is no sound at all)."""
        return self.sounds is None or not item.turn.text or self.sounds.reply(item.turn.text) is not None

    def heard(self, item: Item, take: int = 0) -> dict[int, Heard]:
        """The user's turns before it that are sound."""
        found = {
            n: self.mel(turn.text, take)
            for n, turn in enumerate(item.dialogue.turns[: item.number])
            if turn.role == "user"
        }
        return {n: heard for n, heard in found.items() if heard is not None}

    def mel(self, text: str, take: int) -> Heard | None:
        """A question as one of its users said it; higher takes are theirs again, later, half of them hurried."""
        if self.sounds is None:
            return None
        key = text, take % self.sounds.takes
        if key not in self.mels:
            pcm = self.sounds.question(*key)
            if pcm is None:
                return None
            self.mels[key] = Heard.of(pcm, self.prompter.model)
        size = self.prompter.model.group_size
        again = take // self.sounds.takes
        return self.mels[key].later(again % size, size, hurried=again // size * (again // size % 2))

    def spoken(self, item: Item, reply: Item | None = None, *, take: int = 0, typed: bool = False) -> batches.Sequence:
        """In text and speech.

        Args:
            reply: whose reply is given; its own if None.
            typed: the questions are text though there is sound.
        """
        given = reply or item
        dialogue, number = item.dialogue, item.number
        if reply is not None:
            dialogue = with_reply(dialogue, number, reply.turn)
        text, heard = given.turn.text, {} if typed else self.heard(item, take)
        if self.sounds is None or not text:
            return spoken(self.prompter, dialogue, number, heard, None, self.layout)
        codes, starts_s = self.sounds.reply(text), self.sounds.starts_s(text)
        return spoken(self.prompter, dialogue, number, heard, codes, self.layout, starts_s)

    def heard_and_written(self, item: Item, take: int, behind: Item | None = None) -> batches.Sequence:
        """Questions in sound, the reply in text alone.

        Args:
            behind: a drill to be heard and written down behind this one, in one breath.
        """
        dialogue, heard = item.dialogue, self.heard(item, take)
        if behind is not None:
            more = self.heard(behind, take)
            heard = {n: h.then(more[n], self.prompter.model.group_size) for n, h in heard.items()}
            turns = zip(dialogue.turns, behind.dialogue.turns, strict=True)
            both = tuple(dataclasses.replace(a, text=f"{a.text} {b.text}") for a, b in turns)
            dialogue = dataclasses.replace(dialogue, turns=both)
        return written(self.prompter, dialogue, item.number, heard, prompt_weight=0.0)

    def written(
        self, item: Item, prompt_weight: float, replies_weight: float = 0.0, heard: dict[int, Heard] | None = None
    ) -> batches.Sequence:
        """In text alone; `heard`: the questions that are sound."""
        weights = {"prompt_weight": prompt_weight, "replies_weight": replies_weight}
        return written(self.prompter, item.dialogue, item.number, heard, **weights)


def last_replies(items: Sequence[Item]) -> list[Item]:
    """Of each dialogue the last of its replies that are there: its prompt has the others."""
    found: dict[str, Item] = {}
    for item in items:
        before = found.get(item.dialogue.id)
        if before is None or item.number > before.number:
            found[item.dialogue.id] = item
    return sorted(found.values(), key=lambda item: item.size)


def with_reply(dialogue: Dialogue, number: int, turn: Turn) -> Dialogue:
    return dataclasses.replace(dialogue, turns=(*dialogue.turns[:number], turn))


def draw(items: Sequence[Item], size: int, random: Random) -> list[Item]:
    """`size` items of similar length, so that little of a batch is padding."""
    span = min(len(items), size * NEIGHBOURS)
    first = random.randrange(len(items) - span + 1)
    return [items[first + random.randrange(span)] for _ in range(size)]


def story_sequences(prompter: Prompter, path: Path) -> list[batches.Sequence]:
    """Running text, one a line: every id of it counts, and nothing stands before it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise Error(f"cannot read '{path}': {e.strerror}; run python -m samples.nano texts first") from e
    eos = prompter.model.text_ids.eos[0]
    ids = (np.array([*prompter.tokenizer.encode_plain(line), eos], np.int64) for line in lines if line)
    return [batches.Sequence(line[:1], line[1:]) for line in ids if len(line) > 1]


def text_batches(
    corpus: Corpus,
    size: int,
    seed: int,
    prompt_weight: float,
    *,
    stories: Sequence[batches.Sequence] = (),
    story_share: float = 0.0,
    copy_share: float = 0.0,
    copies: Drill | None = None,
    figures_share: float = 0.0,
    figures: Drill | None = None,
    replies_weight: float = 0.0,
    items: Sequence[Item] | None = None,
) -> Callable[[int], Batch]:
    """Batches of replies in text alone, of running text, and steps of copies and figures, by step.

    Args:
        replies_weight: of earlier replies in a prompt.
        items: those that are drawn from; all of the corpus if None.
    """

    def at(step: int) -> Batch:
        random = Random(f"{seed}/text/{step}")
        kind = random.random() if copy_share or figures_share else 1.0
        if copies is not None and kind < copy_share:
            return batches.collate(copies(2 * size, random), corpus.prompter.model)
        if figures is not None and copy_share <= kind < copy_share + figures_share:
            return batches.collate(figures(3 * size, random), corpus.prompter.model)
        made = [
            random.choice(stories)
            if stories and random.random() < story_share
            else corpus.written(item, prompt_weight, replies_weight)
            for item in draw(corpus.items if items is None else items, size, random)
        ]
        return batches.collate(made, corpus.prompter.model)

    return at


@dataclass(frozen=True)
class Shares:
    """What the steps of a run are made of. A step is of one kind, so that its sequences are of similar length.

    Args:
        hear, read, copy, figures: of the steps, those that are drills (see `drills`).
        answer: of the steps, those that answer in text alone, all replies of a dialogue at once.
        heard: of their sequences, those whose questions are sound.
        both: of those that hear, the ones that hear two questions at a time.
        slips: of the codes that stand before a pick, those that are others (see `slipped`).
        text: of the other steps' sequences, those that stay text alone.
        typed: of the spoken ones among them, those that answer text.
    """

    hear: float = 0.0
    read: float = 0.0
    copy: float = 0.0
    figures: float = 0.0
    answer: float = 0.0
    heard: float = 0.0
    text: float = 0.0
    typed: float = 0.0
    both: float = 0.0
    slips: float = 0.0


def speech_batches(
    corpus: Corpus,
    size: int,
    seed: int,
    shares: Shares = Shares(),
    hear: Sequence[Item] = (),
    read: Sequence[Item] = (),
    copies: Drill | None = None,
    figures: Drill | None = None,
    answers: Sequence[Item] = (),
) -> Callable[[int], Batch]:
    """Batches of spoken replies, and of the drills given. `copies` and `figures` make so many of them.

    Args:
        answers: more dialogues for the steps that answer in text alone, to their last replies; they need no sound.
    """
    answered = sorted([*last_replies(corpus.items), *answers], key=lambda item: item.size) if shares.answer else []

    def of_dialogues(random: Random) -> list[batches.Sequence]:
        made = []
        for item in draw(corpus.items, size, random):
            text, typed, take = (
                random.random() < shares.text,
                random.random() < shares.typed,
                random.randrange(MOST_TAKES),
            )
            if text:
                made.append(corpus.written(item, 0.0, corpus.layout.history_weight))
            else:
                made.append(corpus.spoken(item, take=take, typed=typed))
        return made

    def in_text(random: Random) -> list[batches.Sequence]:
        made = []
        for item in draw(answered, size, random):
            heard, take = random.random() < shares.heard, random.randrange(MOST_TAKES)
            made.append(corpus.written(item, 0.0, 1.0, corpus.heard(item, take) if heard else None))
        return made

    def at(step: int) -> Batch:
        random = Random(f"{seed}/speech/{step}")
        kind = random.random()
        if kind < shares.hear:
            # Text alone costs a fraction of a spoken reply: twice as many.
            behind = draw(hear, 2 * size, random) if random.random() < shares.both else [None] * (2 * size)
            both = zip(draw(hear, 2 * size, random), behind, strict=True)
            made = [corpus.heard_and_written(i, random.randrange(MOST_TAKES), then) for i, then in both]
        elif kind < shares.hear + shares.read:
            made = [corpus.spoken(item, typed=True) for item in draw(read, size, random)]
        elif copies is not None and kind < shares.hear + shares.read + shares.copy:
            made = copies(2 * size, random)
        elif figures is not None and kind < shares.hear + shares.read + shares.copy + shares.figures:
            made = figures(3 * size, random)
        elif kind < shares.hear + shares.read + shares.copy + shares.figures + shares.answer:
            made = in_text(random)
        else:
            made = of_dialogues(random)
        if shares.slips:
            made = [slipped(sequence, shares.slips, corpus.prompter.model, random) for sequence in made]
        return batches.collate(made, corpus.prompter.model)

    return at


def slipped(sequence: batches.Sequence, share: float, model: ModelConfig, random: Random) -> batches.Sequence:
    """With some `share` of the reply's codes that enter replaced by runs of others of it; what is to be picked stays.

    On the device the head goes on from its own picks, some of which are a wrong sound. One that has only ever gone on
    from recorded codes takes what it said for more certain than the text: what began as "toaster" ends as "timer".
    """
    if sequence.groups is None:
        return sequence
    ids, drawn = model.speech_ids, np.random.default_rng(random.getrandbits(64))
    codes = ~np.isin(sequence.groups, (ids.bos, ids.eos, ids.pad))
    said = sequence.groups[codes]
    heard = said.copy()
    for at in np.flatnonzero(drawn.random(len(said)) < share * 2 / (1 + LONGEST_SLIP)):
        there = drawn.integers(len(said))
        length = min(drawn.integers(1, LONGEST_SLIP + 1), len(said) - max(at, there))
        heard[at : at + length] = said[there : there + length]
    entered = sequence.groups.copy()
    entered[codes] = heard
    return dataclasses.replace(sequence, entered=entered)
