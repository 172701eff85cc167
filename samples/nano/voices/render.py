"""Renders what is said: replies in one voice, questions by many users in rooms and noise. Goes on where it was stopped.

The clips lie in shards below OUT/replies and OUT/users; a shard that is whole and answers what is asked is kept, so a
killed command run again does only what is left. --seed and the texts tell every sample.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from edge_sdk.commands.output import progress
from edge_sdk.errors import Error
from samples.nano import arguments
from samples.nano.texts.plain import stories
from samples.nano.texts.train_tokenizer import read_tokenizer
from samples.nano.voices import other_voices
from samples.nano.voices.conditions import hear
from samples.nano.voices.grid_report import grid_report
from samples.nano.voices.hibari_voice import HibariVoice, Spoken
from samples.nano.voices.jobs import SETS, SPLITS, Job, reply_jobs, user_jobs
from samples.nano.voices.packages import HIBARI, model_file
from samples.nano.voices.rooms import RATE, Array
from samples.nano.voices.shards import fingerprint, is_whole, read_clips, write_shard
from samples.nano.voices.speakers import PERSONS, person, say

VERSION = 1  # of what the samples depend on beside the seed; raised when a sound changes
_TALKERS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", choices=SETS, action="append", help="render this alone (default: both)")
    parser.add_argument("--split", choices=SPLITS, action="append", help="of this split alone (default: both)")
    parser.add_argument("--texts", type=Path, help="folder of the texts (default: texts in the work folder)")
    parser.add_argument("--out", type=Path, help="folder of the sound (default: speech in the work folder)")
    parser.add_argument("--seed", type=int, default=1, help="of users and what they are heard in (default: 1)")
    parser.add_argument("--takes", type=arguments.takes, default=1, help="users that say each question (default: 1)")
    parser.add_argument("--limit", type=int, help="render the first clips of each set alone")
    parser.add_argument(
        "--snr",
        type=float,
        metavar="DB",
        help="all users at this (default: 5 to 30, held out from 10, and clean)",
    )
    parser.add_argument("--hibari-only", action="store_true", help="no espeak-ng or flite, though they be installed")
    parser.add_argument("--shard", type=int, default=256, metavar="CLIPS", help="clips a shard (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def run(options: argparse.Namespace) -> int:
    if min(options.shard, options.jobs) < 1:
        raise Error("--shard and --jobs must be at least 1")
    if options.limit is not None and options.limit < 1:
        raise Error(f"--limit must be at least 1, found {options.limit}")
    if options.snr is not None and not math.isfinite(options.snr):
        raise Error(f"--snr must be a number of dB, found {options.snr}")
    texts, out = options.texts or options.work / "texts", options.out or options.work / "speech"
    splits = tuple(options.split or SPLITS)
    engines = () if options.hibari_only else other_voices.installed()
    report = {}
    for name in options.set or SETS:
        if name == "replies":
            jobs, used = reply_jobs(texts, splits), ()
        else:
            jobs = user_jobs(texts, options.seed, engines, splits=splits, takes=options.takes, snr_db=options.snr)
            used = engines
        report[name] = render(out / name, jobs[: options.limit], used, clips=options.shard, processes=options.jobs)
        tokenizer = options.work / "tokenizer"
        if name == "replies" and (tokenizer / "tokenizer.json").is_file():
            report[name]["grid"] = grid_report(read_clips(out / name), read_tokenizer(tokenizer))
    if options.json:
        print(json.dumps(report))
    else:
        print("\n".join(line for name, told in report.items() for line in _readable(told, out / name)))
    return 0


def _readable(told: dict[str, Any], folder: Path) -> Iterator[str]:
    yield f"{folder.name}: {told['clips']} clips, {told['seconds'] / 60:.1f} minutes, in {folder}"
    yield f"    {told['rendered']} shards made, {told['kept']} kept; voices: {', '.join(told['voices'])}"
    if "grid" in told:
        yield "    on the 5 Hz grid: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in told["grid"].items())


def render(
    folder: Path, jobs: Sequence[Job], engines: Sequence[str] = (), *, clips: int = 256, processes: int = 1
) -> dict[str, Any]:
    """Render what is missing of `jobs`. Returns figures: clips, seconds of sound, shards rendered and kept, voices."""
    if not jobs:
        raise Error("there is nothing to render: the texts are empty")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(engines)
    parts = [jobs[at : at + clips] for at in range(0, len(jobs), clips)]
    asked = [fingerprint(recipe, part) for part in parts]
    todo = [n for n in range(len(parts)) if not is_whole(folder, n, asked[n])]
    manifest = {"version": VERSION, "recipe": recipe, "clips": len(jobs), "shards": len(parts), "asked": asked}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    show, done = progress(), len(parts) - len(todo)
    for _ in _each(partial(_render_shard, folder), [(n, asked[n], parts[n]) for n in todo], processes):
        done += 1
        show(f"{folder.name}: shard {done} of {len(parts)}", done, len(parts))
    figures = {"clips": len(jobs), "seconds": _seconds(folder, len(parts))}
    return figures | {"rendered": len(todo), "kept": len(parts) - len(todo), "voices": ["hibari", *engines]}


def _recipe(engines: Sequence[str]) -> dict[str, Any]:
    """What a clip's samples depend on beside its job."""
    model_file(HIBARI)
    versions = {engine: other_voices.version(engine) for engine in engines}
    return {"version": VERSION, "hibari": {"package": HIBARI[0], "sha256": HIBARI[3]}, "programs": versions}


def _each(work: Callable[[Any], None], items: Sequence[Any], processes: int) -> Iterable[None]:
    if processes == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, items)


def _render_shard(folder: Path, item: tuple[int, str, Sequence[Job]]) -> None:
    number, asked, jobs = item
    write_shard(folder, number, asked, jobs, [speak(job) for job in jobs])


def speak(job: Job) -> Spoken:
    """One clip: a reply at 24 kHz with pitch and word times, or a user at 16 kHz as the microphone hears them."""
    if job.speaker is None:
        return _hibari().say(job.text)
    dry = say(job.speaker, job.text, _hibari())
    if job.conditions is None:
        return Spoken(dry, RATE)
    return Spoken(hear(dry, job.conditions, _talk()), RATE)


@lru_cache(maxsize=1)
def _hibari() -> HibariVoice:
    return HibariVoice()


@lru_cache(maxsize=1)
def _talk() -> tuple[Array, ...]:
    """What babble is made of: people telling stories."""
    told: Iterator[str] = stories(seed=0, count=_TALKERS)
    return tuple(say(person(n % PERSONS), story, _hibari()) for n, story in enumerate(told, 1))


def _seconds(folder: Path, shards: int) -> float:
    total = 0.0
    for number in range(shards):
        told = json.loads((folder / f"shard-{number:05}.json").read_text(encoding="utf-8"))
        total += sum(clip["samples"] for clip in told["clips"]) / told["rate"]
    return round(total, 1)
