"""A simulated room as an `AudioLink`: an open speaker, a user who says things at given times, noise, and a clock that
runs as fast as it is read. What is behind the devices is the product's own: playback, hearing, echo canceller.

Sound reaches the microphone by the image-source method (J. Allen, D. Berkley, "Image method for efficiently simulating
small-room acoustics", 1979), the speaker's after a delay of the devices that their clocks do not name.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sdk.audio_link import Heard
from edge_sdk.echo import open_canceller
from edge_sdk.errors import DeviceError
from edge_sdk.hearing import Hearing
from edge_sdk.playback import Playback
from edge_sdk.reference import BEFORE, between
from samples.nano.voices.rooms import RATE, Shape, path, pink, speech_level_db

TICK = RATE // 100  # both devices' callbacks, 10 ms
REPLY_DB = -20.0  # at this level as played, the speaker is `speaker_db` louder than the user
USER_DB = -32.0  # in the microphone, while they speak

Array = np.ndarray[Any, Any]


USUAL = Shape((5.0, 4.0, 2.7), (2.0, 1.5, 0.8), (2.3, 1.7, 0.8), (3.6, 2.6, 1.5), 0.3)
OTHER = Shape((6.8, 3.1, 2.4), (1.1, 0.7, 1.0), (1.5, 0.6, 1.0), (2.9, 2.2, 1.6), 0.4)  # nothing was tuned in it


def at_the_microphone(pcm: Array, response: Array, db: float = USER_DB) -> Array:
    """Speech, float32 [n], as it comes there, at this level while somebody speaks."""
    sound = np.convolve(pcm, response).astype(np.float32)
    sound *= 10 ** ((db - speech_level_db(sound)) / 20)
    return sound


class _Filter:
    """An impulse response applied to a stream, tick by tick."""

    def __init__(self, response: Array) -> None:
        self._n = 1 << int(np.ceil(np.log2(len(response) + TICK)))
        self._spectrum = np.fft.rfft(response, self._n)
        self._tail = np.zeros(self._n)

    def feed(self, pcm: Array) -> Array:
        self._tail += np.fft.irfft(np.fft.rfft(pcm, self._n) * self._spectrum, self._n)
        out: Array = self._tail[:TICK].astype(np.float32)
        self._tail = np.concatenate([self._tail[TICK:], np.zeros(TICK)])
        return out


class Room:
    """An `AudioLink` whose time passes while it is read.

    Args:
        delay_ms: of the speaker's sound, beyond what the link's clocks know.
        speaker_db: how much louder a reply at REPLY_DB stands in the microphone than the user; None: no echo at all.
        snr_db: the user over pink noise; None: no noise.
        reverberation_s: RT60; None: the shape's.
        jitter_ms: how far the times that the devices name wander.
        drift_ppm: how much faster the speaker's crystal runs than the microphone's.
        echo_cancellation: as the sound card's.
        speed: how many times faster than real time at most; None: as fast as it is read.
        seed: of the noise.
        keep: keep what was played and what was taken, `speaker` and `microphone`.
    """

    sample_rate = RATE

    def __init__(
        self,
        *,
        delay_ms: float = 60.0,
        speaker_db: float | None = 6.0,
        snr_db: float | None = 30.0,
        reverberation_s: float | None = None,
        shape: Shape = USUAL,
        drift_ppm: float = 0.0,
        jitter_ms: float = 2.0,
        echo_cancellation: str = "auto",
        output_latency_ms: float = 30.0,
        speed: float | None = None,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        self._canceller = open_canceller(echo_cancellation)
        self._hearing, self._playback = Hearing(self._canceller), Playback(RATE)
        if reverberation_s is not None:
            shape = replace(shape, reverberation_s=reverberation_s)
        self._echo, self._user = _Filter(path(shape, shape.speaker)), path(shape, shape.user)
        self._echo_gain = 0.0 if speaker_db is None else 10 ** ((USER_DB + speaker_db - REPLY_DB) / 20)
        self._noise_gain = 0.0 if snr_db is None else 10 ** ((USER_DB - snr_db) / 20)
        self._pace = 1 + drift_ppm * 1e-6
        self._latency_s = output_latency_ms / 1e3
        self._hidden = round(delay_ms * RATE / 1e3)
        self._noise = pink(np.random.default_rng(seed), 30 * RATE)  # repeated
        self._wander = [_wander(np.random.default_rng(seed + k), jitter_ms / 1e3) for k in (1, 2)]
        self._speed = speed
        self._ticks = 0
        self._made = 0  # samples the speaker's device has taken
        self._air = np.zeros(4 * RATE, np.float32)  # a ring of them
        self._voices: list[tuple[int, Array]] = []
        self._lock = threading.Lock()
        self._open = self._closed = False
        self._plugged = True
        self._stalled_until_s = 0.0
        self._back_at_s = math.inf  # when devices that are away come back
        self._began = 0.0
        self.keep = keep
        self.speaker: list[Array] = []
        self.microphone: list[Array] = []

    # -- what happens in it

    def say(self, pcm: Any, at_s: float | None = None, db: float = USER_DB) -> tuple[float, float]:
        """The user says `pcm`, float32 mono [n] at 16 kHz, from `at_s` on (None: now). Returns when it begins and ends
        in the microphone."""
        first = self._ticks * TICK if at_s is None else round(at_s * RATE)
        sound = at_the_microphone(pcm, self._user, db)
        with self._lock:
            self._voices.append((first, sound))
        return first / RATE, (first + len(pcm)) / RATE

    def unplug(self, seconds: float = math.inf) -> None:
        """Both devices go away: nothing is heard, nothing is played, time goes on. After `seconds` they are back."""
        self._back_at_s = self.now() + seconds
        self._plugged = False

    def plug(self) -> None:
        """They are back."""
        self._plugged = True

    def stall(self, seconds: float) -> None:
        """The speaker's device takes nothing for so long; the microphone goes on."""
        self._stalled_until_s = self.now() + seconds

    # -- the link

    def start(self) -> None:
        if self._closed:
            raise DeviceError("this room was closed")
        if not self._open:
            self._began = time.monotonic()
        self._open = True

    def read(self, timeout_s: float | None = None) -> Heard | None:
        deadline = None if timeout_s is None else self.now() + timeout_s
        while True:
            if self._closed or not self._open:
                raise DeviceError("this room is closed, or was not started")
            heard = self._tick()
            if heard is not None or (deadline is not None and self.now() >= deadline):
                return heard

    def begin_reply(self) -> None:
        self._playback.begin_reply()

    def play(self, pcm: Array, sample_rate: int) -> None:
        self._playback.play(pcm, sample_rate)

    def flush(self) -> float:
        return self._playback.flush(self.now())

    def end_reply(self) -> None:
        self._playback.end_reply()

    @property
    def played_ms(self) -> float:
        return self._playback.played_ms(self.now())

    @property
    def pending_ms(self) -> float:
        return self._playback.pending_ms(self.now())

    def now(self) -> float:
        return self._ticks * TICK / RATE

    def close(self) -> None:
        self._closed = True
        self._hearing.close()

    def __enter__(self) -> Room:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- figures

    @property
    def underruns(self) -> int:
        return self._playback.underruns

    @property
    def lost_ms(self) -> float:
        return self._hearing.lost_ms

    @property
    def echo_gain_db(self) -> float:
        return self._hearing.echo_gain_db

    def _tick(self) -> Heard | None:
        at_s = self.now()
        self._ticks += 1
        if self._speed is not None:
            time.sleep(max(0.0, self._began + self.now() / self._speed - time.monotonic()))
        if not self._plugged and at_s >= self._back_at_s:
            self.plug()
        if not self._plugged:
            self._made = int(self.now() * RATE * self._pace)
            return None
        if at_s < self._stalled_until_s:
            self._made = int(self.now() * RATE * self._pace)
        else:
            self._speaker_callbacks()
        sound = self._echo_now(at_s)
        sound += self._said(self._ticks - 1) + self._noise_now()
        sound = np.clip(sound, -1, 1).astype(np.float32)
        if self.keep:
            self.microphone.append(sound)
        return self._hearing.take(sound, RATE, at_s + next(self._wander[1]))

    def _speaker_callbacks(self) -> None:
        """The speaker's device takes what its clock says, one callback's time ahead."""
        while self._made < (self.now() * RATE * self._pace):
            out = np.empty(TICK, np.float32)
            at_s = self._made / (RATE * self._pace) + self._latency_s
            self._playback.fill(out, at_s)
            self._hearing.played(out, RATE, at_s + next(self._wander[0]))
            where = (self._made + np.arange(TICK)) % len(self._air)
            self._air[where] = out
            self._made += TICK
            if self.keep:
                self.speaker.append(out)

    def _echo_now(self, at_s: float) -> Array:
        if not self._echo_gain:
            return np.zeros(TICK, np.float32)
        echo: Array = self._echo.feed(self._delayed(at_s)) * np.float32(self._echo_gain)
        return echo

    def _delayed(self, at_s: float) -> Array:
        """What leaves the speaker in this tick: taken by its device a latency ago, and the delay nobody names."""
        where = (at_s - self._latency_s) * RATE * self._pace - self._hidden + np.arange(TICK) * self._pace
        first = int(np.floor(where[0]))
        near = np.arange(first - BEFORE + 1, int(np.floor(where[-1])) + BEFORE + 1)
        return between(np.where(near >= 0, self._air[near % len(self._air)], np.float32(0)), where - first)

    def _said(self, tick: int) -> Array:
        out = np.zeros(TICK, np.float32)
        first = tick * TICK
        with self._lock:
            self._voices = [(at, v) for at, v in self._voices if at + len(v) > first]
            for at, voice in self._voices:
                part = voice[max(0, first - at) : max(0, first + TICK - at)]
                start = max(0, at - first)
                out[start : start + len(part)] += part[: TICK - start]
        return out

    def _noise_now(self) -> Array:
        first = self._ticks * TICK % (len(self._noise) - TICK)
        noise: Array = self._noise[first : first + TICK] * np.float32(self._noise_gain)
        return noise


def _wander(random: np.random.Generator, spread_s: float) -> Iterator[float]:
    """Errors that are alike for a second or two, as PulseAudio's are, and as much again that are not."""
    slow = 0.0
    while True:
        slow = 0.995 * slow + spread_s * 0.1 * random.standard_normal()
        yield slow + spread_s * random.standard_normal()
