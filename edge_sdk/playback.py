"""The speaker's side of a link: a reply's sound waits here for the device, behind a jitter buffer that adapts.

The device's callback takes from it without a lock: a reply is an object that one side fills and the other empties, and
a new reply, or its end, is one assignment.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from edge_sdk.audio import StreamResampler, check_pcm, check_rate
from edge_sdk.runtime import Array

MIN_JITTER_MS, MAX_JITTER_MS = 40.0, 1000.0
GROWTH_MS = 20.0  # beyond the gap that was heard
SHRINK = 0.8  # what stays of the buffer after a reply without an underrun
FADE_MS = 4.0  # a cut inside a wave is a click
HISTORY = 128  # callbacks; what is still inside the device is a few of them


class _Reply:
    """One reply's sound. `blocks`, `given`, `ended` and `cut` are the producer's; the rest is the callback's."""

    def __init__(self, base_ms: float = 0.0) -> None:
        self.base_ms = base_ms  # played before the device's rate changed
        self.blocks: deque[Array] = deque()
        self.given = 0  # samples at the device's rate
        self.given_ms = 0.0  # of what was handed to `play`, whatever a resampler still holds
        self.ended = self.cut = False
        self.resampler: StreamResampler | None = None
        self.taken = 0
        self.head: Array | None = None  # the block that is being taken
        self.flowing = self.silenced = False
        self.dry_at_s: float | None = None
        self.underruns = 0

    def put(self, pcm: Array) -> None:
        if len(pcm):
            self.blocks.append(pcm)
            self.given += len(pcm)

    def take(self, out: Array) -> int:
        """Fill the head of `out`; how many samples there were."""
        done = 0
        while done < len(out):
            if self.head is None:
                if not self.blocks:
                    break
                self.head = self.blocks.popleft()
            part = self.head[: len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            self.head = self.head[len(part) :] if len(part) < len(self.head) else None
        self.taken += done
        return done


class Playback:
    """Sound in bursts at any rate -> a device's even stream at its own.

    `fill` belongs to the device's callback; everything else may be called by any thread.

    Attributes:
        jitter_ms: how much sound is gathered before a reply, or its rest after an underrun, begins.
        underruns: how often a reply ran dry before its end.
    """

    def __init__(
        self, sample_rate: int, *, min_jitter_ms: float = MIN_JITTER_MS, max_jitter_ms: float = MAX_JITTER_MS
    ) -> None:
        self.sample_rate = check_rate(sample_rate, "the speaker")
        self.jitter_ms = self._min_ms = min_jitter_ms
        self._max_ms = max_jitter_ms
        self.underruns = 0
        self._reply = _Reply()
        self._lock = threading.Lock()  # between producers
        # What each callback took: (when its first sample leaves the speaker, reply, first sample, how many).
        self._taken: list[tuple[float, _Reply, int, int] | None] = [None] * HISTORY
        self._fills = 0
        self._set_fade()

    # -- the producers' side

    def begin_reply(self) -> None:
        """Drop what waits; `played_ms` starts at 0."""
        with self._lock:
            self._reply = _Reply()

    def play(self, pcm: Any, sample_rate: int) -> None:
        """Append sound of the current reply, float32 mono [n]. After `flush` it is dropped until `begin_reply`.

        Raises:
            AudioError: not finite, or a rate or dtype that is not supported; the reply goes on without it.
        """
        rate, piece = check_rate(sample_rate, "the reply"), check_pcm(pcm, "the reply")
        with self._lock:
            reply = self._reply
            if reply.cut:
                return
            if reply.resampler is None or reply.resampler.sample_rate != rate:
                self._drain(reply)
                reply.resampler = StreamResampler(rate, self.sample_rate, "the reply", low_delay=True)
            reply.ended = False
            reply.given_ms += 1e3 * len(piece) / rate
            reply.put(reply.resampler.feed(piece))

    def end_reply(self) -> None:
        """No more sound comes: running dry is no underrun any more, and what waits need not fill the jitter buffer."""
        with self._lock:
            if not self._reply.cut:
                self._drain(self._reply)
                self._reply.ended = True

    def flush(self, at_s: float) -> float:
        """Silence with the next callback. `at_s` as for `played_ms`, which it returns."""
        with self._lock:
            self._reply.cut = True
        return self.played_ms(at_s)

    def played_ms(self, at_s: float) -> float:
        """Of the current reply's sound, what has left the speaker at `at_s` of the clock that `fill` is told."""
        reply = self._reply
        return reply.base_ms + 1e3 * self._played(reply, at_s) / self.sample_rate

    def pending_ms(self, at_s: float) -> float:
        """Of the current reply's sound, what was given to `play` and has not left the speaker. 0 after `flush`."""
        reply = self._reply
        if reply.cut or (reply.ended and self._played(reply, at_s) >= reply.given):
            return 0.0
        return max(0.0, reply.given_ms - self.played_ms(at_s))

    def change_rate(self, sample_rate: int) -> None:
        """The device came back with another rate: what waits is resampled. No callback may run meanwhile."""
        with self._lock:
            rate = check_rate(sample_rate, "the speaker")
            if rate == self.sample_rate:
                return
            old = self._reply
            self._drain(old)
            new = _Reply(old.base_ms + 1e3 * old.taken / self.sample_rate)
            new.given_ms, new.ended, new.cut = old.given_ms, old.ended, old.cut
            waiting = [*([] if old.head is None else [old.head]), *old.blocks]
            if waiting:
                resampler = StreamResampler(self.sample_rate, rate)
                new.put(np.concatenate([*map(resampler.feed, waiting), resampler.finish()]))
            self.sample_rate, self._reply = rate, new
            self._set_fade()

    def _drain(self, reply: _Reply) -> None:
        if reply.resampler is not None:
            reply.put(reply.resampler.finish())
            reply.resampler = None

    def _set_fade(self) -> None:
        n = int(self.sample_rate * FADE_MS / 1e3)
        self._fade_in = np.linspace(0, 1, n, dtype=np.float32)

    def _played(self, reply: _Reply, at_s: float) -> float:
        """Samples of `reply` that have left the speaker, by the newest callback whose sound has begun to."""
        last = self._fills
        for n in range(last - 1, max(-1, last - HISTORY), -1):
            entry = self._taken[n % HISTORY]
            if entry is None or entry[1] is not reply:
                break
            leaves_s, _, first, count = entry
            if leaves_s <= at_s:
                return min(float(first + count), first + (at_s - leaves_s) * self.sample_rate)
        return 0.0

    # -- the callback's side

    def fill(self, out: Array, at_s: float) -> None:
        """Write the device's next samples into `out`, float32 mono [n]; the first leaves the speaker at `at_s`."""
        reply = self._reply
        first, count = reply.taken, 0
        if reply.cut:
            if reply.flowing and not reply.silenced:
                count = self._last_wave(reply, out)
            reply.silenced = True
        elif reply.flowing or self._may_start(reply):
            count = self._flow(reply, out, at_s)
        out[count:] = 0
        self._taken[self._fills % HISTORY] = (at_s, reply, first, count)
        self._fills += 1

    def _may_start(self, reply: _Reply) -> bool:
        waiting = reply.given - reply.taken
        return waiting > 0 and (reply.ended or 1e3 * waiting >= self.jitter_ms * self.sample_rate)

    def _flow(self, reply: _Reply, out: Array, at_s: float) -> int:
        starts, ended = not reply.flowing, reply.ended  # `ended` is read first: then everything has been given
        count = reply.take(out)
        reply.flowing = True
        if starts:
            if reply.dry_at_s is not None:
                self._grow(1e3 * (at_s - reply.dry_at_s))
                reply.dry_at_s = None
            if reply.taken > count:  # a reply's own beginning is as it was made
                self._fade(out, count, rising=True)
        if count < len(out):
            reply.flowing = False
            if not ended:
                self._fade(out, count, rising=False)
                reply.dry_at_s = at_s + count / self.sample_rate
                reply.underruns += 1
                self.underruns += 1
            elif not reply.underruns:
                self.jitter_ms = max(self._min_ms, SHRINK * self.jitter_ms)
        return count

    def _grow(self, gap_ms: float) -> None:
        self.jitter_ms = min(self._max_ms, max(self.jitter_ms, min(gap_ms, self._max_ms)) + GROWTH_MS)

    def _last_wave(self, reply: _Reply, out: Array) -> int:
        count = reply.take(out[: len(self._fade_in)])
        self._fade(out, count, rising=False)
        return count

    def _fade(self, out: Array, count: int, rising: bool) -> None:
        n = min(count, len(self._fade_in))
        if n and rising:
            out[:n] *= self._fade_in[:n]
        elif n:
            out[count - n : count] *= self._fade_in[:n][::-1]
