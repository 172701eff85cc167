"""Has Whisper tiny.en listen and prints its word error rate: rendered replies, users at several noise levels, or files.

python -m samples.nano listen                                     20 held-out replies; users clean, 20, 10, 5 dB
python -m samples.nano listen --file said.wav "What it should say."
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import soundfile

from edge_sdk.commands.output import progress
from edge_sdk.errors import Error
from samples.nano.voices import other_voices
from samples.nano.voices.jobs import Job, reply_jobs, user_jobs
from samples.nano.voices.judge import Errors, Judge, word_errors
from samples.nano.voices.render import speak

LEVELS_DB = (20.0, 10.0, 5.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--texts", type=Path, help="folder of the texts (default: texts in the work folder)")
    parser.add_argument("--count", type=int, default=20, help="clips of a kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which clips (default: %(default)s)")
    parser.add_argument("--snr", type=float, action="append", metavar="DB", help="noise levels (default: 20, 10, 5)")
    parser.add_argument("--hibari-only", action="store_true", help="no espeak-ng or flite, though they be installed")
    parser.add_argument("--file", nargs=2, action="append", metavar=("SOUND", "TEXT"), help="listen to this instead")
    parser.add_argument("--verbose", action="store_true", help="print what was heard wrong")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> int:
    judge = Judge()
    if options.file:
        rows = {"files": _files(judge, options.file, options.verbose)}
    else:
        if options.count < 1:
            raise Error(f"--count must be at least 1, found {options.count}")
        if not all(map(math.isfinite, options.snr or ())):
            raise Error(f"--snr must be a number of dB, found {options.snr}")
        rows = _rendered(judge, options)
    report = {name: {"wer": round(e.rate, 4), "errors": e.errors, "words": e.words} for name, e in rows.items()}
    print(json.dumps(report) if options.json else _table(report))
    return 0


def _rendered(judge: Judge, options: argparse.Namespace) -> dict[str, Errors]:
    """The same questions and users at every level, so that rows differ by the noise alone."""
    texts = options.texts or options.work / "texts"
    engines = () if options.hibari_only else other_voices.installed()
    random = Random(f"listen/{options.seed}")
    replies = _sample(random, reply_jobs(texts, ["held_out"]), options.count)
    users = _sample(random, user_jobs(texts, options.seed, engines, splits=["held_out"]), options.count)
    kinds = {"replies": replies, "users, dry": [replace(job, conditions=None) for job in users]}
    kinds["users, in rooms, clean"] = [_at(job, None) for job in users]
    for level in options.snr or LEVELS_DB:
        kinds[f"users, in rooms, {level:g} dB"] = [_at(job, level) for job in users]
    show, total, rows = progress(), sum(map(len, kinds.values())), {}
    done = 0
    for name, jobs in kinds.items():
        rows[name] = Errors(0, 0)
        for job in jobs:
            rows[name] += _heard(judge, job, name if options.verbose else "")
            show(name, done := done + 1, total)
    return rows


def _at(job: Job, snr_db: float | None) -> Job:
    if job.conditions is None:
        raise ValueError("a reply is heard as it is")
    return replace(job, conditions=replace(job.conditions, snr_db=snr_db))


def _heard(judge: Judge, job: Job, name: str) -> Errors:
    spoken = speak(job)
    return _compared(job.text, judge.hear(spoken.pcm, spoken.rate), name)


def _compared(text: str, heard: str, name: str) -> Errors:
    errors = word_errors(text, heard)
    if name and errors.errors:
        print(f"{name}: {text!r} was heard as {heard!r}")
    return errors


def _files(judge: Judge, files: Iterable[tuple[str, str]], verbose: bool) -> Errors:
    total = Errors(0, 0)
    for path, text in files:
        try:
            pcm, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as e:
            raise Error(f"'{path}' is no sound file that can be read: {e.error_string}") from e
        total += _compared(text, judge.hear(pcm.mean(axis=1), rate), path if verbose else "")
    return total


def _sample(random: Random, jobs: Sequence[Job], count: int) -> list[Job]:
    return random.sample(list(jobs), min(count, len(jobs)))


def _table(report: dict[str, dict[str, Any]]) -> str:
    head = f"{'':<28}{'WER':>8}{'errors':>8}{'words':>7}"
    return "\n".join([head] + [f"{n:<28}{r['wer']:>8.1%}{r['errors']:>8}{r['words']:>7}" for n, r in report.items()])
