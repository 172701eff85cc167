"""The reply voice's rendered speech as the codec takes it: whole codes of 40 ms, f0 at the mel's frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import Error
from samples.nano.settings import Sound
from samples.nano.voices.hibari_voice import F0_RATE, Spoken
from samples.nano.voices.shards import read_shards

TRAIN, HELD_OUT = "train", "held_out"
TURN = 1 << 16
_SENTENCE_ENDS = re.compile(r"[.!?].")  # and another begins
_VOICED_HZ = 40.0  # below this the synthesizer's f0 means no voice

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Utterance:
    """One reply. pcm float32 [N] at 24 kHz; f0_hz float32 [frames] of 20 ms, 0: no voice; curve float32 [frames] of
    12.5 ms: the synthesizer's own f0, empty where it was not one sentence (with each its phase begins anew)."""

    text: str
    split: str
    pcm: Array
    f0_hz: Array
    curve: Array = field(default_factory=lambda: np.zeros(0, np.float32))


def replies(work: Path, sound: Sound, split: str | None = None) -> Iterator[Utterance]:
    """Every rendered reply (`split`: of that one). Raises Error if none was rendered."""
    for shard in read_shards(work / "speech" / "replies"):
        if all(split not in (None, clip["job"]["split"]) for clip in shard.told):
            continue  # nothing to decode
        for clip in shard.clips():
            if split in (None, clip.asked["split"]):
                yield utterance(clip.text, str(clip.asked["split"]), clip.spoken, sound)


def utterance(text: str, split: str, spoken: Spoken, sound: Sound) -> Utterance:
    """The same sound, silence behind it until its last code is whole."""
    if spoken.rate != sound.output_rate_hz:
        raise Error(f"replies are spoken at {spoken.rate} Hz, the vocoder makes {sound.output_rate_hz}")
    token = sound.hop_samples * sound.frames_per_token
    pcm = np.pad(spoken.pcm, (0, -len(spoken.pcm) % token))
    f0 = resampled_f0(spoken.f0, len(pcm) // sound.hop_samples, sound.frame_rate_hz)
    curve = np.zeros(0, np.float32) if _SENTENCE_ENDS.search(text.strip()) else spoken.f0
    return Utterance(text, split, pcm, f0, curve)


def fundamental_turns(curve: Array, samples: int, rate_hz: int) -> Array:
    """Where in its period the synthesizer's pulse train is at each sample, uint16 [samples] in 1 / TURN of a period.

    Its phase is its f0 curve, taken between the middles of its frames and never below _VOICED_HZ, summed up.
    """
    middles = (np.arange(len(curve)) + 0.5) * rate_hz / F0_RATE - 0.5
    hertz = np.interp(np.arange(samples), middles, curve).clip(min=_VOICED_HZ)
    return (np.mod(np.cumsum(hertz) / rate_hz, 1.0) * TURN).astype(np.uint16)


def resampled_f0(f0: Array, frames: int, rate_hz: int) -> Array:
    """The synthesizer's curve at the middles of `frames` mel frames, float32, 0 behind its end. Only between two
    voiced values is anything interpolated."""
    at = (np.arange(frames) + 0.5) * F0_RATE / rate_hz - 0.5
    curve = np.pad(f0, (0, max(0, int(np.ceil(at[-1])) + 1 - len(f0)))) if frames else f0
    left, right, nearest = (curve[part(at).clip(0).astype(int)] for part in (np.floor, np.ceil, np.round))
    between = np.interp(at, np.arange(len(curve)), curve)
    smooth = np.minimum(left, right) > _VOICED_HZ
    return np.where(nearest > _VOICED_HZ, np.where(smooth, between, nearest), 0).astype(np.float32)
