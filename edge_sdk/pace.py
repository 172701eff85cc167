"""Where and how fast the echo canceller's reference is read.

The times that devices name wander by milliseconds, which a canceller cannot follow: what counts is that the echo's
delay stands still. So the clocks say where to read, and are believed again only when they are far off for long; how
fast is told by the echo itself, whose delay is found to a fraction of a sample.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from edge_sdk.audio import SAMPLE_RATE

JUMP_SAMPLES = 640  # 40 ms off, by the clocks, for
JUMP_S = 3
FIT = 40  # echoes found, two a second while something is played
LEAST_FIT = 6
OTHER_SAMPLES = 8.0  # another path of the echo, or another delay: no drift is so fast
MAX_DRIFT = 5e-4
PULL_S, MAX_PULL = 20.0, 2e-5  # how slowly a delay that has moved is brought back


class Pace:
    """Frame by frame: how far to jump, and how much faster than the microphone to read.

    Attributes:
        drift: of the speaker's crystal over the microphone's; 0 until it shows.
    """

    def __init__(self) -> None:
        self.drift = 0.0
        self._off: deque[float] = deque(maxlen=JUMP_S)
        self._read = 0  # samples
        self._moved = 0.0  # by paces, samples
        self._found: deque[tuple[int, float]] = deque(maxlen=FIT)
        self._last = self._pull = 0.0
        self._place: float | None = None
        self.restart()

    def restart(self) -> None:
        """The reading was placed anew. What is known of the crystals stays."""
        self._off.clear()
        self._sum, self._frames, self._samples = 0.0, 0, 0
        self._forget()

    def follow(self, off: float, n: int) -> tuple[float, float]:
        """A frame of `n` samples begins, `off` samples before where the clocks would have it.

        Returns:
            (how far to jump first; samples to go on for each sample).
        """
        self._sum += off
        self._frames += 1
        self._samples += n
        self._read += n
        jump = self._second() if self._samples >= SAMPLE_RATE else 0.0
        pace = 1 + self.drift + self._pull
        self._moved += (pace - 1) * n
        return jump, pace

    def echo_comes(self, late: float) -> None:
        """The echo was found `late` samples after what is read now."""
        if self._found and abs(late - self._last) > OTHER_SAMPLES:
            self._forget()
        self._found.append((self._read, late - self._moved))
        self._last = late
        if len(self._found) < LEAST_FIT:
            return
        at, free = np.array(self._found).T
        slope = float(np.polyfit(at - at[-1], free, 1)[0])
        self.drift = min(MAX_DRIFT, max(-MAX_DRIFT, -slope))
        if self._place is None:
            self._place = late
        self._pull = min(MAX_PULL, max(-MAX_PULL, (self._place - late) / (PULL_S * SAMPLE_RATE)))

    def _second(self) -> float:
        self._off.append(self._sum / self._frames)
        self._sum, self._frames, self._samples = 0.0, 0, 0
        off = float(np.median(self._off))
        if len(self._off) < JUMP_S or abs(off) <= JUMP_SAMPLES:
            return 0.0
        self.restart()
        return off

    def _forget(self) -> None:
        self._found.clear()
        self._last = 0.0
        self._place = None
        self._pull = 0.0
