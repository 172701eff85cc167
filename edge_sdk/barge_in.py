"""Whether a voice over the assistant's own is the user's: asks for more while there may be an echo of ourselves."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from edge_sdk.audio_link import Heard
from edge_sdk.checks import check_flag, check_number, check_whole

_REMEMBERED_S = 1.5  # of the echo's level, before a voice is suspected: a few words, so that their loudest is known
_ENOUGH_S = 0.3
_SUSPECTED_S = 2.0  # longest; then it was no voice


@dataclass(frozen=True)
class BargeInConfig:
    """When the user may interrupt.

    Args:
        enabled: False is half duplex: nothing is heard while the assistant answers (but the key of push to talk).
        min_speech_ms: speech needed to end an answer; "mhm" and a cough are shorter.
        echo_min_speech_ms: as much while the assistant's own sound may be in the microphone.
        margin_db: how much louder than the echo that may be left a voice must be.
    """

    enabled: bool = True
    min_speech_ms: int = 224
    echo_min_speech_ms: int = 256
    margin_db: float = 6.0

    def __post_init__(self) -> None:
        check_flag("BargeInConfig: enabled", self.enabled)
        for name in ("min_speech_ms", "echo_min_speech_ms"):
            want = "an integer from 32 to 2000"
            check_whole(f"BargeInConfig: {name}", getattr(self, name), 32, 2001, want)
        check_number("BargeInConfig: margin_db", self.margin_db, 0.0, 60.0, want="a number from 0 to 60")


@dataclass(frozen=True)
class Demand:
    """What speech must be to count now: `Endpointer.feed` takes it. `min_speech_ms` None: what always is asked."""

    floor_db: float = -math.inf
    min_speech_ms: int | None = None


class BargeInGuard:
    """Follows the echo's level. A link learns that level from what it hears, so a user's voice raises it: once a voice
    is suspected, what was known before counts."""

    def __init__(self, config: BargeInConfig) -> None:
        self._config = config
        self._before: deque[tuple[float, float]] = deque()  # (when, echo level), while no voice was suspected
        self._since_s: float | None = None
        self._loudest_db = math.inf

    def demand(self, heard: Heard, *, answering: bool, suspected: bool) -> Demand:
        """For this piece of sound.

        Args:
            answering: an answer is being made or played, and would be lost.
            suspected: the sound before may have been a voice.
        """
        if not heard.playing:
            self._before.clear()
            self._since_s = None
            return Demand(min_speech_ms=self._config.min_speech_ms if answering else None)
        self._follow(heard, suspected)
        echo_db = heard.echo_db if self._since_s is None else min(heard.echo_db, self._loudest_db)
        least = max(self._config.min_speech_ms, self._config.echo_min_speech_ms)
        return Demand(echo_db + self._config.margin_db, least)

    def _follow(self, heard: Heard, suspected: bool) -> None:
        if suspected and self._since_s is None:
            self._since_s = heard.at_s
            known = bool(self._before) and self._before[-1][0] - self._before[0][0] >= _ENOUGH_S
            self._loudest_db = max(level for _, level in self._before) if known else math.inf
        elif not suspected:
            self._since_s = None
        if self._since_s is None or heard.at_s - self._since_s > _SUSPECTED_S:
            self._before.append((heard.at_s, heard.echo_db))
            while self._before[0][0] < heard.at_s - _REMEMBERED_S:
                self._before.popleft()
