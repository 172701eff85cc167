"""The microphone's side of a link: a device's pieces -> `Heard`, 16 kHz mono, with the speaker's echo taken out."""

from __future__ import annotations

import logging

import numpy as np

from edge_sdk.audio import SAMPLE_RATE, StreamResampler
from edge_sdk.audio_link import Heard
from edge_sdk.device_clock import DeviceClock
from edge_sdk.echo import FRAME_SAMPLES, EchoCanceller
from edge_sdk.echo_delay import EchoDelay
from edge_sdk.echo_level import EchoLevel
from edge_sdk.reference import Reference
from edge_sdk.runtime import Array

LEAST_GAP_S = 0.005  # callbacks are not late by less
MOST_FILLED_S = 2.0  # of a long gap: enough for whoever waits for a pause
ALIGN_S = 0.09  # a delay beyond it is taken off the reference
BEFORE_S = 0.02  # and so much is left of it: what comes before its cause cannot be removed

logger = logging.getLogger(__name__)


class Hearing:
    """One thread uses it. Both devices' times are of one clock.

    Attributes:
        lost_ms: of the microphone's sound, what never came and was filled with silence, or left out of a long gap.
    """

    def __init__(self, canceller: EchoCanceller | None) -> None:
        self._canceller = canceller
        self._reference = Reference()
        self._level = EchoLevel()
        self._delay = EchoDelay()
        self._shift_s = 0.0
        self._end_s: float | None = None  # of what was taken so far
        self._waiting: Array = np.empty(0, np.float32)  # less than a frame
        self._begin(SAMPLE_RATE)
        self.lost_ms = 0.0

    @property
    def realigned(self) -> int:
        """How often the reference had to jump: devices that lost samples, or came anew."""
        return self._reference.jumps

    @property
    def echo_gain_db(self) -> float:
        """What is left of a sound that was played: its level in what is heard less its level as played."""
        return self._level.gain_db

    def played(self, pcm: Array, sample_rate: int, at_s: float) -> None:
        """What the speaker plays, float32 mono [n], silence too; the first sample leaves it at `at_s`."""
        self._reference.add(pcm, sample_rate, at_s)

    def take(self, pcm: Array, sample_rate: int, at_s: float, *, gap: bool = False) -> Heard | None:
        """The microphone's next piece -> what can be heard of it now, whole frames of 10 ms; None if there is none yet.

        Args:
            pcm: float32 [n] or [n, channels], which are averaged.
            at_s: when the first sample was taken.
            gap: samples before it were lost: as many as the clock says are filled in.
        """
        mono = pcm if pcm.ndim == 1 else pcm.mean(axis=1, dtype=np.float32)
        late_s = self._follow(sample_rate, at_s, gap)
        if late_s > LEAST_GAP_S:
            mono = np.concatenate([self._fill(late_s, sample_rate, at_s), mono])
        self._taken += len(mono)
        self._end_s = at_s + len(pcm) / sample_rate
        self._waiting = np.concatenate([self._waiting, self._resampler.feed(mono)])
        whole = len(self._waiting) // FRAME_SAMPLES * FRAME_SAMPLES
        frames, self._waiting = self._waiting[:whole], self._waiting[whole:]
        return self._process(frames) if whole else None

    def close(self) -> None:
        """Let go of the canceller."""
        if self._canceller is not None:
            self._canceller.close()
            self._canceller = None

    def _follow(self, sample_rate: int, at_s: float, gap: bool) -> float:
        """Keep the clock by a piece's time. Returns how much is missing before it, seconds; 0 for what is only late."""
        if sample_rate != self._clock.sample_rate:
            self._begin(sample_rate)
            self._clock.update(0, at_s)
            return 0.0 if self._end_s is None else at_s - self._end_s
        jumps = self._clock.jumps
        late_s = self._clock.update(self._taken, at_s)
        return late_s if gap or self._clock.jumps > jumps else 0.0

    def _fill(self, late_s: float, sample_rate: int, at_s: float) -> Array:
        self.lost_ms += 1e3 * late_s
        self._reference.anchor()
        missing = round(min(late_s, MOST_FILLED_S) * sample_rate)
        self._clock = DeviceClock(sample_rate)
        self._clock.update(self._taken + missing, at_s)
        return np.zeros(missing, np.float32)

    def _process(self, samples: Array) -> Heard:
        out = np.empty_like(samples)
        playing, echo_db = False, -np.inf
        at_s = 0.0
        for first in range(0, len(samples), FRAME_SAMPLES):
            part = slice(first, first + FRAME_SAMPLES)
            self._heard += FRAME_SAMPLES
            at_s = self._clock.time(self._heard * self._clock.sample_rate / SAMPLE_RATE)
            played = self._reference.frame(at_s - self._shift_s, FRAME_SAMPLES)
            frame = samples[part]
            self._align(played, frame)
            out[part] = frame if self._canceller is None else self._canceller.process(frame, played)
            may_be, level = self._level.update(played, out[part])
            playing, echo_db = playing or may_be, max(echo_db, level)
        return Heard(out, at_s, playing, echo_db)

    def _align(self, played: Array, frame: Array) -> None:
        """A delay that is long, or has changed, is taken off the reference; the canceller learns the room anew."""
        if self._canceller is None or self._canceller.finds_delay or not self._delay.add(played, frame):
            return
        late = self._delay.samples or 0.0
        self._reference.echo_comes(late)
        more_s = late / SAMPLE_RATE - BEFORE_S
        if more_s > ALIGN_S or (more_s < -BEFORE_S / 2 and self._shift_s > 0):
            self._shift_s = max(0.0, self._shift_s + more_s)
            self._delay = EchoDelay()
            self._reference.anchor()
            self._canceller.reset()
            logger.info("the echo comes %.0f ms later than the devices say", 1e3 * (self._shift_s + BEFORE_S))

    def _begin(self, sample_rate: int) -> None:
        self._clock = DeviceClock(sample_rate)
        self._resampler = StreamResampler(sample_rate, SAMPLE_RATE, "the microphone", low_delay=True)
        self._taken = self._heard = 0  # samples at the device's rate; at 16 kHz
        self._waiting = np.empty(0, np.float32)
