"""Noise from seeds, RMS 1, 16 kHz. Two kinds are for evaluation alone: nothing trains in rain or beside engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from samples.nano.voices.rooms import RATE, Array, pink

TRAIN, HELD_OUT = ("pink", "white", "hum", "babble"), ("rain", "engine")
_TALKERS = 6


def noise(kind: str, seed: int, n: int, talk: Sequence[Array]) -> Array:
    """float32 [n]. `talk`: what the people of "babble" say, float32 arrays at 16 kHz."""
    random = np.random.default_rng(seed)
    made = _babble(random, n, talk) if kind == "babble" else _KINDS[kind](random, n)
    out: Array = (made / np.sqrt(np.mean(made**2) + 1e-12)).astype(np.float32)
    return out


def _white(random: np.random.Generator, n: int) -> Array:
    return random.standard_normal(n)


def _hum(random: np.random.Generator, n: int) -> Array:
    """The mains and its harmonics, over a little noise."""
    t = np.arange(n) / RATE
    base = random.choice((50.0, 60.0)) * (1 + random.uniform(-0.002, 0.002))
    tones = sum(np.sin(2 * np.pi * (base * k * t + random.random())) / k for k in range(1, 12))
    return np.asarray(tones + 0.1 * pink(random, n))


def _babble(random: np.random.Generator, n: int, talk: Sequence[Array]) -> Array:
    out = np.zeros(n)
    for _ in range(_TALKERS):
        said = talk[int(random.integers(len(talk)))]
        at = (np.arange(n) + int(random.integers(len(said)))) % len(said)
        out += random.uniform(0.5, 1.0) * said[at]
    return out


def _rain(random: np.random.Generator, n: int) -> Array:
    """Drops: short bursts of bright noise, over a steady hiss."""
    hits = (random.random(n) < 80 / RATE) * random.exponential(1.0, n)
    drop = np.exp(-np.arange(160) / 24.0)
    bursts = np.convolve(hits, drop)[:n] * random.standard_normal(n)
    return np.diff(0.3 * random.standard_normal(n) + 4 * bursts, prepend=0.0)


def _engine(random: np.random.Generator, n: int) -> Array:
    """A slow pulse whose speed wanders, with its harmonics, and wind."""
    speed = 32.0 + 4.0 * np.sin(2 * np.pi * (np.arange(n) / RATE * 0.3 + random.random()))
    phase = np.cumsum(speed) / RATE
    tones = sum(np.sin(2 * np.pi * (k * phase + random.random())) / np.sqrt(k) for k in range(1, 24))
    return np.asarray(tones + pink(random, n))


_KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "pink": pink,
    "white": _white,
    "hum": _hum,
    "rain": _rain,
    "engine": _engine,
}
