"""One row of the table: a bundle asked a list of questions in one condition, its answers judged and listened to."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edge_sdk
from edge_sdk.commands.output import progress
from edge_sdk.files import write_file
from samples.nano.ship.bundles import Made, read_record
from samples.nano.stages.asking import Answered, ask
from samples.nano.stages.data import Item, Sounds
from samples.nano.voices.judge import Errors, Judge, word_errors

VERSION = 1  # of what a row holds and how it is judged
STREAMING, WHOLE = "streaming", "whole"


@dataclass(frozen=True)
class Asked:
    """What a row is about.

    Args:
        condition: how the questions sound, `questions.CONDITIONS`, or another name.
        items: what is asked.
        sound: what else decides how the questions sound: the users' seed and programs, the recordings' hashes.
        heard: spoken answers, the first of the row, that Whisper reads; 0: none.
        whole: have their codes voiced by the whole vocoder too, and read.
        threads: of each engine; None: every core.
    """

    made: Made
    condition: str
    items: Sequence[Item]
    heard: int
    whole: bool
    sound: str = ""
    threads: int | None = None

    @property
    def name(self) -> str:
        return f"{self.made.kind}-{self.condition.replace(' ', '')}"

    def fingerprint(self) -> str:
        """Of all that decides a row."""
        asked = [[item.dialogue.id, item.number, asdict(item.turn)] for item in self.items]
        told = [VERSION, self.made.sha256, self.condition, self.sound, asked, self.heard, self.whole]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def answer(asked: Asked, sounds: Sounds | None, folder: Path) -> dict[str, Any]:
    """The row, and a line for each answer in FOLDER/NAME.jsonl. One that is there already is kept.

    Returns: the row as JSON (see `summary`).
    """
    path, record = folder / f"{asked.name}.jsonl", folder / f"{asked.name}.json"
    before, print_ = read_record(record), asked.fingerprint()
    if before.get("asked") == print_ and path.is_file():
        row: dict[str, Any] = before["row"]
        return row
    folder.mkdir(parents=True, exist_ok=True)
    lines = list(_answers(asked, sounds, path))
    row = summary(asked, lines)
    write_file(record, (json.dumps({"asked": print_, "row": row}, indent=1) + "\n").encode())
    return row


def _answers(asked: Asked, sounds: Sounds | None, path: Path) -> Iterable[dict[str, Any]]:
    listener = _Listener(asked)
    show = progress()
    with path.open("w", encoding="utf-8") as file:
        answers = ask(asked.made.path, asked.items, speech=True, sounds=sounds, threads=asked.threads)
        for n, answered in enumerate(answers, 1):
            line = {"bundle": asked.made.kind, "condition": asked.condition, **_line(answered)}
            line |= listener.hear(answered.reply)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            show(asked.name, n, len(asked.items))
            yield line


def _line(answered: Answered) -> dict[str, Any]:
    item, turns = answered.item, answered.item.dialogue.turns
    before = turns[: item.number]
    return {
        **answered.record(),
        "questions": sum(turn.role == "user" for turn in before),
        "kind": "call" if item.turn.tool_calls else "after a call" if before[-1].role == "tool" else "answer",
        "group": item.dialogue.task,
        "asked": next(turn.text for turn in reversed(before) if turn.role == "user"),
        "audio_s": round(len(answered.reply.audio) / max(1, answered.reply.sample_rate), 3),
    }


class _Listener:
    """Reads the first spoken answers: as they were heard, and voiced in one piece."""

    def __init__(self, asked: Asked) -> None:
        self._left = asked.heard
        self._judge = Judge() if asked.heard else None
        self._whole = None
        if asked.heard and asked.whole:
            self._whole = edge_sdk.Vocoder(asked.made.path, mode=WHOLE, threads=asked.threads)

    def hear(self, reply: edge_sdk.Reply) -> dict[str, Any]:
        if not self._judge or not self._left or not reply.text.strip():
            return {}
        self._left -= 1
        out = {STREAMING: self._read(reply.text, reply.audio, reply.sample_rate)}
        if self._whole:
            codes = [code for code in reply.speech_ids if code < self._whole.codebook_size]
            out[WHOLE] = self._read(reply.text, self._whole.synthesize(codes), self._whole.sample_rate)
        return {"heard": out}

    def _read(self, text: str, pcm: Any, rate: int) -> dict[str, Any]:
        """What has no sound was not heard."""
        heard = self._judge.hear(pcm, rate) if self._judge and len(pcm) else ""
        return {"text": heard, **asdict(word_errors(text, heard))}


def summary(asked: Asked, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, so that every share can be told: [right, asked] in all, for the first question of a dialogue and for
    later ones, by kind of turn and by task; word errors by vocoder."""
    tasks = sorted({task_of(line) for line in lines})
    kinds = sorted({str(line["kind"]) for line in lines})
    groups = sorted({str(line["group"]) for line in lines})
    return {
        "bundle": asked.made.kind,
        "condition": asked.condition,
        "success": _share(lines),
        "first question": _share(line for line in lines if line["questions"] == 1),
        "later questions": _share(line for line in lines if line["questions"] > 1),
        "kinds": {kind: _share(line for line in lines if line["kind"] == kind) for kind in kinds},
        "tasks": {task: _share(line for line in lines if task_of(line) == task) for task in tasks},
        "groups": {group: _share(line for line in lines if line["group"] == group) for group in groups},
        "ended": dict(sorted(Counter(str(line["finish_reason"]) for line in lines).items())),
        "word errors": {mode: _errors(lines, mode) for mode in (STREAMING, WHOLE) if _errors(lines, mode)},
    }


def task_of(line: Mapping[str, Any]) -> str:
    """ "timers" of "timers.set": there are few questions of each act."""
    return str(line["task"]).partition(".")[0]


def _share(lines: Iterable[Mapping[str, Any]]) -> list[int]:
    found = [bool(line["success"]) for line in lines]
    return [sum(found), len(found)]


def _errors(lines: Iterable[Mapping[str, Any]], mode: str) -> dict[str, int]:
    read = [line["heard"][mode] for line in lines if mode in line.get("heard", {})]
    if not read:
        return {}
    total = sum((Errors(r["errors"], r["words"]) for r in read), Errors(0, 0))
    return {"errors": total.errors, "words": total.words, "replies": len(read)}
