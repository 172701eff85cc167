"""One device's clock: which of its samples passed when, from the times its callbacks name."""

from __future__ import annotations

import math

BANDWIDTH_HZ = 0.1  # callbacks come some milliseconds early or late, crystals are off by a steady 100 ppm
SETTLING_S = 2.0  # until then it follows faster
JUMP_S = 0.05  # more than callbacks are late: samples were lost, or the device stood still


class DeviceClock:
    """A line through (sample count, seconds), by a second-order delay-locked loop.

    After F. Adriaensen, "Using a DLL to filter time", 2005.

    Attributes:
        jumps: how often it had to begin anew.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.jumps = 0
        self._count = 0
        self._at_s = 0.0
        self._began_s: float | None = None
        self._period_s = 1.0 / sample_rate

    @property
    def started(self) -> bool:
        return self._began_s is not None

    def update(self, count: int, at_s: float) -> float:
        """Sample `count` passed at `at_s`, says a callback. Returns how much later that was than expected, seconds."""
        if self._began_s is None:
            self._restart(count, at_s)
            return 0.0
        step_s = (count - self._count) * self._period_s
        expected_s = self._at_s + step_s
        error_s = at_s - expected_s
        if abs(error_s) > JUMP_S:
            self.jumps += 1
            self._restart(count, at_s)
            return error_s
        if count > self._count:
            bandwidth_hz = max(BANDWIDTH_HZ, 1 / (SETTLING_S + self._at_s - self._began_s))
            turn = min(0.5, 2 * math.pi * bandwidth_hz * step_s)
            self._at_s = expected_s + math.sqrt(2) * turn * error_s
            self._period_s += turn * turn * error_s / (count - self._count)
            self._count = count
        return error_s

    def time(self, count: float) -> float:
        """Seconds at which sample `count` passes."""
        return self._at_s + (count - self._count) * self._period_s

    def count(self, at_s: float) -> float:
        """The sample, with its fraction, that passes at `at_s`."""
        return self._count + (at_s - self._at_s) / self._period_s

    def _restart(self, count: int, at_s: float) -> None:
        self._count, self._at_s, self._began_s = count, at_s, at_s
        self._period_s = 1.0 / self.sample_rate
