"""The microphone's side: clocks, the reference at the microphone's pace, gaps, the level of echo, cancellation."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest

from edge_sdk.audio import StreamResampler
from edge_sdk.audio_link import AudioLink
from edge_sdk.device_clock import DeviceClock
from edge_sdk.echo import EchoCanceller, open_canceller
from edge_sdk.echo_delay import EchoDelay
from edge_sdk.echo_level import level_db
from edge_sdk.errors import DeviceError, Error
from edge_sdk.hearing import Hearing
from edge_sdk.pace import Pace
from edge_sdk.reference import BEFORE, LEAD_S, Reference, between
from tests.room import REPLY_DB, USER_DB, Room, speech_level_db
from tests.speech import clip
from tests.tolerances import CLOCK_S, REFERENCE_RELATIVE, relative

Array = np.ndarray[Any, Any]
CANCELLERS = ("webrtc", "speex")
FAR = ("tts_hibari_chat_sad", "tts_hibari_q_pause")


def band_noise(seconds: float, rate: int = 16000) -> Array:
    """Noise to 3 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(int(seconds * rate)))
    spectrum[np.fft.rfftfreq(int(seconds * rate), 1 / rate) > 3000] = 0
    return np.fft.irfft(spectrum).astype(np.float32) * np.float32(0.1)


def sinc_at(pcm: Array, where: Array) -> Array:
    """`pcm` at fractions of samples, by sincs of 200 neighbours: of noise to 3 kHz, nearly exact."""
    near = np.floor(where).astype(int)[:, None] + np.arange(-100, 101)[None]
    there = (near >= 0) & (near < len(pcm))
    return np.sum(np.sinc(where[:, None] - near) * np.where(there, pcm[near % len(pcm)], 0), axis=1)


def canceller_of(name: str) -> EchoCanceller:
    try:
        canceller = open_canceller(name)
    except DeviceError as e:
        pytest.skip(str(e))
    assert canceller is not None
    return canceller


# -- resampling without bursts


@pytest.mark.parametrize("rate", [44100, 48000])
def test_low_delay_comes_evenly_and_is_the_same_however_it_is_cut(rate: int) -> None:
    pcm = band_noise(1.0, rate)
    stream = StreamResampler(rate, 16000, low_delay=True)
    parts = [stream.feed(pcm[k : k + rate // 100]) for k in range(0, len(pcm), rate // 100)]
    sizes = [len(p) for p in parts[5:]]
    assert max(sizes) - min(sizes) <= 1
    whole = StreamResampler(rate, 16000, low_delay=True)
    expected = np.concatenate([whole.feed(pcm), whole.finish()])
    assert np.array_equal(np.concatenate([*parts, stream.finish()]), expected)
    assert abs(len(expected) - 16000) <= 1


# -- clocks


def test_a_clock_finds_a_crystals_pace_through_late_callbacks() -> None:
    random = np.random.default_rng(1)
    clock, rate = DeviceClock(48000), 48000 * (1 + 150e-6)
    for k in range(6000):
        clock.update(480 * k, 100 + 480 * k / rate + random.uniform(0, 0.008))
    at = 480 * 5999
    assert clock.time(at) == pytest.approx(100 + at / rate + 0.004, abs=CLOCK_S)
    assert clock.count(clock.time(at + 12345)) == pytest.approx(at + 12345)
    ahead = clock.time(at + 480000) - clock.time(at)
    assert ahead == pytest.approx(480000 / rate, abs=CLOCK_S)
    assert clock.jumps == 0


def test_a_clock_begins_anew_when_samples_were_lost() -> None:
    clock = DeviceClock(16000)
    for k in range(100):
        clock.update(160 * k, k / 100)
    assert clock.update(16000, 1.5) == pytest.approx(0.5, abs=CLOCK_S)
    assert (clock.jumps, clock.time(16160)) == (1, pytest.approx(1.51))


@pytest.mark.parametrize("drift_ppm", [-200, 0, 100])
def test_the_crystals_pace_is_told_by_the_echo(drift_ppm: int) -> None:
    """Named times wander; the echo's delay shows the drift, and then stands still."""
    random, pace = np.random.default_rng(0), Pace()
    late, lates = 700.0, []
    for frame in range(6000):
        _, reading = pace.follow(random.normal(0, 100), 160)
        late += 160 * (reading - 1 - drift_ppm * 1e-6)
        if frame % 50 == 0:
            pace.echo_comes(late + random.normal(0, 0.1))
            lates.append(late)
    assert abs(pace.drift * 1e6 - drift_ppm) < 3
    assert max(lates[-60:]) - min(lates[-60:]) < 2


def test_a_place_that_stays_wrong_is_left() -> None:
    pace = Pace()
    jumps = [pace.follow(100.0, 160)[0] for _ in range(1000)]
    assert not any(jumps)
    jumps = [pace.follow(2000.0, 160)[0] for _ in range(400)]
    assert [j for j in jumps if j] == [2000.0]


def test_another_delay_is_no_drift() -> None:
    pace = Pace()
    for k in range(100):
        pace.follow(0.0, 160)
        pace.echo_comes(700.0 if k < 50 else 1500.0)
    assert abs(pace.drift) < 1e-9


def test_the_reference_is_read_between_samples() -> None:
    pcm = band_noise(1)
    where = 0.37 + 1.0001 * np.arange(8000)
    found = between(pcm, where)
    assert relative(found, sinc_at(pcm, where + BEFORE - 1)) < REFERENCE_RELATIVE


def test_a_steady_reference_is_exact() -> None:
    pcm, reference = band_noise(2), Reference()
    reference.add(pcm[:16000], 16000, 0.0)
    parts = [reference.frame((k + 1) / 100, 160) for k in range(90)]
    found = np.concatenate(parts)
    lead = round(LEAD_S * 16000)
    assert relative(found[:14000], pcm[lead : lead + 14000]) < REFERENCE_RELATIVE


def test_a_reference_that_never_began_is_silence() -> None:
    assert not Reference().frame(1.0, 160).any()


# -- gaps


def test_lost_sound_is_filled_with_silence_of_its_length() -> None:
    hearing = Hearing(None)
    pieces = [hearing.take(np.full(480, 0.1, np.float32), 48000, k / 100) for k in range(50)]
    pieces += [hearing.take(np.full(480, 0.1, np.float32), 48000, 0.3 + k / 100, gap=k == 50) for k in range(50, 100)]
    heard = [p for p in pieces if p is not None]
    pcm = np.concatenate([p.pcm for p in heard])
    assert hearing.lost_ms == pytest.approx(300, abs=1e3 * CLOCK_S)
    assert len(pcm) / 16000 == pytest.approx(1.3, abs=30 * CLOCK_S)  # but for what the resampler holds
    assert np.sum(np.abs(pcm) < 1e-3) / 16000 == pytest.approx(0.3, abs=30 * CLOCK_S)
    assert heard[-1].at_s == pytest.approx(1.3, abs=30 * CLOCK_S)


def test_a_microphone_of_another_rate_goes_on() -> None:
    hearing = Hearing(None)
    for k in range(50):
        hearing.take(np.zeros(441, np.float32), 44100, k / 100)
    heard = [hearing.take(np.full((160, 2), 0.1, np.float32), 16000, 1.0 + k / 100) for k in range(50)]
    assert hearing.lost_ms == pytest.approx(500, abs=1e3 * CLOCK_S)
    last = heard[-1]
    assert last is not None
    assert last.at_s == pytest.approx(1.5, abs=CLOCK_S)
    assert last.pcm == pytest.approx(0.1)


# -- which canceller


def test_a_canceller_that_is_not_installed_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit", None)
    with pytest.raises(DeviceError, match=r"pip install 'edge_sdk\[echo\]'"):
        open_canceller("webrtc")
    with pytest.raises(Error, match="echo_cancellation"):
        open_canceller("best")
    assert open_canceller("off") is None


def test_without_any_the_log_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import cffi

    def refuse(*_: Any) -> None:
        raise OSError("no such library")

    monkeypatch.setitem(sys.modules, "livekit", None)
    monkeypatch.setattr(cffi.FFI, "dlopen", refuse)
    assert open_canceller("auto") is None
    assert "echo is not cancelled" in caplog.text
    assert "apt install libspeexdsp1" in caplog.text


# -- in a room


def speech(*names: str, db: float = REPLY_DB) -> Array:
    pcm = np.concatenate([clip(n) for n in names])
    return pcm * np.float32(10 ** ((db - speech_level_db(pcm)) / 20))


def run(room: Room, seconds: float) -> tuple[Array, list[Any]]:
    heard = []
    while room.now() < seconds:
        piece = room.read()
        assert piece is not None
        heard.append(piece)
    return np.concatenate([h.pcm for h in heard]), heard


def level(pcm: Array, first_s: float, last_s: float) -> float:
    return level_db(pcm[int(first_s * 16000) : int(last_s * 16000)])


@pytest.mark.parametrize("name", CANCELLERS)
@pytest.mark.parametrize("delay_ms", [20, 100])
def test_an_echo_is_taken_out_and_the_user_is_left(name: str, delay_ms: int) -> None:
    canceller_of(name).close()
    far = speech(*FAR * 2)
    end_s = len(far) / 16000
    with Room(delay_ms=delay_ms, speaker_db=6, echo_cancellation=name, drift_ppm=50, keep=True) as room:
        link: AudioLink = room
        link.begin_reply()
        link.play(far, 16000)
        link.end_reply()
        room.say(clip("tts_joe_barge_wait"), end_s - 4)
        out, heard = run(room, end_s)
    taken = np.concatenate(room.microphone)
    alone, together = (end_s - 9, end_s - 4), (end_s - 4, end_s - 2)
    erle = level(taken, *alone) - level(out, *alone)
    print(
        f"{name}, {delay_ms} ms: ERLE {erle:.1f} dB, user {level(out, *together):.1f} dBFS, {room.echo_gain_db:.1f} dB"
    )
    assert erle > 12
    assert level(out, *together) > level(out, *alone) + 6
    assert level(out, *together) > USER_DB - 12
    said = [h for h in heard if h.at_s > 1]
    assert np.mean([h.playing for h in said]) > 0.8  # but for pauses
    assert all(h.playing == bool(np.isfinite(h.echo_db)) for h in said)
    loudest = [h for h in said if alone[0] < h.at_s < alone[1]]
    assert np.mean([level_db(h.pcm) <= h.echo_db for h in loudest]) > 0.7


def test_without_a_reply_nothing_of_ours_is_heard() -> None:
    with Room(echo_cancellation="off") as room:
        room.say(clip("tts_joe_barge_wait"), 0.2)
        out, heard = run(room, 2.0)
    assert not any(h.playing for h in heard)
    assert all(h.echo_db == -np.inf for h in heard)
    assert level(out, 0.3, 1.5) > USER_DB - 6


def test_a_room_is_the_same_every_time() -> None:
    outs = []
    for _ in range(2):
        with Room(echo_cancellation="off", seed=3, snr_db=10) as room:
            room.play(speech(*FAR), 16000)
            outs.append(run(room, 1.0)[0])
    assert np.array_equal(outs[0], outs[1])
    with Room(echo_cancellation="off", seed=4, snr_db=10) as room:
        room.play(speech(*FAR), 16000)
        assert not np.array_equal(run(room, 1.0)[0], outs[0])


def test_devices_that_were_away_leave_a_gap_and_no_error() -> None:
    with Room(echo_cancellation="off") as room:
        room.play(speech(*FAR), 16000)
        run(room, 0.5)
        room.unplug()
        assert room.read(1.0) is None
        played = room.played_ms
        room.plug()
        run(room, 2.0)
        assert room.lost_ms == pytest.approx(1000, abs=10 * 1e3 * CLOCK_S)
        assert room.played_ms > played + 300


@pytest.mark.parametrize("delay", [0, 777, 7000])
def test_a_hidden_delay_is_found(delay: int) -> None:
    played = np.concatenate([clip(n) for n in FAR])
    heard = np.concatenate([np.zeros(delay, np.float32), played])[: len(played)] * np.float32(0.3)
    heard = heard + np.random.default_rng(0).standard_normal(len(heard)).astype(np.float32) * np.float32(1e-3)
    finder = EchoDelay()
    for first in range(0, len(played) - 160, 160):
        finder.add(played[first : first + 160], heard[first : first + 160])
    assert finder.samples is not None
    assert abs(finder.samples - delay) <= 1


def test_no_delay_is_found_where_there_is_no_echo() -> None:
    played = np.concatenate([clip(n) for n in FAR])
    heard = np.random.default_rng(0).standard_normal(len(played)).astype(np.float32) * np.float32(0.01)
    other = np.roll(clip("tts_joe_q_story"), 5000)
    heard[: len(other)] += other
    finder = EchoDelay()
    for first in range(0, len(played) - 160, 160):
        assert not finder.add(played[first : first + 160], heard[first : first + 160])
    assert finder.samples is None


def test_a_long_delay_is_taken_off_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    canceller_of("speex").close()
    caplog.set_level("INFO")
    far = speech(*FAR * 2)
    end_s = len(far) / 16000
    with Room(delay_ms=300, speaker_db=6, echo_cancellation="speex", keep=True) as room:
        room.play(far, 16000)
        out, _ = run(room, end_s)
    assert re.search(r"the echo comes 3[012]\d ms later than the devices say", caplog.text)
    taken = np.concatenate(room.microphone)
    assert level(taken, end_s - 5, end_s) - level(out, end_s - 5, end_s) > 12
