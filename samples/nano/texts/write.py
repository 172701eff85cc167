"""Writes the dialogues of a seed, training and held out, and ordinary text for the first training.

Everything is told by --seed and the counts: the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_sdk.errors import Error
from samples.nano.texts.dialogues import Dialogue, dialogues
from samples.nano.texts.mixed import mixed
from samples.nano.texts.plain import stories, tasks
from samples.nano.texts.statistics import Statistics, leaks
from samples.nano.texts.store import MIXED, read_dialogues, write_dialogues
from samples.nano.texts.tools import TOOLS

HELD_OUT_SHARE = 10  # one held-out dialogue for so many of training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder of the texts (default: texts in the work folder)")
    parser.add_argument("--count", type=int, default=30000, help="training dialogues (default: %(default)s)")
    parser.add_argument("--plain", type=int, help="tasks of ordinary text, and paragraphs (default: as many)")
    parser.add_argument("--mixed", type=int, default=0, help="sentences of pieces, for drills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything drawn (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the statistics as JSON")


def run(options: argparse.Namespace) -> int:
    plain = options.count if options.plain is None else options.plain
    if options.count < 1 or min(plain, options.mixed) < 0:
        raise Error(
            f"--count must be at least 1, --plain and --mixed at least 0; found {options.count}, {plain} and "
            f"{options.mixed}"
        )
    folder = options.out or options.work / "texts"
    report = write_texts(folder, options.count, plain, options.seed, options.mixed)
    print(json.dumps(report) if options.json else _readable(report, folder))
    return 0


def write_texts(folder: Path, total: int, plain: int, seed: int, pieces: int = 0) -> dict[str, Any]:
    """Write train, held_out, plain_train and plain_held_out .jsonl, stories.txt, tools.json; statistics of them;
    and `pieces` exchanges of mixed sentences, mixed.jsonl.

    Raises:
        Error: something held out stands in training. It can't, by construction; if it does, the grammar is at fault.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counted: dict[str, Statistics] = {}
    few = max(1, total // HELD_OUT_SHARE), max(1, plain // HELD_OUT_SHARE)
    sets: dict[str, Iterator[Dialogue]] = {
        "train": dialogues(seed, total, "train"),
        "held_out": dialogues(seed, few[0], "held_out"),
        "plain_train": tasks(seed, plain, "train"),
        "plain_held_out": tasks(seed, few[1] if plain else 0, "held_out"),
    }
    for name, made in sets.items():
        counted[name] = _write(folder / f"{name}.jsonl", made)
    found = leaks(counted["train"], counted["held_out"]) + leaks(counted["plain_train"], counted["plain_held_out"])
    if found:
        raise Error(f"held out, and in training too: {'; '.join(found[:5])}")
    (folder / MIXED).unlink(missing_ok=True)
    if pieces:
        said = {name: _said(folder, name) for name in ("train", "held_out")}
        questions, replies = said["train"]
        without = [text for texts in said["held_out"] for text in texts]
        counted["mixed"] = _write(folder / MIXED, mixed(seed, pieces, questions, replies, without))
    (folder / "stories.txt").write_text("".join(f"{s}\n" for s in stories(seed, plain)), encoding="utf-8")
    (folder / "tools.json").write_text(json.dumps(list(TOOLS.values()), indent=1) + "\n", encoding="utf-8")
    report = {name: statistics.report() for name, statistics in counted.items()}
    (folder / "statistics.json").write_text(json.dumps({"seed": seed, **report}, indent=1) + "\n", encoding="utf-8")
    return report


def _said(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Different questions and replies of a set."""
    turns = [turn for dialogue in read_dialogues(folder / f"{name}.jsonl") for turn in dialogue.turns if turn.text]
    user, assistant = (list(dict.fromkeys(t.text for t in turns if t.role == role)) for role in ("user", "assistant"))
    return user, assistant


def _write(path: Path, made: Iterator[Dialogue]) -> Statistics:
    found = Statistics()

    def counting() -> Iterator[Dialogue]:
        for dialogue in made:
            found.add(dialogue)
            yield dialogue

    write_dialogues(path, counting())
    return found


def _readable(report: dict[str, Any], folder: Path) -> str:
    text = [f"{'':<16}{'dialogues':>10}{'turns':>9}{'user turns':>12}{'replies':>9}{'calls':>8}{'phrasings':>11}"]
    for name, r in report.items():
        different = f"{r['different_user_turns']:>12}{r['different_replies']:>9}{r['different_tool_calls']:>8}"
        text.append(f"{name:<16}{r['dialogues']:>10}{r['turns']:>9}{different}{r['phrasings']:>11}")
    by_task = report["train"]["user_turns_by_task"]
    text.append("different user turns by task: " + ", ".join(f"{task} {n}" for task, n in by_task.items()))
    return "\n".join([*text, f"written to {folder}"])
