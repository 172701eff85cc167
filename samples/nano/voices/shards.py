"""Rendered speech in shards, written so that a killed rendering goes on where it was, and read by clip.

shard-00003.flac     the clips' samples one after the other, 16 bits
shard-00003.f0.npy   their pitch curves, float32, where the voice tells them
shard-00003.json     each clip's text, length and conditions, hashes; written last: with it a shard is whole
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from edge_sdk.errors import Error
from samples.nano.voices.hibari_voice import Spoken
from samples.nano.voices.packages import file_sha256
from samples.nano.voices.rooms import Array


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip as it was stored; `asked` is the job it answers."""

    text: str
    spoken: Spoken
    asked: dict[str, Any]


def fingerprint(recipe: dict[str, Any], jobs: Sequence[Any]) -> str:
    """Of all that decides a shard's samples."""
    asked = [asdict(job) for job in jobs]
    return hashlib.sha256(json.dumps([recipe, asked], sort_keys=True).encode()).hexdigest()


def is_whole(folder: Path, number: int, asked: str) -> bool:
    """Whether a shard is there, answers this fingerprint, and has the bytes it was written with."""
    names = _names(folder, number)
    try:
        told = json.loads(names["json"].read_text(encoding="utf-8"))
        return told["asked"] == asked and all(file_sha256(folder / n) == h for n, h in told["sha256"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def write_shard(folder: Path, number: int, asked: str, jobs: Sequence[Any], spoken: Sequence[Spoken]) -> None:
    names = _names(folder, number)
    rate = spoken[0].rate
    pcm = np.concatenate([np.clip(np.rint(s.pcm * 32768), -32768, 32767).astype(np.int16) for s in spoken])
    parts = {kind: path.with_name(f".{path.name}.part") for kind, path in names.items()}
    soundfile.write(parts["flac"], pcm, rate, subtype="PCM_16", format="FLAC")
    with parts["f0"].open("wb") as file:
        np.save(file, np.concatenate([s.f0 for s in spoken]).astype(np.float32))
    clips = [
        {"samples": len(s.pcm), "frames": len(s.f0), "word_starts_s": s.word_starts_s, "job": asdict(job)}
        for job, s in zip(jobs, spoken, strict=True)
    ]
    hashes = {names[kind].name: file_sha256(parts[kind]) for kind in ("flac", "f0")}
    told = {"asked": asked, "rate": rate, "sha256": hashes, "clips": clips}
    parts["json"].write_text(json.dumps(told) + "\n", encoding="utf-8")
    for kind in ("flac", "f0", "json"):
        parts[kind].replace(names[kind])


@dataclass(frozen=True, eq=False)
class Shard:
    """A whole shard; its sound is decoded when its clips are asked for.

    Args:
        names: its files by kind.
        rate: of its sound, Hz.
        told: what its JSON says of each clip: "samples", "frames", "word_starts_s", and "job" that it answers.
    """

    names: dict[str, Path]
    rate: int
    told: list[dict[str, Any]]

    def clips(self) -> Iterator[Clip]:
        pcm: Array = soundfile.read(self.names["flac"], dtype="float32")[0]
        f0 = np.load(self.names["f0"], allow_pickle=False)
        at = frame = 0
        for clip in self.told:
            samples, frames = clip["samples"], clip["frames"]
            starts = tuple(clip["word_starts_s"])
            spoken = Spoken(pcm[at : at + samples], self.rate, f0[frame : frame + frames], starts)
            yield Clip(clip["job"]["text"], spoken, clip["job"])
            at, frame = at + samples, frame + frames


def read_shards(folder: Path, check: bool = True) -> Iterator[Shard]:
    """Every shard of a rendered folder, in the order of the texts.

    Args:
        check: compare hashes.

    Raises:
        Error: nothing was rendered there, it was not finished, or a file is damaged.
    """
    manifest = read_manifest(folder)
    for number in range(manifest["shards"]):
        names = _names(folder, number)
        if not names["json"].is_file():
            raise Error(f"'{folder}' lacks shard {number} of {manifest['shards']}: run the same render command again")
        told = json.loads(names["json"].read_text(encoding="utf-8"))
        for name, sha256 in told["sha256"].items() if check else ():
            if file_sha256(folder / name) != sha256:
                raise Error(f"'{folder / name}' is damaged: run the same render command again")
        yield Shard(names, told["rate"], told["clips"])


def read_clips(folder: Path) -> Iterator[Clip]:
    """Every clip of a rendered folder; raises as `read_shards` does."""
    for shard in read_shards(folder):
        yield from shard.clips()


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return value
    except (OSError, ValueError) as e:
        raise Error(f"'{folder}' has no manifest.json that can be read: run python -m samples.nano render first") from e


def _names(folder: Path, number: int) -> dict[str, Path]:
    stem = f"shard-{number:05}"
    return {kind: folder / f"{stem}.{ending}" for kind, ending in _ENDINGS}


_ENDINGS = (("flac", "flac"), ("f0", "f0.npy"), ("json", "json"))
