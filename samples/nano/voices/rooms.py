"""Rooms: box-shaped, by the image-source method; and the noise and levels that go with them. 16 kHz throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

RATE = 16000
FRAME = RATE // 100  # 10 ms, in which levels are taken
SPEED_OF_SOUND = 343.0

Array = np.ndarray[Any, Any]
Place = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """A box-shaped room and who stands where, metres."""

    size: Place
    speaker: Place
    microphone: Place
    user: Place
    reverberation_s: float


def impulse_response(source: Place, microphone: Place, size_m: Place, reverberation_s: float) -> Array:
    """float32 [n] at 16 kHz of a box-shaped room whose walls all reflect alike, by Eyring's formula for its RT60."""
    size = np.array(size_m)
    volume, surface = size.prod(), 2 * (size[0] * size[1] + size[1] * size[2] + size[2] * size[0])
    absorbed = 1 - np.exp(-0.161 * volume / (surface * reverberation_s)) if reverberation_s else 1.0
    reflection = np.sqrt(1 - absorbed)
    n = int(RATE * (reverberation_s + 0.03))
    reach = np.ceil(n / RATE * SPEED_OF_SOUND / (2 * size)).astype(int) if reverberation_s else np.zeros(3, int)
    distances, gains = np.zeros(1), np.ones(1)  # squared; a product over the axes
    for axis in range(3):
        m = np.arange(-reach[axis], reach[axis] + 1)[:, None]
        q = np.arange(2 if reverberation_s else 1)[None]
        offset = ((1 - 2 * q) * source[axis] + 2 * m * size[axis] - microphone[axis]).ravel()
        bounces = (np.abs(m - q) + np.abs(m)).ravel()
        distances = (distances[:, None] + offset[None] ** 2).ravel()
        gains = (gains[:, None] * reflection ** bounces[None]).ravel()
        near = distances < (n / RATE * SPEED_OF_SOUND) ** 2
        distances, gains = distances[near], gains[near]
    distances = np.sqrt(distances)
    at = distances / SPEED_OF_SOUND * RATE
    response = np.zeros(n + 1)
    whole = np.minimum(at.astype(int), n - 1)
    for k, share in ((0, 1 - (at - whole)), (1, at - whole)):  # a fraction of a sample, linearly
        np.add.at(response, whole + k, gains * share / (4 * np.pi * np.maximum(distances, 0.05)))
    return _high_passed(response[:n])


def _high_passed(response: Array, hz: float = 80.0) -> Array:
    """Walls that all reflect in phase sum up to far too much below what a room carries; the authors cut it too."""
    size = 2 * len(response)
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 1e-3)
    kept = np.fft.rfft(response, size) / (1 - 1j * hz / frequency) ** 2  # two real poles: causal
    return np.fft.irfft(kept, size)[: len(response)].astype(np.float32)


def path(shape: Shape, source: Place) -> Array:
    """The impulse response to the microphone, of unit energy from the direct sound on."""
    return _scaled(impulse_response(source, shape.microphone, shape.size, shape.reverberation_s))


def _scaled(response: Array) -> Array:
    """Unit energy from the direct sound on: the distance is in the levels."""
    first = int(np.argmax(np.abs(response) > 0.1 * np.abs(response).max()))
    response = response[first:]
    out: Array = response / np.sqrt(np.sum(response**2))
    return out


def speech_level_db(pcm: Array) -> float:
    """Level of the frames in which somebody speaks: the louder half."""
    frames = pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME)
    power = np.sort((frames**2).mean(axis=1))
    return float(10 * np.log10(power[len(power) // 2 :].mean() + 1e-12))


def pink(random: np.random.Generator, n: int) -> Array:
    """Noise of RMS 1 whose power falls with the frequency."""
    spectrum = np.fft.rfft(random.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / RATE), 50.0)
    noise = np.fft.irfft(spectrum / np.sqrt(frequency), n)
    out: Array = (noise / noise.std()).astype(np.float32)
    return out
