"""The public Vocoder: both modes, any length, any cutting, bad input, several streams at once."""

from __future__ import annotations

import itertools
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_sdk
from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, Error, RuntimeUnavailableError
from edge_sdk.vocoder import Vocoder, segment_lengths, segment_limits
from tests import tolerances
from tests.vocoder import goldens

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def vocoder(tiny_bundle: Bundle) -> Vocoder:
    return Vocoder(tiny_bundle)


@pytest.fixture(scope="module")
def small(small_bundle: Bundle) -> Vocoder:
    return Vocoder(small_bundle, steps=4, context_s=1.0)


def small_ids(tokens: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 50, tokens)


def rms(pcm: Array) -> float:
    return float(np.sqrt((pcm.astype(np.float64) ** 2).mean()))


# -- recordings


@pytest.mark.parametrize("case", ["offline_40", "offline_137"])
def test_whole_like_the_recording(tiny_bundle: Bundle, case: str) -> None:
    pcm = Vocoder(tiny_bundle, mode="whole").synthesize(goldens.tokens(case))
    stride = goldens.index()["strides"][case]["wav"]
    expected = goldens.arrays(case)["wav"]
    assert pcm.dtype == np.float32 and len(pcm[::stride]) == len(expected)
    assert abs(rms(pcm[::stride]) / rms(expected) - 1) < tolerances.RMS_RELATIVE


def test_streaming_like_the_recording(tiny_bundle: Bundle) -> None:
    case = "chunkmask_stream_137"
    pcm = Vocoder(tiny_bundle, context_s=None).synthesize(goldens.tokens(case))
    expected = goldens.arrays(case)["wav"]
    assert len(pcm[::8]) == len(expected)
    assert abs(rms(pcm[::8]) / rms(expected) - 1) < tolerances.RMS_RELATIVE


def test_long_whole_is_cut_like_the_recording(tiny_bundle: Bundle) -> None:
    case = "offline_long_790"
    whole, ids = Vocoder(tiny_bundle, mode="whole"), goldens.tokens(case)
    lengths = segment_lengths(len(ids), *segment_limits(whole._config.flow))
    assert lengths == goldens.arrays(case)["segment_lengths"].tolist()
    bounds = np.cumsum([0, *lengths])
    mel = np.concatenate([whole._flow.whole(ids[a:b], whole._settings) for a, b in itertools.pairwise(bounds)])
    assert goldens.difference(case, "mel", mel.T) < tolerances.FLOW_MEL_ABS


@pytest.mark.parametrize("tokens", [int(n) for n in goldens.index()["tables"]["offline_segments"]])
def test_segments(tokens: int) -> None:
    assert segment_lengths(tokens, 750, 50) == goldens.index()["tables"]["offline_segments"][str(tokens)]


def test_segments_come_as_soon_as_their_end_is_known(small_bundle: Bundle) -> None:
    whole = Vocoder(small_bundle, mode="whole", steps=4)
    limit, short = segment_limits(whole._config.flow)
    assert (limit, short) == (162, 50)  # the bundle has noise for 325 frames
    for tokens in (0, 1, 162, 163, 211, 212, 373, 374):
        ids, stream, given_out = small_ids(tokens), whole.stream(), 0
        for at in range(0, tokens, 11):
            given_out += len(stream.push(ids[at : at + 11]))
        emitted_early = given_out // whole.samples_per_token
        assert emitted_early == limit * ((tokens - short) // limit if tokens >= limit + short else 0)
        assert given_out + len(stream.finish()) == tokens * whole.samples_per_token
    ids = small_ids(400)
    pieces, stream = [], whole.stream()
    for at in range(0, 400, 50):
        pieces.append(stream.push(ids[at : at + 50]))
    np.testing.assert_array_equal(np.concatenate([*pieces, stream.finish()]), whole.synthesize(ids))


# -- lengths


def test_nothing_is_lost_at_any_length(vocoder: Vocoder, tiny_bundle: Bundle) -> None:
    whole = Vocoder(tiny_bundle, mode="whole", steps=4)
    ids = goldens.tokens("offline_137")
    for tokens in range(1, 61):
        modes = [vocoder.with_settings(steps=4, cfg_rate=0.7)] + [whole] * (tokens % 7 == 1)
        for each in modes:
            pcm = each.synthesize(ids[:tokens])
            assert len(pcm) == 960 * tokens and np.isfinite(pcm).all()
            assert rms(pcm[-960:]) > tolerances.SOUND_RMS  # the tail is sound, not padding


def test_first_sound_after_28_tokens(vocoder: Vocoder) -> None:
    ids, stream = goldens.tokens("offline_137"), vocoder.stream()
    counts = [len(stream.push(ids[i : i + 1])) for i in range(100)]
    spoken = {i + 1: n for i, n in enumerate(counts) if n}
    assert spoken == {28: 46 * 480 - 4, 53: 24000, 78: 24000}
    assert sum(counts) + len(stream.finish()) == 96000


def test_no_tokens_no_samples(vocoder: Vocoder, tiny_bundle: Bundle) -> None:
    for each in (vocoder, Vocoder(tiny_bundle, mode="whole")):
        nothing: tuple[Any, ...] = ([], (), np.empty(0, np.int64), np.empty(0))
        for empty in nothing:
            pcm = each.synthesize(empty)
            assert pcm.shape == (0,) and pcm.dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cutting_gives_the_same_sound(small: Vocoder, data: st.DataObject) -> None:
    ids = np.array(data.draw(st.lists(st.integers(0, 49), max_size=50)), np.int64)
    stream, parts, at = small.stream(), [], 0
    for size in data.draw(st.lists(st.integers(0, 20), max_size=8)):
        parts.append(stream.push(ids[at : at + size]))
        at += size
    parts += [stream.push(ids[at:]), stream.finish()]
    found = np.concatenate(parts)
    np.testing.assert_array_equal(found, small.synthesize(ids))
    assert len(found) == len(ids) * small.samples_per_token


def test_past_the_noise_sound_goes_on(small: Vocoder) -> None:
    pcm = small.synthesize(small_ids(400))  # caches restart behind 160 tokens
    assert len(pcm) == 400 * small.samples_per_token
    levels = [rms(part) for part in np.split(pcm, 10)]
    assert min(levels) > tolerances.LEVEL_RATIO * max(levels)


# -- seams


def test_no_click_where_chunks_meet(vocoder: Vocoder) -> None:
    ids, stream = goldens.tokens("offline_long_790")[:400], vocoder.stream()
    parts = [stream.push(ids[at : at + 5]) for at in range(0, 400, 5)] + [stream.finish()]
    seams = np.cumsum([len(p) for p in parts if len(p)])[:-1]
    jumps = np.abs(np.diff(np.concatenate(parts)))
    at_seams = jumps[seams - 1]
    assert len(seams) == 15
    elsewhere = np.delete(jumps, seams - 1)
    assert at_seams.max() < tolerances.SEAM_JUMP_RATIO * elsewhere.max()
    assert at_seams.mean() < tolerances.SEAM_MEAN_RATIO * elsewhere.mean()


def test_preview_brings_the_first_sound_forward(tiny_bundle: Bundle, vocoder: Vocoder) -> None:
    early = Vocoder(tiny_bundle, preview_tokens=10)
    ids, stream = goldens.tokens("offline_137"), early.stream()
    parts = [stream.push(ids[i : i + 1]) for i in range(137)] + [stream.finish()]
    assert next(i + 1 for i, part in enumerate(parts) if len(part)) == 13
    pcm, exact = np.concatenate(parts), vocoder.synthesize(ids)
    assert pcm.shape == exact.shape
    seam = len(parts[12])
    jumps = np.abs(np.diff(pcm))
    assert jumps[seam - 1 : seam + 480].max() < tolerances.SEAM_JUMP_RATIO * np.abs(np.diff(exact)).max()


# -- streams


def test_streams_side_by_side(vocoder: Vocoder) -> None:
    ids = [goldens.tokens("offline_137")[a : a + 60] for a in (0, 30, 60)]
    expected = [vocoder.synthesize(i) for i in ids]
    streams = [vocoder.stream() for _ in ids]
    parts: list[list[Array]] = [[] for _ in ids]
    for at in range(0, 60, 12):
        for stream, i, part in zip(streams, ids, parts, strict=True):
            part.append(stream.push(i[at : at + 12]))
    for stream, part, pcm in zip(streams, parts, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate([*part, stream.finish()]), pcm)


def test_streams_in_threads(vocoder: Vocoder) -> None:
    ids = [goldens.tokens("offline_137")[a : a + 70] for a in range(0, 60, 15)]
    expected = [vocoder.synthesize(i) for i in ids]
    found: list[Array | None] = [None] * len(ids)

    def work(n: int) -> None:
        found[n] = vocoder.synthesize(ids[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(ids))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        np.testing.assert_array_equal(a, b)


def test_a_finished_stream_is_over(vocoder: Vocoder, tiny_bundle: Bundle) -> None:
    for each in (vocoder, Vocoder(tiny_bundle, mode="whole")):
        stream = each.stream()
        stream.push([1, 2, 3])
        assert len(stream.finish()) == 3 * 960
        for call in (lambda s=stream: s.push([1]), lambda s=stream: s.push([]), stream.finish):
            with pytest.raises(Error, match="is finished; begin another"):
                call()
        stream.close()  # of no effect
        assert stream.nbytes >= 0 and stream.flow_s > 0 and stream.waveform_s > 0


def test_a_stream_given_up_leaves_no_trace(vocoder: Vocoder) -> None:
    ids = goldens.tokens("offline_40")
    expected = vocoder.synthesize(ids)
    stream = vocoder.stream()
    stream.push(goldens.tokens("offline_137"))
    stream.close()
    np.testing.assert_array_equal(vocoder.synthesize(ids), expected)


@pytest.mark.parametrize("mode", ["streaming", "whole"])
def test_a_stream_closed_while_it_works_spoils_no_other(tiny_bundle: Bundle, mode: str) -> None:
    """Its memory goes to the next stream only when it is not in use any more."""
    ids = goldens.tokens("offline_137")
    vocoder = Vocoder(tiny_bundle, mode=mode)
    expected = vocoder.synthesize(ids)
    for _ in range(3):
        left = vocoder.stream()
        pushing = threading.Thread(target=left.push, args=(np.tile(ids, 8),))
        pushing.start()
        time.sleep(0.02)
        left.close()
        np.testing.assert_array_equal(vocoder.synthesize(ids), expected)
        pushing.join()


def test_memory_is_used_again(tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    vocoder = Vocoder(tiny_bundle)
    with caplog.at_level(logging.INFO, "edge_sdk.flow"):
        for _ in range(3):
            vocoder.synthesize(goldens.tokens("offline_40"))
    assert [r.getMessage().startswith("flow caches:") for r in caplog.records] == [True]
    assert "10 steps and 350 frames (context 6 s)" in caplog.text


def test_bounded_context_bounds_memory(vocoder: Vocoder, tiny_bundle: Bundle) -> None:
    stream, unbounded = vocoder.stream(), Vocoder(tiny_bundle, context_s=None).stream()
    before = stream.nbytes
    ids = np.tile(goldens.tokens("offline_137"), 3)
    for each in (stream, unbounded):
        each.push(ids)
    assert stream.nbytes == before < unbounded.nbytes


def test_context_is_exact_until_it_is_full(tiny_bundle: Bundle) -> None:
    ids = goldens.tokens("offline_137")  # 5.5 s
    exact = Vocoder(tiny_bundle, context_s=None).synthesize(ids)
    np.testing.assert_array_equal(Vocoder(tiny_bundle, context_s=5.0).synthesize(ids), exact)
    bounded = Vocoder(tiny_bundle, context_s=1.0).synthesize(ids)
    assert len(bounded) == len(exact) and np.abs(bounded - exact)[72000:].max() > tolerances.CHANGED_ABS
    assert len(Vocoder(tiny_bundle, context_s=0.0).synthesize(ids)) == len(exact)


def test_other_settings_share_engines(vocoder: Vocoder, tiny_bundle: Bundle) -> None:
    assert vocoder.with_settings(steps=10, cfg_rate=0.7) is vocoder
    other = vocoder.with_settings(steps=5, cfg_rate=0.0)
    assert other._flow is vocoder._flow
    ids = goldens.tokens("offline_40")
    np.testing.assert_array_equal(other.synthesize(ids), Vocoder(tiny_bundle, steps=5, cfg_rate=0.0).synthesize(ids))
    assert np.abs(other.synthesize(ids) - vocoder.synthesize(ids)).max() > tolerances.CHANGED_ABS
    for wrong in ({"steps": 3, "cfg_rate": 0.7}, {"steps": 10, "cfg_rate": float("nan")}):
        with pytest.raises(Error):
            vocoder.with_settings(**wrong)  # type: ignore[arg-type]


# -- bad input


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ([5, -1, 7], "speech token -1 at position 1 is not in the codebook of 6561"),
        ([6561], "speech token 6561 at position 0"),
        (np.array([2**63], np.uint64), "9223372036854775808"),
        ([1.5, 2.0], r"whole numbers, found float64\[2\]"),
        ([[1, 2]], r"found int64\[1, 2\]"),
        (7, r"found int64\[\]"),
        ("12", "whole numbers"),
        ([True, False], "found bool"),
        (np.empty((2, 0)), r"found float64\[2, 0\]"),
        (None, "found object"),
    ],
)
def test_bad_ids_are_named_and_leave_the_stream_usable(vocoder: Vocoder, ids: Any, named: str) -> None:
    good = goldens.tokens("offline_40")
    expected = vocoder.synthesize(good)
    stream = vocoder.stream()
    parts = [stream.push(good[:30])]
    with pytest.raises(Error, match=named):
        stream.push(ids)
    parts += [stream.push(good[30:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    with pytest.raises(Error, match=named):
        vocoder.synthesize(ids)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint64])
def test_any_whole_type_of_id(small: Vocoder, dtype: Any) -> None:
    ids = small_ids(9)
    np.testing.assert_array_equal(small.synthesize(ids.astype(dtype)), small.synthesize(ids.tolist()))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"voice": "nobody"}, "no voice 'nobody'; it has zh_female"),
        ({"voice": np.zeros(191, np.float32)}, r"float \[192\], found float32\[191\]"),
        ({"voice": np.zeros((1, 192), np.float32)}, r"found float32\[1, 192\]"),
        ({"voice": np.arange(192)}, "found int64"),
        ({"voice": np.full(192, np.nan, np.float32)}, "finite and not all zero"),
        ({"voice": np.full(192, np.inf)}, "finite and not all zero"),
        ({"voice": np.zeros(192)}, "finite and not all zero"),
        ({"mode": "fast"}, "streaming, whole, found 'fast'"),
        ({"steps": 7}, "10, 5, 4 flow steps, asked for 7"),
        ({"cfg_rate": float("inf")}, "cfg_rate must be a finite number"),
        ({"cfg_rate": "much"}, "cfg_rate must be a finite number"),
        ({"context_s": -1.0}, "context_s must not be negative"),
        ({"context_s": float("nan")}, "context_s must be a finite number"),
        ({"preview_tokens": 25}, "from 0 to 24, found 25"),
        ({"preview_tokens": 2.0}, "from 0 to 24"),
        ({"runtime": "abacus"}, "unknown runtime 'abacus'"),
    ],
)
def test_bad_arguments_are_named(tiny_bundle: Bundle, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises((Error, RuntimeUnavailableError), match=named):
        Vocoder(tiny_bundle, **arguments)


def test_voice_by_name_and_by_embedding(tiny_bundle: Bundle, vocoder: Vocoder) -> None:
    ids = goldens.tokens("offline_40")
    expected = vocoder.synthesize(ids)
    for voice in ("zh_female", goldens.voice(), goldens.voice().astype(np.float64), goldens.voice() * 1.0):
        np.testing.assert_array_equal(Vocoder(tiny_bundle, voice).synthesize(ids), expected)
    other = Vocoder(tiny_bundle, goldens.voice()[::-1].copy()).synthesize(ids)
    assert np.abs(other - expected).max() > tolerances.CHANGED_ABS


def test_by_path_and_from_the_package(tiny_bundle: Bundle, vocoder: Vocoder) -> None:
    ids = goldens.tokens("offline_40")
    opened = edge_sdk.Vocoder(str(tiny_bundle.path), steps=10)
    assert (opened.sample_rate, opened.samples_per_token, opened.codebook_size) == (24000, 960, 6561)
    np.testing.assert_array_equal(opened.synthesize(ids), vocoder.synthesize(ids))


@pytest.mark.parametrize("missing", ["flow.bin", "noise.npy", "waveform.onnx"])
def test_torn_bundle(tiny_bundle: Bundle, tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "torn.bundle"
    shutil.copytree(tiny_bundle.path, copy)
    (copy / missing).write_bytes((copy / missing).read_bytes()[:-100])
    with pytest.raises(BundleError, match=missing):
        Vocoder(copy)


def test_bundle_without_a_vocoder(speech_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no vocoder"):
        Vocoder(speech_bundle)
