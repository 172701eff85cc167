"""Audio in and out: every kind of source, odd and bad input, streams that equal one call."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import audio_file
from edge_sdk.audio import StreamResampler, check_pcm, check_rate, load_audio, write_wav
from edge_sdk.errors import AudioError
from tests import speech_goldens
from tests.tolerances import RESAMPLE_SINE_ABS

AUDIO = Path(__file__).parents[1] / "audio"
QUESTION, SYN = speech_goldens.recording("ck7vv9ag"), speech_goldens.recording("syn1p3")
RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000]


def int16_of(path: Path) -> Any:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def noise(samples: int, seed: int = 0, channels: int = 1) -> Any:
    pcm = np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)
    return pcm[:, 0] if channels == 1 else pcm


def f32(values: list[float]) -> Any:
    return np.array(values, np.float32)


def encoded(pcm: Any, rate: int, kind: str, subtype: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, pcm, rate, format=kind, subtype=subtype)
    return out.getvalue()


def refused(source: Any, *words: str, **options: Any) -> None:
    with pytest.raises(AudioError) as caught:
        load_audio(source, **options)
    for word in words:
        assert word in str(caught.value)


class Pipe:
    """A binary source that can only be read, a little at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1000) if size > 0 else 1000)


# --- what a source may be


def test_int16_files_are_exactly_x_over_32768() -> None:
    pcm = load_audio(SYN)
    assert (pcm.dtype, pcm.shape) == (np.float32, (20800,))
    assert np.array_equal(pcm * 32768, int16_of(SYN))


def test_float_files_are_taken_as_they_are() -> None:
    data = QUESTION.read_bytes()
    at = data.index(b"data") + 8
    assert np.array_equal(load_audio(QUESTION), np.frombuffer(data[at : at + 4 * 96000], "<f4"))


def test_flac_is_the_same_as_int16() -> None:
    pcm = load_audio(AUDIO / "syn33.flac")
    assert pcm.shape == (528000,)
    assert np.array_equal(pcm * 32768, np.rint(pcm * 32768))


def test_every_kind_of_source_gives_the_same_samples() -> None:
    data, samples = SYN.read_bytes(), int16_of(SYN)
    want: Any = load_audio(SYN)
    with SYN.open("rb") as file:
        sources: list[Any] = [str(SYN), file, data, bytearray(data), memoryview(data), io.BytesIO(data), Pipe(data)]
        for source in sources:
            assert np.array_equal(load_audio(source), want)
        assert not file.closed
    behind = io.BytesIO(b"something else" + data)
    behind.seek(14)
    arrays = [
        samples,
        samples.astype(">i2"),
        want,
        want.astype(np.float64),
        want.tolist(),
        memoryview(want),
        want[None],
    ]
    for source in [behind, *arrays]:
        assert np.array_equal(load_audio(source), want)


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.wav"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(SYN.read_bytes()))
    writer.start()
    assert np.array_equal(load_audio(fifo), load_audio(SYN))
    writer.join()


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_24"), ("WAV", "PCM_U8"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("AIFF", "PCM_16")],
)
def test_other_formats_are_read(kind: str, subtype: str) -> None:
    tone = (0.4 * np.sin(np.arange(16000) * 0.05)).astype(np.float32)
    got = load_audio(encoded(tone, 16000, kind, subtype))
    assert got.shape == tone.shape
    assert np.abs(got - tone).mean() < 0.02


def test_mp3_is_read() -> None:
    tone = (0.4 * np.sin(np.arange(32000) * 0.05)).astype(np.float32)
    got = load_audio(encoded(tone, 16000, "MP3", "MPEG_LAYER_III"))
    assert abs(len(got) - len(tone)) < 4000
    assert 0.2 < np.sqrt(np.mean(got[4000:28000] ** 2)) < 0.35


def test_the_result_is_never_the_callers_array() -> None:
    pcm = noise(1000)
    assert not np.shares_memory(load_audio(pcm), pcm)
    assert not np.shares_memory(check_pcm(pcm), pcm)
    assert not np.shares_memory(StreamResampler(16000).feed(pcm), pcm)


# --- channels


def test_channels_are_averaged_whichever_way_they_lie() -> None:
    stereo = noise(5000, channels=2)
    want = ((stereo[:, 0].astype(np.float64) + stereo[:, 1]) / 2).astype(np.float32)
    for source in (stereo, stereo.T, np.asfortranarray(stereo), np.ascontiguousarray(stereo.T)):
        assert np.array_equal(load_audio(source), want)
    assert np.array_equal(load_audio(encoded(stereo, 16000, "WAV", "FLOAT")), want)
    assert np.array_equal(load_audio(np.stack([int16_of(SYN)] * 6)), load_audio(SYN))


def test_a_shape_that_is_not_channels_is_refused() -> None:
    refused(np.zeros((900, 800), np.float32), "[900, 800]", "at most 32 channels")
    refused(np.zeros((2, 3, 900), np.float32), "[2, 3, 900]")


# --- rates


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_survives_resampling(rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    got = load_audio(tone.astype(np.float32), rate)
    assert got.shape == (16000,)
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(got[1000:-1000], want[1000:-1000], rtol=0, atol=RESAMPLE_SINE_ABS)


def test_what_lies_above_8_khz_does_not_fold_down() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 11000 * np.arange(48000) / 48000)
    assert np.abs(load_audio(tone, 48000)[1000:-1000]).max() < RESAMPLE_SINE_ABS


@settings(max_examples=60, deadline=None)
@given(rate=st.sampled_from(RATES), cuts=st.lists(st.integers(0, 30000), max_size=20), seed=st.integers(0, 3))
def test_a_stream_cut_anywhere_equals_load_audio(rate: int, cuts: list[int], seed: int) -> None:
    pcm = noise(30000, seed)
    stream = StreamResampler(rate)
    parts = [stream.feed(piece) for piece in np.split(pcm, sorted(cuts))]
    got = np.concatenate([*parts, stream.finish()])
    assert np.array_equal(got, load_audio(pcm, rate))


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_single_samples_and_a_file_equal_load_audio(rate: int) -> None:
    pcm = noise(4000)
    stream = StreamResampler(rate)
    got = np.concatenate([*(stream.feed(pcm[i : i + 1]) for i in range(len(pcm))), stream.finish()])
    assert np.array_equal(got, load_audio(pcm, rate))
    assert np.array_equal(got, load_audio(encoded(pcm, rate, "WAV", "FLOAT")))


def test_a_long_file_is_read_in_blocks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = noise(100000, channels=2)
    data = encoded(pcm, 44100, "WAV", "FLOAT")
    whole = load_audio(data)
    monkeypatch.setattr(audio_file, "_BLOCK_FRAMES", 777)
    assert np.array_equal(load_audio(data), whole)
    assert np.array_equal(load_audio(pcm, 44100), whole)


def test_another_target_rate() -> None:
    assert load_audio(noise(48000), 48000, to_rate=8000).shape == (8000,)


@pytest.mark.parametrize("rate", [0, -1, 7999, 192001, 16000.5, float("nan"), float("inf"), True, "16000", None])
def test_other_rates_are_refused(rate: Any) -> None:
    with pytest.raises(AudioError, match=r"sample rate of .* Hz; supported are whole numbers from 8000 to 192000"):
        check_rate(rate)


def test_rates_may_be_any_whole_number() -> None:
    assert [check_rate(r) for r in (8000, 192000, np.int64(44100), 48000.0)] == [8000, 192000, 44100, 48000]
    refused(noise(5000), "sample rate of 4000 Hz", sample_rate=4000)
    refused(encoded(noise(5000), 4000, "WAV", "PCM_16"), "sample rate of 4000 Hz")


def test_a_file_says_its_own_rate() -> None:
    refused(SYN, "is at 16000 Hz", "sample_rate=44100", "leave it out", sample_rate=44100)
    assert load_audio(SYN, 16000).shape == (20800,)


# --- values


def test_values_above_one_are_kept_and_integer_scale_is_refused() -> None:
    hot = np.full(1000, 1.5, np.float32)
    assert np.array_equal(load_audio(hot), hot)
    assert np.array_equal(load_audio(encoded(hot, 16000, "WAV", "FLOAT")), hot)
    refused(hot * 10000, "up to 15000", "32768")
    refused(np.full(1000, 1e300), "up to 1e+300")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_refused_and_located(bad: float, dtype: Any) -> None:
    pcm = np.zeros((1000, 2), dtype)
    pcm[123, 1] = bad
    refused(pcm, "NaN or infinity", "sample 123")
    refused(pcm[:, 1], "NaN or infinity", "sample 123")
    refused(encoded(pcm, 16000, "WAV", "DOUBLE"), "NaN or infinity")


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint16, np.float16, np.complex64, np.bool_]
)
def test_other_dtypes_are_refused(dtype: Any) -> None:
    refused(np.zeros(1000, dtype), str(np.dtype(dtype)), "float32 or float64 in [-1, 1], or int16")


@pytest.mark.parametrize("source", [None, 3.5, 7, [1] * 1000, ["a"], [[0.0], [0.0, 1.0]], {}, object()])
def test_what_is_no_audio_is_refused(source: Any) -> None:
    refused(source)


# --- length


@pytest.mark.parametrize(
    "empty", [[], np.zeros(0, np.float32), np.zeros((0, 2), np.float32), np.zeros((2, 0), np.int16)]
)
def test_empty_is_refused(empty: Any) -> None:
    refused(empty, "empty")


@pytest.mark.parametrize(("rate", "samples"), [(16000, 640), (8000, 320), (48000, 1920)])
def test_40_ms_is_the_least(rate: int, samples: int) -> None:
    assert len(load_audio(noise(samples), rate)) == 640
    refused(noise(samples - rate // 8000), "at least 640 (40 ms)", sample_rate=rate)
    refused(noise(1), "at least 640")


def test_too_long_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_file, "MAX_SECONDS", 1.0)
    monkeypatch.delattr(soundfile.SoundFile, "read")
    refused(SYN, "0.0 minutes long", "the limit is 0")
    monkeypatch.undo()
    refused(np.broadcast_to(np.float32(0), 8000 * 1801), "30.0 minutes long, the limit is 30", sample_rate=8000)


def test_ten_minutes_are_fine() -> None:
    assert load_audio(np.zeros(8000 * 600, np.int16), 8000).shape == (9600000,)


# --- damaged and wrong files


@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
@pytest.mark.parametrize("keep", [0.99, 0.5, 0.01])
def test_a_file_that_was_cut_short_is_refused(kind: str, keep: float) -> None:
    data = encoded(noise(16000), 16000, kind, "PCM_16")
    refused(data[: int(len(data) * keep)], "cut short", "announces 3200")
    assert len(load_audio(data)) == 16000


def test_a_cut_flac_is_refused() -> None:
    data = (AUDIO / "syn33.flac").read_bytes()
    refused(data[: len(data) // 2], "damaged after")


class OldDecoder:
    """libsndfile before 1.1: a FLAC that was cut ends early and says nothing."""

    samplerate, frames = 16000, 32000

    def __init__(self, subtype: str) -> None:
        self.subtype, self._left = subtype, [np.zeros((8000, 1), np.float32), np.zeros((0, 1), np.float32)]

    def read(self, *_: Any, **__: Any) -> Any:
        return self._left.pop(0)


def test_an_announced_length_that_does_not_come_is_refused() -> None:
    with pytest.raises(AudioError, match=r"x.flac is cut short: it announces 2.00 s, only 0.50 s are there"):
        list(audio_file.AudioReader(OldDecoder("PCM_16"), "x.flac"))
    # An MP3 announces an estimate.
    assert [len(b) for b in audio_file.AudioReader(OldDecoder("MPEG_LAYER_III"), "x.mp3")] == [8000]


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_wav_of_unknown_length_is_read_to_its_end(length: int) -> None:
    data = bytearray(SYN.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = length.to_bytes(4, "little")
    assert np.array_equal(load_audio(bytes(data)), load_audio(SYN))


def test_a_wav_that_was_never_completed_is_refused() -> None:
    data = bytearray(SYN.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = bytes(4)
    refused(bytes(data), "never completed", "41600 bytes follow")


def test_chunks_before_the_sound_are_skipped() -> None:
    data = SYN.read_bytes()
    at = data.index(b"data")
    odd = b"junk" + (7).to_bytes(4, "little") + b"1234567\0"
    assert np.array_equal(load_audio(data[:at] + odd + data[at:]), load_audio(SYN))
    refused((data[:at] + odd + data[at:])[:-1000], "cut short")


def test_what_is_no_audio_file_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "speech.wav"
    text.write_text("this is not sound\n" * 100)
    refused(text, str(text), "not audio that can be read")
    empty = tmp_path / "empty.wav"
    empty.touch()
    refused(empty, str(empty), "is empty")
    refused(b"", "is empty")
    refused(SYN.read_bytes()[:30], "not audio that can be read")
    refused(tmp_path / "none.wav", "none.wav", "No such file")
    refused("What time is it?", "No such file", "text=")
    refused(tmp_path, "Is a directory")
    refused("bad\0name.wav", "null")


def test_files_open_the_wrong_way_are_refused() -> None:
    with SYN.open(encoding="latin-1") as file:
        refused(file, "open it in binary mode")
    refused(io.StringIO("x"), "open it in binary mode")
    closed = SYN.open("rb")
    closed.close()
    refused(closed, "closed file")


def test_without_soundfile_arrays_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    refused(SYN, "pip install soundfile")
    with pytest.raises(AudioError, match="pip install soundfile"):
        write_wav(io.BytesIO(), noise(5), 24000)
    assert load_audio(noise(1000)).shape == (1000,)


def test_an_endless_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_file, "MAX_ENCODED_BYTES", 1 << 20)
    refused(Pipe(bytes(2 << 20)), "more than 1 MiB")


# --- pieces


@pytest.mark.parametrize(
    "piece", [np.array([np.nan]), np.zeros(3, np.int64), np.full(2, 1e4), "no", np.zeros((2, 480))]
)
def test_a_refused_piece_leaves_the_stream_usable(piece: Any) -> None:
    pcm = noise(9000)
    stream = StreamResampler(44100)
    first = stream.feed(pcm[:4000])
    with pytest.raises(AudioError):
        stream.feed(piece)
    got = np.concatenate([first, stream.feed(pcm[4000:]), stream.finish()])
    assert np.array_equal(got, load_audio(pcm, 44100))


def test_pieces_are_time_first() -> None:
    assert np.array_equal(check_pcm(np.array([[0.5, 0.25]])), f32([0.375]))
    assert check_pcm(np.zeros((0, 2), np.int16)).shape == (0,)
    assert np.array_equal(check_pcm(np.array([-32768, 16384], np.int16)), f32([-1.0, 0.5]))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_finished_stream_takes_no_more(rate: int) -> None:
    stream = StreamResampler(rate)
    assert stream.finish().shape == (0,)
    with pytest.raises(AudioError, match="finished"):
        stream.feed(noise(10))
    with pytest.raises(AudioError, match="finished"):
        stream.finish()


# --- writing


@given(st.lists(st.integers(-32768, 32767), min_size=640, max_size=700))
@settings(max_examples=20, deadline=None)
def test_written_and_read_again_is_the_same(values: list[int]) -> None:
    pcm = np.array(values, np.float32) / 32768
    out = io.BytesIO()
    write_wav(out, pcm, 16000)
    assert np.array_equal(load_audio(out.getvalue()), pcm)


def test_writing_rounds_and_saturates(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    write_wav(path, f32([0.0, 0.6 / 32768, -0.6 / 32768, 1.0, 7.5, -7.5]), 24000)
    assert int16_of(path).tolist() == [0, 1, -1, 32767, 32767, -32768]
    assert soundfile.info(str(path)).samplerate == 24000
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o600 == 0o600


def test_other_subtypes(tmp_path: Path) -> None:
    pcm = np.concatenate([noise(1000), f32([1.25])])
    write_wav(tmp_path / "f.wav", pcm, 24000, "FLOAT")
    assert np.array_equal(soundfile.read(tmp_path / "f.wav", dtype="float32")[0], pcm)
    write_wav(tmp_path / "i.wav", pcm, 24000, "PCM_24")
    np.testing.assert_allclose(soundfile.read(tmp_path / "i.wav")[0], np.clip(pcm, -1, 1), rtol=0, atol=2.0**-22)
    write_wav(tmp_path / "empty.wav", np.zeros(0, np.float32), 24000)
    assert soundfile.info(str(tmp_path / "empty.wav")).frames == 0


def test_bad_pcm_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "kept.wav"
    path.write_bytes(b"before")
    for bad in (f32([np.nan]), np.zeros((5, 2)), np.zeros(5, np.int16)):
        with pytest.raises(AudioError):
            write_wav(path, bad, 24000)
    with pytest.raises(AudioError, match="subtype 'MP3'"):
        write_wav(path, noise(5), 24000, "MP3")
    for rate in (0, -3):
        with pytest.raises(AudioError):
            write_wav(path, noise(5), rate)
    with pytest.raises(AudioError, match=r"cannot write .*No such file or directory"):
        write_wav(tmp_path / "none" / "x.wav", noise(5), 24000)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.wav"
    path.write_bytes(b"before")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AudioError, match="No space left on device"):
        write_wav(path, noise(5), 24000)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    target, link = tmp_path / "real.wav", tmp_path / "link.wav"
    target.write_bytes(b"before")
    link.symlink_to(target)
    write_wav(link, noise(5), 24000)
    assert link.is_symlink()
    assert target.read_bytes()[:4] == b"RIFF"
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    write_wav(fifo, noise(5), 24000)
    reader.join()
    assert got[0] == target.read_bytes()
    assert fifo.is_fifo()


def test_standard_output_may_be_a_pipe() -> None:
    """/dev/stdout is then a link to something without a name."""
    program = (
        "from pathlib import Path\nfrom edge_sdk.audio import write_wav\nfrom edge_sdk.files import check_place\n"
        "check_place(Path('/dev/stdout'))\nwrite_wav('/dev/stdout', [0.0] * 5, 24000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout[:4]) == (0, b"", b"RIFF")
