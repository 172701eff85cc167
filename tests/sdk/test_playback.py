"""The jitter buffer and what `played_ms` counts, on a clock of the tests' own."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import AudioError
from edge_sdk.playback import Playback
from tests.tolerances import PLAYED_MS

Array = np.ndarray[Any, Any]
RATE = 16000


class Device:
    """A speaker that takes 10 ms at a time, `latency_s` before they leave it."""

    def __init__(self, playback: Playback, latency_s: float = 0.03) -> None:
        self.playback, self.latency_s, self.now = playback, latency_s, 0.0
        self.parts: list[Array] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            out = np.full(self.playback.sample_rate // 100, np.nan, np.float32)
            self.playback.fill(out, self.now + self.latency_s)
            self.parts.append(out)
            self.now += 0.01

    @property
    def pcm(self) -> Array:
        return np.concatenate(self.parts)

    @property
    def played_ms(self) -> float:
        return self.playback.played_ms(self.now)

    @property
    def pending_ms(self) -> float:
        return self.playback.pending_ms(self.now)


def sound(seconds: float, rate: int = RATE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.1, 0.5, int(seconds * rate)).astype(np.float32)


def test_a_reply_comes_out_as_it_went_in() -> None:
    device = Device(Playback(RATE))
    reply = sound(0.5)
    device.run(0.1)
    device.playback.play(reply, RATE)
    device.playback.end_reply()
    device.run(0.6)
    assert np.array_equal(device.pcm[1600 : 1600 + len(reply)], reply)
    assert not device.pcm[:1600].any()
    assert not device.pcm[1600 + len(reply) :].any()
    assert device.playback.underruns == 0


def test_the_devices_delay_is_taken_off() -> None:
    device = Device(Playback(RATE), latency_s=0.2)
    device.playback.play(sound(1.0), RATE)
    device.playback.end_reply()
    device.run(0.15)
    assert (device.played_ms, device.pending_ms) == (0, 1000)
    device.run(0.25)
    assert device.played_ms == pytest.approx(200, abs=PLAYED_MS)
    assert device.played_ms + device.pending_ms == pytest.approx(1000)
    device.run(1.0)
    assert (device.played_ms, device.pending_ms) == (1000, 0)


def test_time_between_callbacks_counts() -> None:
    device = Device(Playback(RATE), latency_s=0.0)
    device.playback.play(sound(1.0), RATE)
    device.run(0.1)
    assert device.playback.played_ms(device.now - 0.004) == pytest.approx(96)
    assert device.playback.played_ms(device.now + 9) == 100  # a device that stopped plays no more than it took


def test_flush_silences_the_next_callback_and_drops_the_rest() -> None:
    device = Device(Playback(RATE))
    device.playback.play(sound(1.0), RATE)
    device.run(0.3)
    assert device.playback.flush(device.now) == pytest.approx(270)
    assert device.pending_ms == 0
    device.playback.play(sound(1.0), RATE)
    device.playback.end_reply()
    device.run(0.2)
    after = device.pcm[int(0.3 * RATE) :]
    assert np.abs(np.diff(after[:64])).max() < 0.5  # it fades within 4 ms: no click at the end
    assert not after[64:].any()
    assert device.played_ms == pytest.approx(304)  # with what the device held, and the fade
    assert device.playback.underruns == 0


def test_a_new_reply_starts_at_zero_and_drops_the_old() -> None:
    device = Device(Playback(RATE))
    device.playback.play(sound(1.0, seed=1), RATE)
    device.run(0.2)
    device.playback.begin_reply()
    assert (device.played_ms, device.pending_ms) == (0, 0)
    new = sound(0.2, seed=2)
    device.playback.play(new, RATE)
    device.playback.end_reply()
    device.run(0.3)
    assert np.array_equal(device.pcm[3200:6400], new)
    assert device.played_ms == 200


def test_it_waits_for_the_jitter_buffer_but_not_for_a_reply_that_is_complete() -> None:
    device = Device(Playback(RATE, min_jitter_ms=100))
    device.playback.play(sound(0.05), RATE)
    device.run(0.1)
    assert not device.pcm.any()
    device.playback.end_reply()
    device.run(0.1)
    assert np.count_nonzero(device.pcm) == 800


def test_the_jitter_buffer_grows_by_the_gap_and_shrinks_when_there_is_none() -> None:
    device = Device(Playback(RATE, min_jitter_ms=40, max_jitter_ms=500))
    playback = device.playback
    playback.play(sound(0.1), RATE)
    device.run(0.25)  # dry after 100 ms
    assert playback.underruns == 1
    playback.play(sound(0.1), RATE)
    device.run(0.05)
    assert 160 <= playback.jitter_ms <= 180  # 150 ms of gap, by callbacks of 10 ms, and 20
    device.run(0.2)
    assert playback.underruns == 2
    for _ in range(20):
        playback.begin_reply()
        playback.play(sound(0.2), RATE)
        playback.end_reply()
        device.run(0.3)
    assert playback.jitter_ms == 40
    assert playback.underruns == 2


def test_a_gap_without_end_grows_it_no_further_than_it_may() -> None:
    device = Device(Playback(RATE, max_jitter_ms=500))
    device.playback.play(sound(0.1), RATE)
    device.run(5.0)
    device.playback.play(sound(1.0), RATE)
    device.run(0.1)
    assert device.playback.jitter_ms == 500


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 6000), min_size=1, max_size=12),
    rate=st.sampled_from([8000, 16000, 24000, 44100, 48000]),
    device_rate=st.sampled_from([16000, 44100, 48000]),
    ticks=st.integers(0, 30),
)
def test_nothing_is_lost_however_it_is_cut(pieces: list[int], rate: int, device_rate: int, ticks: int) -> None:
    """Whatever bursts it comes in and however often it runs dry, all of it is played, once, and counted."""
    device = Device(Playback(device_rate), latency_s=0.02)
    for n in pieces:
        device.playback.play(np.full(n, 0.25, np.float32), rate)
        device.run(ticks / 100)
    device.playback.end_reply()
    device.run(sum(pieces) / rate + 0.2)
    given_ms = 1e3 * sum(pieces) / rate
    assert device.pending_ms == 0
    assert device.played_ms == pytest.approx(given_ms, abs=PLAYED_MS)
    assert np.isfinite(device.pcm).all()


def test_a_device_of_another_rate_goes_on_where_the_first_stood() -> None:
    device = Device(Playback(48000), latency_s=0.0)
    device.playback.play(sound(1.0, 24000), 24000)
    device.run(0.4)
    device.playback.change_rate(16000)
    assert device.played_ms == pytest.approx(400, abs=PLAYED_MS)
    device.playback.end_reply()
    device.run(0.8)
    assert device.played_ms == pytest.approx(1000, abs=PLAYED_MS)
    assert device.pending_ms == 0


def test_bad_sound_is_refused_and_leaves_the_reply() -> None:
    device = Device(Playback(RATE))
    device.playback.play(sound(0.2), RATE)
    for bad, rate in ((np.array([np.inf], np.float32), RATE), (sound(0.1), 7), (np.zeros((2, 2, 2)), RATE)):
        with pytest.raises(AudioError):
            device.playback.play(bad, rate)
    device.playback.end_reply()
    device.run(0.4)
    assert device.played_ms == 200


def test_producers_and_the_callback_at_once() -> None:
    """Three threads begin, fill and cut replies while the callback runs: it never fails, and ends where it should."""
    device = Device(Playback(RATE))
    stop = threading.Event()
    errors: list[BaseException] = []

    def produce(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                random.choice([
                    device.playback.begin_reply,
                    device.playback.end_reply,
                    lambda: device.playback.flush(device.now),
                    lambda: device.playback.play(sound(0.05), 24000),
                    lambda: device.pending_ms,
                ])()  # fmt: skip
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    device.run(20.0)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert not errors
    assert np.isfinite(device.pcm).all()
    device.playback.begin_reply()
    device.playback.play(sound(0.3), RATE)
    device.playback.end_reply()
    device.run(0.5)
    assert device.played_ms == 300
