"""How loud our own sound stands in what the microphone hears, measured while it plays."""

from __future__ import annotations

from collections import deque

import numpy as np

from edge_sdk.runtime import Array

FLOOR_DB = -90.0
AUDIBLE_DB = -60.0  # of the reference: below it nothing of ours can be heard
HOLD_FRAMES = 30  # 300 ms: a device that names its delay wrong, and the room
DECAY_DB = 1.2  # a frame: 60 dB in half a second
WINDOW_FRAMES = 1000  # 10 s of speech of ours
PRIOR_FRAMES = 20  # until something was measured, the echo is held to be as loud as the reference
QUANTILE = 0.5  # a user who talks over less than half of it does not count as echo
MARGIN_DB = 8.0  # what is left of an echo varies: its louder moments stand so far above the usual
LAG_FRAMES = 100  # 1 s: a user who begins to talk over us is recognized by then, and does not raise the level meanwhile


def level_db(pcm: Array) -> float:
    """RMS level, dBFS: a full-scale square wave is 0. At least FLOOR_DB."""
    power = float(np.dot(pcm, pcm)) / max(1, len(pcm))
    return max(FLOOR_DB, 10 * np.log10(power)) if power > 0 else FLOOR_DB


class EchoLevel:
    """Frames of 10 ms of what was played and what is left in the microphone -> the level of echo to reckon with."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque([FLOOR_DB] * HOLD_FRAMES, HOLD_FRAMES)
        self._envelope_db = FLOOR_DB
        self._gains = deque([0.0] * PRIOR_FRAMES, WINDOW_FRAMES)
        self._waiting: deque[float] = deque()
        self._gain_db = 0.0
        self._new = 0

    @property
    def gain_db(self) -> float:
        """What is left of a sound that was played: the level in the microphone less the reference's."""
        return self._gain_db

    def update(self, played: Array, left: Array) -> tuple[bool, float]:
        """(sound of ours may be in the frame, its level in dBFS; -inf if there is none)."""
        self._recent.append(level_db(played))
        self._envelope_db = max(max(self._recent), self._envelope_db - DECAY_DB)
        if self._envelope_db < AUDIBLE_DB:
            return False, -np.inf
        self._measure(level_db(left) - self._envelope_db)
        return True, self._envelope_db + self._gain_db

    def _measure(self, gain_db: float) -> None:
        self._waiting.append(gain_db)
        if len(self._waiting) <= LAG_FRAMES:
            return
        self._gains.append(self._waiting.popleft())
        self._new += 1
        if self._new >= 10:  # ten times a second is often enough
            self._new = 0
            self._gain_db = float(np.quantile(np.array(self._gains), QUANTILE)) + MARGIN_DB
