"""What the speaker played, at the microphone's pace: the reference of the echo canceller.

Microphone and speaker may be two devices, each with its own crystal: samples are matched by when they passed, and the
reference is read a little faster or slower than it was written (`edge_sdk.pace` knows how much).
"""

from __future__ import annotations

import functools

import numpy as np

from edge_sdk.audio import SAMPLE_RATE, StreamResampler
from edge_sdk.device_clock import DeviceClock
from edge_sdk.pace import Pace
from edge_sdk.runtime import Array

BUFFER_S = 4.0
LEAD_S = 0.02  # read early: devices name their delays a little wrong, and an echo before its cause cannot be removed
BEFORE = 8  # samples on each side of a fraction
PHASES = 512


class Reference:
    """Played sound in, frames of it out, float32 mono at 16 kHz. One thread uses it.

    Attributes:
        jumps: how often the reading had to jump, after which a canceller learns the delay anew.
    """

    def __init__(self) -> None:
        self._ring = np.zeros(int(BUFFER_S * SAMPLE_RATE), np.float32)
        self._pace = Pace()
        self._at: float | None = None  # the next sample to read
        self.jumps = 0
        self._begin(SAMPLE_RATE)

    @property
    def drift_ppm(self) -> float:
        """How much faster the speaker's crystal runs than the microphone's, as far as is known."""
        return self._pace.drift * 1e6

    def add(self, pcm: Array, sample_rate: int, at_s: float) -> None:
        """`pcm`, float32 mono [n], follows what was added before; its first sample leaves the speaker at `at_s`."""
        jumps = self._clock.jumps
        if sample_rate != self._clock.sample_rate or self._clock.update(self._added, at_s) > 1.0:
            self._begin(sample_rate)
            self._clock.update(0, at_s)
        elif self._clock.jumps != jumps:
            self.anchor()
        self._added += len(pcm)
        self._write(self._resampler.feed(pcm))

    def anchor(self) -> None:
        """The clocks tell something new: the place of reading is taken from them with the next frame."""
        if self._at is not None:
            self.jumps += 1
        self._at = None

    def echo_comes(self, late_samples: float) -> None:
        """How late the echo of what is read now was found to be: what tells the crystals apart."""
        self._pace.echo_comes(late_samples)

    def frame(self, at_s: float, n: int) -> Array:
        """What left the speaker in the `n` samples up to `at_s` (LEAD_S later, rather), float32 [n]."""
        if not self._clock.started:
            return np.zeros(n, np.float32)
        wanted = self._clock.count(at_s + LEAD_S) * SAMPLE_RATE / self._clock.sample_rate - n
        if self._at is None:
            self._at = wanted
            self._pace.restart()
        jump, pace = self._pace.follow(wanted - self._at, n)
        if jump:
            self.jumps += 1
            self._at += jump
        where = self._at + pace * np.arange(n)
        self._at += pace * n
        return self._read(where)

    def _begin(self, sample_rate: int) -> None:
        self.anchor()
        self._clock = DeviceClock(sample_rate)
        self._resampler = StreamResampler(sample_rate, SAMPLE_RATE, "the speaker", low_delay=True)
        self._added = self._written = 0

    def _write(self, pcm: Array) -> None:
        pcm = pcm[-len(self._ring) :]
        at = self._written % len(self._ring)
        head = pcm[: len(self._ring) - at]
        self._ring[at : at + len(head)] = head
        self._ring[: len(pcm) - len(head)] = pcm[len(head) :]
        self._written += len(pcm)

    def _read(self, where: Array) -> Array:
        """Between samples; silence where nothing was written, or what was is gone."""
        first = int(np.floor(where[0]))
        near = self._sample(np.arange(first - BEFORE + 1, int(np.floor(where[-1])) + BEFORE + 1))
        return between(near, where - first)

    def _sample(self, index: Array) -> Array:
        there = (index >= max(0, self._written - len(self._ring))) & (index < self._written)
        samples: Array = np.where(there, self._ring[index % len(self._ring)], np.float32(0))
        return samples


def between(pcm: Array, where: Array) -> Array:
    """`pcm` at fractions: `where` 0 is its sample BEFORE - 1, and BEFORE follow the last. By windowed sincs."""
    whole = np.floor(where).astype(np.int64)
    weights = _sincs()[np.rint((where - whole) * PHASES).astype(np.int64)]
    out: Array = np.einsum("nk,nk->n", np.lib.stride_tricks.sliding_window_view(pcm, 2 * BEFORE)[whole], weights)
    return out


@functools.cache
def _sincs() -> Array:
    """float32 [PHASES + 1, 2 * BEFORE]: the weights of a fraction's neighbours; Kaiser's window, beta 7."""
    away = np.arange(1 - BEFORE, BEFORE + 1)[None] - np.arange(PHASES + 1)[:, None] / PHASES
    window = np.i0(7.0 * np.sqrt(np.maximum(0, 1 - (away / BEFORE) ** 2))) / np.i0(7.0)
    table: Array = (np.sinc(away) * window).astype(np.float32)
    return table
