"""How long a silence must be to be the end: follows one speaker's own pauses."""

from __future__ import annotations

_GAIN = 0.25  # weight of the newest utterance
_SPREADS = 2.0  # the limit stands this many mean deviations upwards above the usual longest pause
_MARGIN_MS = 200.0  # and this much


class SilenceLimit:
    """Of each utterance the longest pause is noted; the limit stands above what is usual for them, within bounds.

    A pause that was survived raises the limit for the rest of its utterance at once. A new utterance right behind an
    end shows that it was none: the silence between them counts as a pause of the speaker.
    """

    def __init__(self, initial_ms: float, least_ms: float, most_ms: float) -> None:
        self._least, self._most = least_ms, most_ms
        # Such that the limit begins at `initial_ms`.
        self._usual = max(initial_ms - _MARGIN_MS, 0.0)
        self._spread = 0.0
        self._longest = 0.0  # of this utterance

    @property
    def ms(self) -> float:
        expected = max(self._usual + _SPREADS * self._spread, self._longest) + _MARGIN_MS
        return min(max(expected, self._least), self._most)

    def paused(self, pause_ms: float) -> None:
        """The speaker went on after this pause."""
        self._longest = max(self._longest, pause_ms)

    def began(self, gap_ms: float) -> None:
        """An utterance began this long after the one before."""
        if gap_ms < self._most:
            self._note(gap_ms)

    def ended(self) -> None:
        self._note(self._longest)
        self._longest = 0.0

    def _note(self, pause_ms: float) -> None:
        self._spread += _GAIN * (max(pause_ms - self._usual, 0.0) - self._spread)  # shorter ones give no reason to wait
        self._usual += _GAIN * (pause_ms - self._usual)
