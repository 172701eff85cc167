"""Held-out questions, and how they sound: said by held-out users in held-out rooms, rendered when they are asked for.

The clips are those that `python -m samples.nano render --set users --split held_out [--snr DB]` writes, to the sample
but for the 16 bits of its files: the same seed, users, rooms and noises.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

import soundfile
import soxr

from edge_sdk.errors import Error
from samples.nano.stages.asking import INPUT_RATE_HZ
from samples.nano.stages.data import Item
from samples.nano.texts.dialogues import Dialogue
from samples.nano.texts.store import read_dialogues
from samples.nano.voices import other_voices
from samples.nano.voices.conditions import SNR_DB
from samples.nano.voices.jobs import Job, user_jobs
from samples.nano.voices.packages import file_sha256
from samples.nano.voices.render import VERSION, speak
from samples.nano.voices.rooms import Array
from samples.nano.voices.shards import read_manifest

NATURAL = "natural"  # each question with the noise that was drawn for it, or none
LEVELS_DB = (20, 10, 5)
CONDITIONS = (NATURAL, *(f"{level} dB" for level in LEVELS_DB))
TYPED = "typed"  # written questions: what is lost beyond that is lost in hearing
_CLIPS = 4096  # kept in memory; of two seconds each, half a gigabyte


def draw_items(path: Path, count: int, seed: int) -> list[Item]:
    """`count` assistant turns of the dialogues in a file, drawn over all of them; fewer if there are fewer."""
    found = [Item(d, n) for d in read_dialogues(path) for n, turn in enumerate(d.turns) if turn.role == "assistant"]
    if not found:
        raise Error(f"'{path}' has no assistant's turn to ask for")
    return Random(f"score/{seed}").sample(found, min(count, len(found)))


def level_of(condition: str) -> float | None:
    """Signal to noise in dB that a condition fixes, None for the natural mix."""
    return None if condition == NATURAL else float(condition.removesuffix(" dB"))


def engines_of(work: Path) -> tuple[str, ...]:
    """The programs that spoke users when WORK was rendered; those that are installed where it was not."""
    folder = work / "speech" / "users"
    if not (folder / "manifest.json").is_file():
        return other_voices.installed()
    used = tuple(read_manifest(folder)["recipe"]["programs"])
    missing = [engine for engine in used if engine not in other_voices.installed()]
    if missing:
        raise Error(f"'{folder}' was rendered with {', '.join(missing)}: install it, so that the same users ask")
    return used


class HeldOutUsers:
    """`stages.data.Sounds` of questions alone, one take each.

    Args:
        texts: folder of the dialogues.
        seed: of `render`.
    """

    takes = 1

    def __init__(self, texts: Path, condition: str, engines: Sequence[str], seed: int = 1) -> None:
        jobs = user_jobs(texts, seed, engines, splits=["held_out"], snr_db=level_of(condition))
        self._jobs = {job.text: job for job in jobs}
        drawn = "{} to {} dB".format(*SNR_DB[True])
        self.told = f"render {VERSION}, seed {seed}, {', '.join(engines)}, {drawn}"

    def question(self, text: str, take: int) -> Array | None:
        job = self._jobs.get(text)
        return None if job is None else _said(job)

    def reply(self, text: str) -> Array | None:
        return None

    def starts_s(self, text: str) -> Sequence[float]:
        return ()


@lru_cache(maxsize=_CLIPS)
def _said(job: Job) -> Array:
    return speak(job).pcm


class Recordings:
    """Sound files of a folder, each the question of one dialogue; a dialogue is known by its file's name.

    `stages.data.Sounds` of questions alone. Files are WAV or FLAC, of any rate and number of channels.
    """

    takes = 1

    def __init__(self, folder: Path, dialogues: Sequence[Dialogue]) -> None:
        found = {d.id: _file(folder, d.id) for d in dialogues}
        self.dialogues = [d for d in dialogues if found[d.id]]
        self.missing = [d.id for d in dialogues if not found[d.id]]
        if not self.dialogues:
            raise Error(f"'{folder}' has none of the recordings {', '.join(self.missing[:4])}, ... as .wav or .flac")
        self.told = " ".join(file_sha256(path) for path in found.values() if path)
        self._files = {d.turns[0].text: path for d in self.dialogues if (path := found[d.id])}

    @property
    def items(self) -> list[Item]:
        return [Item(d, n) for d in self.dialogues for n, turn in enumerate(d.turns) if turn.role == "assistant"]

    def question(self, text: str, take: int) -> Array | None:
        path = self._files.get(text)
        return None if path is None else read_sound(path)

    def reply(self, text: str) -> Array | None:
        return None

    def starts_s(self, text: str) -> Sequence[float]:
        return ()


def read_sound(path: Path) -> Array:
    """PCM float32 [n] at 16 kHz, channels averaged."""
    try:
        pcm, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as e:
        raise Error(f"'{path}' is no sound file that can be read: {e.error_string}") from e
    mono: Array = pcm.mean(axis=1)
    return mono if rate == INPUT_RATE_HZ else soxr.resample(mono, rate, INPUT_RATE_HZ)


def _file(folder: Path, stem: str) -> Path | None:
    return next((p for ending in ("wav", "flac") if (p := folder / f"{stem}.{ending}").is_file()), None)
