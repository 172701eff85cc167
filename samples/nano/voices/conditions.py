"""What happens to a voice on its way: a room, noise at a level, a distance, silence around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from samples.nano.voices import noises
from samples.nano.voices.rooms import RATE, Array, Place, Shape, path, speech_level_db

ROOMS = 48  # of which every sixth is for evaluation alone
_HELD_OUT_EVERY = 6
_CLEAN_SHARE, _DRY_SHARE = 0.25, 0.25
SNR_DB = {True: (10, 30), False: (5, 30)}  # by whether it is held out: evaluation asks at 10 and 5 dB by themselves


@dataclass(frozen=True)
class Conditions:
    """
    Attributes:
        room: number of a room; None: none at all.
        snr_db: speech over noise, both as `parts` says; None: no noise.
        level_db: of the speech, against full scale.
        lead_s, tail_s: before and behind the speech; noise is there, too.
    """

    room: int | None = None
    noise: str = "pink"
    snr_db: float | None = None
    level_db: float = -26.0
    lead_s: float = 0.2
    tail_s: float = 0.3
    seed: int = 0


def draw_conditions(random: Random, held_out: bool, snr_db: float | None = None) -> Conditions:
    """`snr_db`: fixed, for measurements at one; None draws it, or none at all."""
    numbers = [n for n in range(ROOMS) if (n % _HELD_OUT_EVERY == 0) == held_out]
    room = None if random.random() < _DRY_SHARE else random.choice(numbers)
    noise = random.choice(noises.HELD_OUT if held_out else noises.TRAIN)
    drawn = None if random.random() < _CLEAN_SHARE else round(random.uniform(*SNR_DB[held_out]), 1)
    return Conditions(
        room,
        noise,
        drawn if snr_db is None else snr_db,
        round(random.uniform(-36, -16), 1),
        round(random.uniform(0.1, 0.5), 2),
        round(random.uniform(0.2, 0.5), 2),
        random.randrange(2**31),
    )


def hear(pcm: Array, conditions: Conditions, talk: Sequence[Array] = ()) -> Array:
    """What the microphone gives, float32 [n] in [-1, 1] at 16 kHz. `talk`: see `noises.noise`."""
    speech, noise = parts(pcm, conditions, talk)
    return np.clip(speech + noise, -1, 1).astype(np.float32)


def parts(pcm: Array, conditions: Conditions, talk: Sequence[Array] = ()) -> tuple[Array, Array]:
    """(speech, noise), both float32 [n]. The ratio is that of the speech where somebody speaks (the louder half of its
    frames of 10 ms) to the noise's whole power."""
    c = conditions
    heard = pcm if c.room is None else _convolved(pcm, _response(c.room))
    heard = heard * 10 ** ((c.level_db - speech_level_db(heard)) / 20)
    speech = np.pad(heard, (round(c.lead_s * RATE), round(c.tail_s * RATE))).astype(np.float32)
    if c.snr_db is None:
        return speech, np.zeros_like(speech)
    amplitude = 10 ** ((c.level_db - c.snr_db) / 20)
    return speech, (amplitude * noises.noise(c.noise, c.seed, len(speech), talk)).astype(np.float32)


@lru_cache(maxsize=ROOMS)
def _response(number: int) -> Array:
    shape = room(number)
    return path(shape, shape.user)


def room(number: int) -> Shape:
    """Sizes from a bathroom's to a hall's; the user 0.5 to 2.5 m away; RT60 0.15 to 0.5 s."""
    random = Random(f"room/{number}")
    size = (random.uniform(2, 8), random.uniform(2, 6), random.uniform(2.2, 3.2))
    microphone = _somewhere(random, size, 0.8)
    while True:
        user = _somewhere(random, size, 1.5)
        if 0.5 < math.dist(user, microphone) < 2.5:
            return Shape(size, microphone, microphone, user, random.uniform(0.15, 0.5))


def _somewhere(random: Random, size: Place, height: float) -> Place:
    """Not nearer than 30 cm to a wall."""
    return random.uniform(0.3, size[0] - 0.3), random.uniform(0.3, size[1] - 0.3), height + random.uniform(-0.2, 0.3)


def _convolved(pcm: Array, response: Array) -> Array:
    n = len(pcm) + len(response) - 1
    size = 1 << (n - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(response, size), size)[:n].astype(np.float32)
