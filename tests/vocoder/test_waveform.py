"""The waveform part's graphs and streams: against recordings, and any cutting against one piece."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edge_sdk.bundle import Bundle
from edge_sdk.config import WaveformConfig
from edge_sdk.errors import BundleError
from edge_sdk.excitation import Excitation
from edge_sdk.waveform import Waveform, WaveformStream
from tests import tolerances
from tests.vocoder import goldens

Array = np.ndarray[Any, Any]
STAGES = {  # golden array -> the graph's own name of the same value
    "source_stft": "/waveform/stft/Conv",
    "conv_pre_out": "/waveform/conv_pre/Conv",
    "ups0_out": "/waveform/ups.0/Reshape_2",
    "ups1_out": "/waveform/ups.1/Reshape_2",
    "ups2_out": "/waveform/ups.2/Reshape_2",
    "source_branch0_out": "/waveform/source_resblocks.0/Add_3",
    "conv_post_out": "/waveform/conv_post/Conv",
}


def golden_mel(case: str) -> Array:
    return np.ascontiguousarray(goldens.arrays(case)["mel"].T)


def speak(stream: WaveformStream, mel: Array, cuts: list[int]) -> Array:
    parts, at, sizes, size = [], 0, iter(cuts), 1
    while at < len(mel):
        size = next(sizes, size)
        parts.append(stream.push(mel[at : at + size]))
        at += size
    return np.concatenate([*parts, stream.finish()])


@pytest.mark.parametrize("case", ["offline_40", "offline_137"])
@pytest.mark.parametrize("cut", [1, 7, 50, 1000])
def test_samples(tiny_waveform: Waveform, case: str, cut: int) -> None:
    found = speak(WaveformStream(tiny_waveform, 50), golden_mel(case), [cut])
    assert goldens.difference(case, "wav", found) < tolerances.SAMPLES_ABS


def test_stages(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The trunk's inner values by their address in the graph, from recorded mel and f0."""
    vocoder = tiny_bundle.manifest.vocoder
    assert vocoder
    golden, config = goldens.arrays("offline_40"), vocoder.waveform
    rows = Excitation(config).frames(golden["f0"])
    half = config.stft_n_fft // 2
    rows = np.concatenate([rows[half:0:-1], rows, rows[-2 : -2 - half : -1]])
    entry = tiny_bundle.manifest.graphs["waveform"]
    model = onnx.load(tiny_bundle.path / entry.file)  # with its data
    for name in STAGES.values():
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        "mel": np.pad(golden_mel("offline_40"), ((0, config.lookahead_frames), (0, 0))),
        "harmonics": rows,
        "first": np.array([1]),
    }
    for spec in entry.input_specs().values():
        if spec.name not in feeds:
            feeds[spec.name] = np.zeros(spec.shape, spec.numpy_dtype)  # type: ignore[arg-type]
    for name, found in zip(STAGES, session.run(list(STAGES.values()), feeds), strict=True):
        assert goldens.relative("offline_40", name, found[0]) < tolerances.WAVEFORM_STAGE_RELATIVE, name


@pytest.mark.parametrize("case", ["offline_40", "offline_137"])
def test_f0(tiny_waveform: Waveform, case: str) -> None:
    from edge_sdk.call_state import CallState

    mel = np.pad(golden_mel(case), ((0, 3), (0, 0)))
    for pieces in ([len(mel) - 3], [1, 2, 30, len(mel) - 36]):
        call = tiny_waveform.f0_engine.call()
        CallState(tiny_waveform.runtime, tiny_waveform.f0_engine).bind(call)
        call.fetch("f0")
        found, at = [], 0
        for size in pieces:
            call.set("mel", mel[at : at + size + 3])
            found.append(call.run()["f0"])
            at += size
        assert goldens.difference(case, "f0", np.concatenate(found)) < tolerances.F0_HZ


@pytest.mark.parametrize(
    "change",
    [
        {"stft_hop": 0},
        {"stft_hop": 5},
        {"stft_hop": 16},
        {"stft_n_fft": 1000},
        {"upsample_rates": (8, 0)},
        {"lookahead_frames": -1},
        {"source_noise_skip": -1},
        {"source_noise_skip": 1 << 40},
    ],
)
def test_sizes_that_cannot_be(tiny_waveform: Waveform, change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="waveform part cannot be"):
        Waveform(tiny_waveform.runtime, dataclasses.replace(tiny_waveform.config, **change))


# -- excitation


def test_excitation(tiny_waveform: Waveform) -> None:
    golden, config = goldens.arrays("offline_40"), tiny_waveform.config
    rows = Excitation(config).frames(golden["f0"]).reshape(80, 480, 9)
    voiced = golden["uv"].astype(bool)
    # Voiced frames: the sine, and noise from 0 to sigma above it. Unvoiced: noise up to a third of the amplitude.
    above = rows[voiced] - golden["sine_per_frame"][voiced][:, None]
    assert above.min() > -tolerances.SINE_ABS and above.max() < config.noise_sigma + tolerances.SINE_ABS
    assert rows[~voiced].min() >= 0 and config.noise_sigma < rows[~voiced].max() < config.sine_amplitude / 3
    assert (~voiced).any() and voiced.any()


@settings(max_examples=30, deadline=None)
@given(running=st.booleans(), cuts=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_excitation_in_pieces_is_the_same_to_the_bit(tiny_waveform: Waveform, running: bool, cuts: list[int]) -> None:
    f0 = goldens.arrays("offline_137")["f0"][: sum(cuts)]
    config = dataclasses.replace(tiny_waveform.config, running_phase=running)
    whole = Excitation(config).frames(f0)
    pieces = Excitation(config)
    bounds = np.cumsum([0, *cuts])
    found = [pieces.frames(f0[a:b]) for a, b in itertools.pairwise(bounds) if a < len(f0)]
    np.testing.assert_array_equal(np.concatenate(found), whole)


def test_only_a_running_phase_is_written_down(tiny_waveform: Waveform) -> None:
    """Readers from before it was there refuse what they do not know."""
    held = tiny_waveform.config
    assert "running_phase" not in held.to_json()
    running = dataclasses.replace(held, running_phase=True)
    assert [WaveformConfig.from_json(c.to_json()) for c in (held, running)] == [held, running]


def test_a_running_phase_is_a_tone(tiny_waveform: Waveform) -> None:
    """Overtone h of a constant f0 is sin(2 pi (h + 1) f0 t), from the first sample on, whatever the frames; after
    half a minute too. Under it lies the noise."""
    config = dataclasses.replace(tiny_waveform.config, running_phase=True)
    f0, frames = 217.3, 1500
    rows = Excitation(config).frames(np.full(frames, f0))
    t = np.arange(1, frames * config.samples_per_frame + 1) / config.sample_rate
    hertz = np.float64(np.float32(f0)) * np.arange(1, config.harmonics + 2)
    for part in (slice(0, 2000), slice(-2000, None)):
        above = rows[part] - config.sine_amplitude * np.sin(2 * np.pi * t[part, None] * hertz)
        assert above.min() > -tolerances.SINE_ABS
        assert above.max() < config.noise_sigma + tolerances.SINE_ABS


def test_excitation_starts_again_after_reset(tiny_waveform: Waveform) -> None:
    f0 = goldens.arrays("offline_40")["f0"]
    excitation = Excitation(tiny_waveform.config)
    first = excitation.frames(f0)
    assert np.abs(excitation.frames(f0) - first).max() > tolerances.CHANGED_ABS
    excitation.reset()
    np.testing.assert_array_equal(excitation.frames(f0), first)


# -- streams


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 130), cuts=st.lists(st.integers(0, 60), max_size=6), block=st.integers(1, 70))
def test_any_cutting_gives_the_same_sound(tiny_waveform: Waveform, frames: int, cuts: list[int], block: int) -> None:
    mel = golden_mel("offline_137")[:frames]
    whole = speak(WaveformStream(tiny_waveform, 1000), mel, [frames])
    found = speak(WaveformStream(tiny_waveform, block), mel, [*cuts, 9])
    assert len(found) == len(whole) == 480 * frames
    assert np.abs(found - whole).max() < tolerances.CUTTING_ABS


def test_samples_come_as_soon_as_they_are_final(tiny_waveform: Waveform) -> None:
    """After L frames all but four frames and four samples: one frame less delay than upstream's rule of five."""
    mel = golden_mel("offline_40")
    stream, given_out = WaveformStream(tiny_waveform, 50), 0
    for frame in range(len(mel)):
        given_out += len(stream.push(mel[frame : frame + 1]))
        assert given_out == max(0, (frame + 1 - 4) * 480 - 4)
    assert given_out + len(stream.finish()) == len(mel) * 480


def test_what_was_given_out_does_not_depend_on_what_follows(tiny_waveform: Waveform) -> None:
    mel = golden_mel("offline_137")
    for frames in (5, 30, 60):
        early = WaveformStream(tiny_waveform, 50).push(mel[:frames])
        other = mel.copy()
        other[frames:] = other[frames:][::-1] + 1
        late = WaveformStream(tiny_waveform, 50).push(other)
        assert np.abs(late[: len(early)] - early).max() < tolerances.CUTTING_ABS


def test_no_frames_no_samples(tiny_waveform: Waveform) -> None:
    stream = WaveformStream(tiny_waveform, 50)
    assert len(stream.push(golden_mel("offline_40")[:0])) == 0
    assert len(stream.finish()) == 0


def test_reset_begins_anew(tiny_waveform: Waveform) -> None:
    mel = golden_mel("offline_40")
    stream = WaveformStream(tiny_waveform, 50)
    first = speak(stream, mel, [20])
    stream.reset()
    stream.push(mel[::-1])
    stream.reset()
    np.testing.assert_array_equal(speak(stream, mel, [20]), first)


def test_memory_of_a_stream_is_fixed(tiny_waveform: Waveform) -> None:
    stream = WaveformStream(tiny_waveform, 50)
    before = stream.nbytes
    for _ in range(3):
        stream.push(golden_mel("offline_137"))
    assert stream.nbytes == before
    assert len(stream._harmonics) < 3 * 480 and len(stream._mel) < 8


def test_loud_sound_is_clipped(tiny_waveform: Waveform) -> None:
    mel = golden_mel("offline_40") + 30
    found = speak(WaveformStream(tiny_waveform, 50), mel, [80])
    assert np.isfinite(found).all() and np.abs(found).max() <= np.float32(0.99)
