"""Users: hibari at other pitches, tracts and speeds, and the voices of espeak-ng and flite where those are installed.

A person is a pitch and a tract. Every fifth person, and the last voice of each program, is for evaluation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import soxr

from samples.nano.voices import other_voices
from samples.nano.voices.hibari_voice import F0_RATE, HibariVoice, Spoken
from samples.nano.voices.pitch import shifted
from samples.nano.voices.rooms import RATE, Array

PERSONS = 40
_HELD_OUT_EVERY = 5
_OTHER_SHARE = 0.3  # of users that another program speaks


@dataclass(frozen=True)
class Speaker:
    """`tract`: factor of the formants; below 1 a longer vocal tract. `pitch` and `speed` as for the voice."""

    engine: str
    voice: str
    speed: float
    pitch: float = 1.0
    tract: float = 1.0


def draw_speaker(random: Random, held_out: bool, engines: Sequence[str]) -> Speaker:
    """`engines`: the programs that may be used beside hibari."""
    speed = round(random.uniform(0.85, 1.2), 3)
    if engines and random.random() < _OTHER_SHARE:
        engine = random.choice(engines)
        voices = other_voices.VOICES[engine]
        return Speaker(engine, voices[-1] if held_out else random.choice(voices[:-1]), speed)
    return person(random.choice([n for n in range(PERSONS) if (n % _HELD_OUT_EVERY == 0) == held_out]), speed)


def person(number: int, speed: float = 1.0) -> Speaker:
    """Low voices come with long tracts, as people's do, but not all alike."""
    random = Random(f"person/{number}")
    tract = random.uniform(0.86, 1.14)
    pitch = tract**2.5 * random.uniform(0.8, 1.2)
    return Speaker("hibari", f"person {number}", speed, round(pitch, 3), round(tract, 3))


def say(speaker: Speaker, text: str, hibari: HibariVoice) -> Array:
    """Speech, float32 [n] at 16 kHz, as dry as the synthesizer made it."""
    if speaker.engine != "hibari":
        spoken = other_voices.say(speaker.engine, speaker.voice, text, speed=speaker.speed, pitch=speaker.pitch)
        return at_16k(spoken)
    # Read `tract` times as fast, the sound's pitch, formants and speed all rise by it: pitch and speed are set against.
    tract = speaker.tract
    spoken = hibari.say(text, speed=speaker.speed / tract)
    pcm = shifted(spoken.pcm, spoken.rate, spoken.f0, F0_RATE, speaker.pitch / tract)
    return at_16k(Spoken(pcm, spoken.rate), tract)


def at_16k(spoken: Spoken, faster: float = 1.0) -> Array:
    out: Array = soxr.resample(spoken.pcm, spoken.rate * faster, RATE).astype(np.float32)
    return out
