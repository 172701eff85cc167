"""The excitation of the waveform part: harmonics of f0 and seeded noise, in upstream's mixture of precisions.

The phase is an integral of f0, so its arithmetic is part of the result: turns per frame in float32, their running sum
in float64 but each value rounded to float32, the rest of the phase in float32 (docs/vocoder.md). Half precision is
no option here, on any device: this stays on the host.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from edge_sdk.config import WaveformConfig
from edge_sdk.runtime import Array

_SKIP_BLOCK = 1 << 20
_f4 = np.float32


@lru_cache(maxsize=8)
def _noise_start(skip: int) -> dict[str, Any]:
    """The state of MT19937, seeded with 0, after `skip` draws. Worked out once a process (5 million: 15 ms)."""
    generator = np.random.RandomState(0)
    for at in range(0, skip, _SKIP_BLOCK):
        generator.randint(0, 1 << 32, size=min(_SKIP_BLOCK, skip - at), dtype=np.uint32)
    return dict(generator.get_state(legacy=False))


def noise_generator(config: WaveformConfig) -> np.random.RandomState:
    """The generator that stands before the first value of the excitation's noise."""
    generator = np.random.RandomState(0)
    generator.set_state(_noise_start(config.source_noise_skip))
    return generator


def uniform_noise(generator: np.random.RandomState, count: int) -> Array:
    """The next `count` uniforms in [0, 1), float32: 24 bits of each draw, as torch makes them."""
    draws = generator.randint(0, 1 << 32, size=count, dtype=np.uint32)
    return (draws & 0xFFFFFF).astype(_f4) * _f4(2.0**-24)


class Excitation:
    """One stream's running phases and noise. Frames come in order; the noise starts at the stream's first sample."""

    def __init__(self, config: WaveformConfig) -> None:
        self._config = config
        self._multiples = np.arange(1, config.harmonics + 2, dtype=_f4)
        self.reset()

    def reset(self) -> None:
        self._turns = np.zeros(len(self._multiples))
        self._generator = noise_generator(self._config)

    def frames(self, f0: Array) -> Array:
        """f0 of the next n frames, float64 [n] in Hz -> float32 [n * samples_per_frame, harmonics + 1].

        Per harmonic a sine, and uniform noise: faint where the frame is voiced, a third of the sine's amplitude where
        it is not.
        """
        c = self._config
        hertz = f0.astype(_f4)
        voiced = hertz > _f4(c.voiced_threshold_hz)
        sine = self._running(hertz) if c.running_phase else self._held(hertz)
        sine *= voiced[:, None, None]
        level = np.where(voiced, _f4(c.noise_sigma), _f4(c.sine_amplitude) / _f4(3))
        width = len(self._multiples)
        rows = uniform_noise(self._generator, len(f0) * c.samples_per_frame * width)
        rows = rows.reshape(len(f0), c.samples_per_frame, width)
        rows *= level[:, None, None]
        rows += sine
        return rows.reshape(-1, width)

    def _held(self, hertz: Array) -> Array:
        """Sines that keep one value through a frame, which is what upstream's upsampling makes of them:
        float32 [n, 1, harmonics + 1]."""
        c = self._config
        turns = np.mod(hertz[:, None] * self._multiples / _f4(c.sample_rate), _f4(1))
        # The first addition in the sum is to what came before, so that any cutting into calls adds in the same order.
        total = np.cumsum(np.concatenate([self._turns[None], turns.astype(np.float64)]), axis=0)
        self._turns = total[-1]
        phase = total[1:].astype(_f4) * _f4(2) * _f4(np.pi) * _f4(c.samples_per_frame)
        # Arguments reach millions of radians: a float64 sine, rounded, is the same on every machine.
        sine: Array = _f4(c.sine_amplitude) * np.sin(phase.astype(np.float64)).astype(_f4)
        return sine[:, None, :]

    def _running(self, hertz: Array) -> Array:
        """Sines of a frame's f0 that go on from where the frame before ended: float32 [n, samples, harmonics + 1].

        Turns in float64, whole ones taken off at each frame's end, so that they stay exact however long it lasts.
        """
        c = self._config
        a_sample = hertz[:, None].astype(np.float64) * self._multiples / c.sample_rate
        begin = np.empty_like(a_sample)
        for k, turns in enumerate(a_sample * c.samples_per_frame):
            begin[k] = self._turns
            self._turns = np.mod(self._turns + turns, 1.0)
        samples = np.arange(1, c.samples_per_frame + 1)[:, None]
        turns = begin[:, None, :] + a_sample[:, None, :] * samples
        sine: Array = _f4(c.sine_amplitude) * np.sin(2 * np.pi * turns).astype(_f4)
        return sine
