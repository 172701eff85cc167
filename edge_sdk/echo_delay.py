"""How late our own sound comes back, beyond what the devices name: a Bluetooth speaker hides 100 to 300 ms.

By generalized cross-correlation with phase transform (C. Knapp, G. Carter, "The generalized correlation method for
estimation of time delay", 1976), over the seconds in which something is played. A filter that needs not span the delay
learns the room sooner.
"""

from __future__ import annotations

import numpy as np

from edge_sdk.audio import SAMPLE_RATE
from edge_sdk.runtime import Array

WINDOW = 16384  # 1 s
STEP = 8192
MAX_DELAY = SAMPLE_RATE // 2
BAND_HZ = (200.0, 4000.0)  # where speech is
MEMORY = 0.7
CLEAR = 12.0  # the peak over the rest's RMS; two that agree are believed
AGREE = SAMPLE_RATE // 500
QUIET_POWER = 1e-5  # of the reference, -50 dBFS


class EchoDelay:
    """Frames of what was played and heard in, the delay out. One thread uses it.

    Attributes:
        samples: the delay of the loudest path at 16 kHz, to a fraction; None until it is known.
    """

    def __init__(self) -> None:
        self.samples: float | None = None
        self._played, self._heard = np.zeros(WINDOW, np.float32), np.zeros(WINDOW, np.float32)
        self._count = 0
        frequency = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
        self._band = (frequency > BAND_HZ[0]) & (frequency < BAND_HZ[1])
        self._cross = np.zeros(len(frequency), np.complex64)
        self._last: int | None = None

    def add(self, played: Array, heard: Array) -> bool:
        """The next frames, float32 [n] of the same moment, n at most STEP. Returns whether `samples` was set."""
        for buffer, frame in ((self._played, played), (self._heard, heard)):
            at = self._count % WINDOW
            head = frame[: WINDOW - at]
            buffer[at : at + len(head)] = head
            buffer[: len(frame) - len(head)] = frame[len(head) :]
        before, self._count = self._count, self._count + len(played)
        if self._count < WINDOW or before // STEP == self._count // STEP:
            return False
        return self._look()

    def _look(self) -> bool:
        if float(np.mean(self._played**2)) < QUIET_POWER:
            return False
        # Both rings begin at the same place, so that the circular correlation needs no unrolling.
        cross = np.fft.rfft(self._heard) * np.conj(np.fft.rfft(self._played))
        phase = np.where(self._band, cross / (np.abs(cross) + 1e-12), 0)
        self._cross = (MEMORY * self._cross + (1 - MEMORY) * phase).astype(np.complex64)
        match = np.abs(np.fft.irfft(self._cross))[:MAX_DELAY]
        at = int(np.argmax(match))
        clear = match[at] > CLEAR * np.sqrt(np.mean(match**2))
        agrees = clear and self._last is not None and abs(at - self._last) <= AGREE
        self._last = at if clear else None
        if agrees:
            self.samples = at + _vertex(*match[at - 1 : at + 2]) if 0 < at < MAX_DELAY - 1 else float(at)
        return bool(agrees)


def _vertex(left: float, top: float, right: float) -> float:
    """Of the parabola through three values, from the middle one."""
    curve = left - 2 * top + right
    return 0.5 * float(left - right) / float(curve) if curve else 0.0
