"""The front end's mel: against the reference's goldens, a textbook form of itself, and itself in pieces."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import mel
from edge_sdk.audio import load_audio
from edge_sdk.config import MelConfig
from edge_sdk.errors import AudioError, Error
from edge_sdk.mel import MelStream, RawMel, changes, log_mel
from tests import speech_goldens
from tests.tolerances import MEL_ABS, MEL_REFERENCE_ABS

TESTS = Path(__file__).parents[1]
WHISPER = MelConfig(n_mels=128, n_fft=400, hop_samples=160, sample_rate=16000, max_samples=480000)
SMALL = MelConfig(n_mels=20, n_fft=64, hop_samples=16, sample_rate=8000, max_samples=640)


def recording(name: str) -> Any:
    return load_audio(speech_goldens.recording(name))


def golden(name: str) -> tuple[Any, Any, int]:
    with np.load(TESTS / "golden" / "speech" / "mel.npz") as file:
        return file[f"{name}.mel"], file[f"{name}.frames"], int(file[f"{name}.valid"])


def noise(samples: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    loudness = 10.0 ** rng.uniform(-4, 0, samples // 50 + 1).repeat(50)[:samples]
    return (rng.standard_normal(samples) * 0.1 * loudness).astype(np.float32)


def textbook(pcm: Any, c: MelConfig) -> Any:
    """The definition, as written: pad or cut, reflect, STFT, dense triangles, clamp. float64 [n_mels, all frames]."""
    block = np.zeros(c.max_samples)
    block[: min(len(pcm), c.max_samples)] = pcm[: c.max_samples]
    padded = np.pad(block, c.n_fft // 2, mode="reflect")
    count = c.max_samples // c.hop_samples  # the last of 1 + count frames is dropped
    frames = np.stack([padded[i * c.hop_samples :][: c.n_fft] for i in range(count)])
    window = np.sin(np.pi * np.arange(c.n_fft) / c.n_fft) ** 2
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    top = 15 + 27 * np.log(c.sample_rate / 2 / 1000) / np.log(6.4)
    scale = np.linspace(0, top, c.n_mels + 2)
    hz = np.where(scale < 15, scale * 1000 / 15, 1000 * 6.4 ** ((scale - 15) / 27))
    bins = np.linspace(0, c.sample_rate / 2, c.n_fft // 2 + 1)
    low, centre, high = hz[:-2, None], hz[1:-1, None], hz[2:, None]
    triangles = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    raw = np.log10(np.maximum(power @ (triangles * 2 / (high - low)).T, 1e-10)).T
    return (np.maximum(raw, raw.max() - 8) + 4) / 4


def in_pieces(pcm: Any, config: MelConfig, cuts: list[int], long_audio: Any = "full") -> tuple[Any, float]:
    """Raw frames and floor of a clip fed cut at `cuts`, taken whenever some are ready."""
    stream, taken = MelStream(config, long_audio), []
    for piece in np.split(pcm, sorted(c % (len(pcm) + 1) for c in cuts)):
        stream.feed(piece)
        taken.append(stream.take().values)
    stream.finish()
    taken.append(stream.take().values)
    return np.concatenate(taken, axis=1), stream.floor


@pytest.mark.parametrize("name", speech_goldens.clips())
def test_equals_the_golden(name: str) -> None:
    want, frames, valid = golden(name)
    got = log_mel(recording(name), WHISPER, "upstream")
    assert got.dtype == np.float32
    assert got.shape == (128, valid)
    inside = frames < valid
    assert inside.sum() >= 20
    np.testing.assert_allclose(got[:, frames[inside]], want[:, inside], rtol=0, atol=MEL_ABS)


@pytest.mark.parametrize("name", ["ck7vv9ag", "syn0p2", "syn1p3", "syn7p9"])
def test_columns_past_the_valid_ones_follow_from_the_padding(name: str) -> None:
    want, frames, valid = golden(name)
    pcm = recording(name)
    got = log_mel(np.concatenate([pcm, np.zeros(480000 - len(pcm), np.float32)]), WHISPER)
    past = frames >= valid
    assert past.sum() == 4
    np.testing.assert_allclose(got[:, frames[past]], want[:, past], rtol=0, atol=MEL_ABS)


def test_past_30_seconds_full_goes_on_and_upstream_stops() -> None:
    pcm = recording("syn33")
    full, upstream = log_mel(pcm, WHISPER), log_mel(pcm, WHISPER, "upstream")
    assert (full.shape[1], upstream.shape[1]) == (3300, 3000)
    # Same maximum in this clip, so only the frame that upstream mirrors at its 30 s edge is different.
    assert np.array_equal(full[:, :2999], upstream[:, :2999])
    assert not np.array_equal(full[:, 2999], upstream[:, 2999])


def test_sound_past_30_seconds_moves_the_floor_of_full_alone() -> None:
    pcm = recording("syn33") * np.float32(1e-3)
    pcm[-16000:] *= 1000
    floors = {}
    for long_audio in ("full", "upstream"):
        stream = MelStream(WHISPER, long_audio)
        stream.feed(pcm)
        stream.finish()
        floors[long_audio] = stream.floor
    assert floors["full"] > floors["upstream"] + 4  # a thousand times the amplitude is 6 in log10 of the power


@pytest.mark.parametrize("samples", [1, 20, 32, 33, 34, 63, 64, 65, 320, 559, 600, 607, 608, 609, 624, 639, 640])
def test_equals_the_textbook_at_every_edge(samples: int) -> None:
    pcm = noise(samples, seed=samples)
    got = log_mel(pcm, SMALL)
    frames = -(-samples // SMALL.hop_samples)
    assert got.shape == (SMALL.n_mels, frames)
    np.testing.assert_allclose(got, textbook(pcm, SMALL)[:, :frames], rtol=0, atol=MEL_REFERENCE_ABS)
    assert np.array_equal(got, log_mel(pcm, SMALL, "upstream"))


def test_the_end_of_the_sound_past_the_last_frame_counts_for_the_maximum() -> None:
    pcm = noise(96) * np.float32(1e-4)
    pcm[-1] = 50.0  # frame 6, not a valid one, has it in its centre
    got = log_mel(pcm, SMALL)
    np.testing.assert_allclose(got, textbook(pcm, SMALL)[:, :6], rtol=0, atol=MEL_REFERENCE_ABS)
    assert got.min() > (np.log10(1e-10) + 4) / 4  # the floor shows


@pytest.mark.parametrize("samples", [641, 656, 700, 2000])
def test_upstream_cuts_as_the_textbook_does(samples: int) -> None:
    pcm = noise(samples, seed=samples)
    got = log_mel(pcm, SMALL, "upstream")
    np.testing.assert_allclose(got, textbook(pcm, SMALL), rtol=0, atol=MEL_REFERENCE_ABS)
    # "full" is the textbook with a block that is long enough.
    block = MelConfig(SMALL.n_mels, SMALL.n_fft, SMALL.hop_samples, SMALL.sample_rate, max_samples=3200)
    frames = -(-samples // SMALL.hop_samples)
    want = textbook(pcm, block)[:, :frames]
    np.testing.assert_allclose(log_mel(pcm, SMALL), want, rtol=0, atol=MEL_REFERENCE_ABS)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 1500),
    cuts=st.lists(st.integers(0, 1500), max_size=12),
    long_audio=st.sampled_from(["full", "upstream"]),
)
def test_pieces_equal_one_call_bit_for_bit(samples: int, cuts: list[int], long_audio: Any) -> None:
    pcm = noise(samples, seed=samples)
    raw, floor = in_pieces(pcm, SMALL, cuts, long_audio)
    assert np.array_equal(RawMel(0, raw).normalize(floor), log_mel(pcm, SMALL, long_audio))


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 20800), max_size=30))
def test_pieces_equal_one_call_at_the_real_size(cuts: list[int]) -> None:
    pcm = recording("syn1p3")
    raw, floor = in_pieces(pcm, WHISPER, cuts)
    assert np.array_equal(RawMel(0, raw).normalize(floor), log_mel(pcm, WHISPER))


def test_single_samples_and_any_block_size_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = recording("syn0p2")
    want = log_mel(pcm, WHISPER)
    raw, floor = in_pieces(pcm, WHISPER, list(range(len(pcm))))
    assert np.array_equal(RawMel(0, raw).normalize(floor), want)
    for block in (1, 3, 8):
        monkeypatch.setattr(mel, "_BLOCK_FRAMES", block)
        assert np.array_equal(log_mel(pcm, WHISPER), want)


def test_a_frame_is_final_with_its_last_sample() -> None:
    stream = MelStream(WHISPER)
    assert stream.ready == 0
    ready = []
    for _ in range(1000):
        stream.feed(np.zeros(1, np.float32))
        ready.append(stream.ready)
    # Frame 0 mirrors samples 1..200; frame i needs the samples up to 160 i + 200.
    assert [ready.index(n) + 1 for n in (1, 2, 3, 4, 5)] == [201, 360, 520, 680, 840]


def test_encoding_windows_early_and_redoing_what_the_floor_changes_equals_one_call() -> None:
    """What the turn logic does: windows of 200 frames under the floor so far, again if a later maximum moves it."""
    quiet, loud = recording("ck7vv9ag") * np.float32(1e-3), recording("syn1p3")
    pcm = np.concatenate([quiet, loud, quiet])
    stream, windows, floors = MelStream(WHISPER), [], []

    def collect(count: int) -> None:
        windows.append(stream.take(count))
        floors.append(stream.floor)

    for piece in np.array_split(pcm, 57):
        stream.feed(piece)
        while stream.ready >= 200:
            collect(200)
    stream.finish()
    while stream.ready:
        collect(min(200, stream.ready))
    assert [w.start for w in windows] == list(range(0, 1330, 200))
    stale = [w.changes(old, stream.floor) for w, old in zip(windows, floors, strict=True)]
    assert any(stale)
    assert not all(stale)
    early = [w.normalize(old) for w, old in zip(windows, floors, strict=True)]
    final = [w.normalize(stream.floor) for w in windows]
    assert stale == [not np.array_equal(a, b) for a, b in zip(early, final, strict=True)]
    kept = [b if redo else a for redo, a, b in zip(stale, early, final, strict=True)]
    assert np.array_equal(np.concatenate(kept, axis=1), log_mel(pcm, WHISPER))


@given(st.floats(-10, 10, width=32), st.floats(-18, 2, width=32), st.floats(-18, 2, width=32))
def test_changes_tells_exactly_when_the_floor_shows(value: float, old: float, new: float) -> None:
    raw = RawMel(0, np.array([[value, 10.0]], np.float32))
    assert raw.changes(old, new) == (max(value, old) != max(value, new))
    assert raw.changes(old, new) == raw.changes(new, old) == changes(raw.min_value, old, new)


def test_no_frames_never_change() -> None:
    assert not RawMel(0, np.empty((128, 0), np.float32)).changes(-18.0, 0.0)


@pytest.mark.parametrize(
    "piece", [np.array([0.1, np.nan], np.float32), np.zeros(5, np.int32), np.full(9, 3e4), "text", np.zeros((2, 2, 2))]
)
def test_a_refused_piece_leaves_the_stream_usable(piece: Any) -> None:
    pcm = recording("syn0p2")
    stream = MelStream(WHISPER)
    stream.feed(pcm[:777])
    with pytest.raises(AudioError):
        stream.feed(piece)
    stream.feed(pcm[777:])
    stream.finish()
    assert np.array_equal(stream.take().normalize(stream.floor), log_mel(pcm, WHISPER))


def test_silence_and_nothing() -> None:
    silent = log_mel(np.zeros(4000, np.float32), WHISPER)
    assert np.array_equal(silent, np.full((128, 25), -1.5, np.float32))  # (log10(1e-10) + 4) / 4
    assert log_mel(np.zeros(0, np.float32), WHISPER).shape == (128, 0)


def test_misuse_is_an_error() -> None:
    stream = MelStream(WHISPER)
    stream.feed(np.zeros(1000, np.float32))
    with pytest.raises(Error, match=r"100 mel frames were asked for, 6 are ready"):
        stream.take(100)
    stream.finish()
    with pytest.raises(AudioError, match="finished"):
        stream.finish()
    with pytest.raises(AudioError, match="finished"):
        stream.feed(np.zeros(10, np.float32))
    with pytest.raises(Error, match="'full' or 'upstream'"):
        MelStream(WHISPER, "cut")  # type: ignore[arg-type]
    with pytest.raises(Error, match="even n_fft"):
        MelStream(MelConfig(128, 401, 160, 16000, 480000))


def test_a_stream_keeps_one_frame_of_sound() -> None:
    stream, minute = MelStream(WHISPER), noise(960000)
    tracemalloc.start()
    stream.feed(minute[:100000])
    stream.take()
    before = tracemalloc.get_traced_memory()[0]
    for piece in [*np.array_split(minute, 30), minute]:
        stream.feed(piece)
        stream.take()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 10_000, "the stream grows with the sound"


def test_the_caller_may_fill_its_buffer_anew() -> None:
    pcm, buffer, stream = recording("syn0p2"), np.empty(100, np.float32), MelStream(WHISPER)
    for piece in np.split(pcm, len(pcm) // 100):
        buffer[:] = piece
        stream.feed(buffer)
        buffer[:] = 0.5
    stream.finish()
    assert np.array_equal(stream.take().normalize(stream.floor), log_mel(pcm, WHISPER))
