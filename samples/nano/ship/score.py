"""Scores bundles on held-out speech: success, word errors of replies, noise, precisions, vocoders, speed, gates.

The checkpoint is exported in several precisions to WORK/bundles. Each bundle is asked held-out questions (phrasings,
values, voices, rooms and noises that training has not), as they are and at 20, 10 and 5 dB, through edge_sdk.Chat; the
grammar's checker judges what it answers and Whisper tiny.en reads how it sounds. The conversation before a question is
as it was meant to go, its questions spoken too.

Written to WORK/score: score.json (what `card` and `ship` read), answers.jsonl (a line for each answer), and rows/,
which are kept: the same command again measures what is missing, or what a new checkpoint changed.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from edge_sdk.errors import Error
from edge_sdk.files import write_file
from samples.nano.ship import bundles, table
from samples.nano.ship.bundles import Made, read_record
from samples.nano.ship.gates import gates
from samples.nano.ship.made_from import made_from
from samples.nano.ship.questions import (
    CONDITIONS,
    NATURAL,
    TYPED,
    HeldOutUsers,
    Recordings,
    draw_items,
    engines_of,
)
from samples.nano.ship.row import Asked, answer
from samples.nano.ship.speed import measure
from samples.nano.stages.data import Item
from samples.nano.texts.store import read_dialogues

FOLDER, FILE, ANSWERS = "score", "score.json", "answers.jsonl"
EXPECTED = Path(__file__).with_name("recordings.jsonl")
RECORDINGS = "recordings"
QUICK = 20
TIMED = 24  # questions that speed is measured with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = tuple(bundles.KINDS)
    parser.add_argument("--checkpoint", type=Path, help="default: the last stage in WORK, dpo first")
    parser.add_argument("--bundle", choices=kinds, action="append", help="score this alone (default: every one)")
    parser.add_argument(
        "--condition", choices=(*CONDITIONS, TYPED), action="append", help=f"default: {', '.join(CONDITIONS)}"
    )
    parser.add_argument("--count", type=int, default=200, help="answers of a row (default: %(default)s)")
    parser.add_argument("--heard", type=int, default=100, help="of them Whisper reads so many (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} answers a row, all read")
    parser.add_argument("--texts", type=Path, help="folder of the dialogues (default: WORK/texts)")
    parser.add_argument("--seed", type=int, default=1, help="which questions, and render's seed (default: %(default)s)")
    parser.add_argument("--recordings", type=Path, metavar="FOLDER", help="score these recordings as rows of their own")
    parser.add_argument("--expected", type=Path, default=EXPECTED, metavar="FILE", help="what is right for them")
    parser.add_argument("--no-speed", action="store_true", help="measure no times, keep those that are there")
    parser.add_argument("--threads", type=int, help="of each engine (default: every core, 1 with --jobs)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that ask (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print score.json instead of the tables")


def run(options: argparse.Namespace) -> int:
    if options.quick:
        options.count = options.heard = QUICK
    if min(options.count, options.jobs) < 1 or options.heard < 0:
        raise Error("--count and --jobs must be at least 1, --heard at least 0")
    if options.threads is not None and options.threads < 1:
        raise Error(f"--threads must be at least 1, found {options.threads}")
    work = options.work
    checkpoint = options.checkpoint or bundles.newest_checkpoint(work)
    if not (checkpoint / "config.json").is_file():
        raise Error(f"'{checkpoint}' is no checkpoint folder: it has no config.json")
    made = {kind: bundles.make(work, kind, checkpoint) for kind in options.bundle or bundles.KINDS}
    rows = _rows(options, list(made.values()))
    speed = {kind: found for kind, m in made.items() if (found := _speed(options, m))}
    own = [row for row in rows if row["condition"] != RECORDINGS]
    score = {
        "asked": {"count": options.count, "heard": options.heard, "seed": options.seed, "preset": options.preset},
        "made_from": made_from(work, checkpoint),
        "bundles": {kind: m.record for kind, m in made.items()},
        "rows": own,
        "recordings": [row for row in rows if row["condition"] == RECORDINGS],
        "speed": speed,
        "gates": {
            kind: [gate.to_json() for gate in gates(kind, m.record, own, speed.get(kind, {}))]
            for kind, m in made.items()
        },
    }
    write_file(work / FOLDER / FILE, (json.dumps(score, indent=1, ensure_ascii=False) + "\n").encode())
    _join_answers(work / FOLDER, rows)
    print(json.dumps(score) if options.json else readable(score))
    return 0


def _rows(options: argparse.Namespace, made: list[Made]) -> list[dict[str, Any]]:
    """A condition's bundles are asked by one process, which renders the questions once."""
    conditions = list(options.condition or CONDITIONS) + ([RECORDINGS] if options.recordings else [])
    given = [(options, made, condition) for condition in conditions]
    if options.jobs == 1:
        found = [_condition(*g) for g in given]
    else:
        with ProcessPoolExecutor(min(options.jobs, len(given)), mp_context=get_context("spawn")) as pool:
            found = [done.result() for done in [pool.submit(_condition, *g) for g in given]]
    return [row for rows in found for row in rows]


def _condition(options: argparse.Namespace, made: list[Made], condition: str) -> list[dict[str, Any]]:
    threads = options.threads or (1 if options.jobs > 1 else None)
    items, sounds = _questions(options, condition)
    whole, folder = condition in (NATURAL, RECORDINGS), options.work / FOLDER / "rows"
    told = sounds.told if sounds else ""
    return [answer(Asked(m, condition, items, options.heard, whole, told, threads), sounds, folder) for m in made]


def _questions(options: argparse.Namespace, condition: str) -> tuple[list[Item], HeldOutUsers | Recordings | None]:
    if condition == RECORDINGS:
        recordings = Recordings(options.recordings, list(read_dialogues(options.expected)))
        return recordings.items, recordings
    texts = options.texts or options.work / "texts"
    items = draw_items(texts / "held_out.jsonl", options.count, options.seed)
    if condition == TYPED:
        return items, None
    return items, HeldOutUsers(texts, condition, engines_of(options.work), options.seed)


def _speed(options: argparse.Namespace, made: Made) -> dict[str, Any]:
    """Of questions that are answered aloud, as they are; with --no-speed what was measured before of these bytes."""
    path = options.work / FOLDER / "rows" / f"{made.kind}-speed.json"
    if options.no_speed:
        before = read_record(path)
        return dict(before["speed"]) if before.get("sha256") == made.sha256 else {}
    items, sounds = _questions(options, NATURAL)
    spoken = [i for i in items if i.turn.text and i.dialogue.turns[i.number - 1].role == "user"][:TIMED]
    found = measure(made.path, spoken, sounds, options.threads) if spoken and sounds else {}
    write_file(path, (json.dumps({"sha256": made.sha256, "speed": found}, indent=1) + "\n").encode())
    return found


def _join_answers(folder: Path, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['bundle']}-{row['condition'].replace(' ', '')}.jsonl" for row in rows]
    text = "".join((folder / "rows" / name).read_text(encoding="utf-8") for name in names)
    write_file(folder / ANSWERS, text.encode())


def readable(score: dict[str, Any]) -> str:
    natural = [row for row in score["rows"] if row["condition"] == NATURAL]
    parts = [table.rows_table(score["rows"])]
    parts += [table.parts_table(natural, "tasks"), table.parts_table(natural, "kinds")] if natural else []
    if score["recordings"]:
        parts += [table.rows_table(score["recordings"]), table.parts_table(score["recordings"], "groups")]
    parts += [table.speed_table(score["speed"])] if score["speed"] else []
    parts.append(table.gates_table(score["gates"]))
    return "\n\n".join(map(table.plain, parts))
