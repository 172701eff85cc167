"""The flow's graphs and streams: against recordings, against the NumPy reference, and streamed against whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.config import FlowConfig
from edge_sdk.errors import BundleError, Error
from edge_sdk.export.reference.flow import FlowReference, chunk_mask
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint
from edge_sdk.flow import Flow, FlowSettings, TokenConditions
from edge_sdk.flow_stream import FlowStream
from edge_sdk.runtime import Engine, Runtime
from edge_sdk.runtimes.ort import OrtRuntime
from tests import tolerances
from tests.vocoder import goldens

Array = np.ndarray[Any, Any]


def stream_mel(stream: FlowStream, ids: Array, cuts: list[int]) -> Array:
    """Push `ids` in pieces of the given lengths, the last of them again and again."""
    parts, at, sizes = [], 0, iter(cuts)
    size = 1
    while at < len(ids):
        size = next(sizes, size)
        parts.append(stream.push(ids[at : at + size]))
        at += size
    return np.concatenate([*parts, stream.finish()])


def reference_mel(
    source: VocoderCheckpoint, ids: Array, speaker: Array, noise: Array, mask: Any, **options: Any
) -> Array:
    reference = FlowReference(source.flow, source.flow_weights.read)
    mu = reference.tokens(ids)["mu"]
    options = {"steps": 10, "cfg_rate": 0.7} | options
    return reference.sample(mu, reference.speaker(speaker), noise[: len(mu)], mask=mask, **options)[-1]["x_out"]


# -- stages


def test_lookahead(tiny_flow: Flow) -> None:
    out = TokenConditions(tiny_flow, goldens.voice()).next(goldens.tokens("offline_40"), final=True)
    assert goldens.difference("offline_40", "lookahead_out", out["mu"]) < tolerances.LOOKAHEAD_ABS


def test_lookahead_in_pieces(tiny_flow: Flow) -> None:
    ids = goldens.tokens("offline_40")
    whole = TokenConditions(tiny_flow, goldens.voice()).next(ids, final=True)
    front = TokenConditions(tiny_flow, goldens.voice())
    pieces = [front.next(ids[a : b + 3], final=False) for a, b in ((0, 1), (1, 2), (2, 20), (20, 35))]
    pieces.append(front.next(ids[35:], final=True))
    for name, array in whole.items():
        found = np.concatenate([piece[name] for piece in pieces])
        assert np.abs(found - array).max() < tolerances.LOOKAHEAD_ABS


@pytest.mark.parametrize("step", [0, 9])
def test_velocity(tiny_flow: Flow, step: int) -> None:
    case = "offline_40"
    front = TokenConditions(tiny_flow, goldens.voice()).next(goldens.tokens(case), final=True)
    call = tiny_flow.whole_call(front["condition"])
    x = tiny_flow.noise[:80] if step == 0 else np.ascontiguousarray(goldens.arrays(case)["step9_x_in"].T)
    call.set("x", x)
    call.set("step", np.array(step))
    call.set("cfg_rate", np.array(0.7, np.float32))
    call.fetch("velocity")
    velocity = call.run()["velocity"].transpose(1, 2, 0)
    assert goldens.difference(case, f"step{step}_estimator_out", velocity) < tolerances.VELOCITY_ABS


@pytest.mark.parametrize("case", ["offline_40", "offline_137"])
def test_whole(tiny_flow: Flow, exact: FlowSettings, case: str) -> None:
    mel = tiny_flow.whole(goldens.tokens(case), exact)
    assert goldens.difference(case, "mel", mel.T) < tolerances.FLOW_MEL_ABS


@pytest.mark.parametrize("case", ["offline_40", "offline_137"])
def test_streaming(tiny_flow: Flow, exact: FlowSettings, case: str) -> None:
    mel = stream_mel(FlowStream(tiny_flow, exact), goldens.tokens(case), [1])
    assert goldens.difference(case, "mel_chunkmask", mel.T) < tolerances.FLOW_MEL_ABS


def test_streaming_against_streamed_recording(tiny_flow: Flow, exact: FlowSettings) -> None:
    case = "chunkmask_stream_137"
    mel = stream_mel(FlowStream(tiny_flow, exact), goldens.tokens(case), [5])
    assert goldens.difference(case, "chunk5_mel", mel.T) < tolerances.FLOW_MEL_ABS


# -- options


@pytest.mark.parametrize(("steps", "cfg_rate"), [(5, 0.7), (4, 0.7), (10, 0.0), (4, 1.5)])
def test_steps_and_guidance(tiny_flow: Flow, tiny_source: VocoderCheckpoint, steps: int, cfg_rate: float) -> None:
    ids = goldens.tokens("offline_40")
    options = FlowSettings(goldens.voice(), steps, cfg_rate, context_frames=None)
    for mask, found in (
        (None, tiny_flow.whole(ids, options)),
        (chunk_mask(80, 50), stream_mel(FlowStream(tiny_flow, options), ids, [40])),
    ):
        expected = reference_mel(
            tiny_source, ids, goldens.voice(), tiny_flow.noise, mask, steps=steps, cfg_rate=cfg_rate
        )
        assert np.abs(found - expected).max() < tolerances.FLOW_MEL_ABS


def test_steps_without_tables(tiny_flow: Flow) -> None:
    with pytest.raises(Error, match="10, 5, 4 flow steps, asked for 7"):
        tiny_flow.step_rows(7)


def test_noise_must_fit(tiny_bundle: Bundle, tiny_flow: Flow) -> None:
    runtime = tiny_bundle.runtime()
    config = tiny_flow.config
    for noise in (tiny_flow.noise, tiny_flow.noise.T[:, :100], tiny_flow.noise.T.astype(np.float64)):
        with pytest.raises(BundleError, match="initial noise must be float32"):
            Flow(runtime, config, noise)
    few = FlowConfig.from_json({**config.to_json(), "noise_frames": 49})
    with pytest.raises(BundleError, match="49 columns, a chunk 50"):
        Flow(runtime, few, tiny_flow.noise.T[:, :49])


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_frames": 0},
        {"chunk_frames": 51},
        {"frames_per_token": 0},
        {"lookahead_tokens": 0},
        {"steps": ()},
        {"steps": (10, 0)},
    ],
)
def test_sizes_that_cannot_be(tiny_bundle: Bundle, tiny_flow: Flow, change: dict[str, Any]) -> None:
    config = dataclasses.replace(tiny_flow.config, **change)
    with pytest.raises(BundleError, match="flow cannot be"):
        Flow(tiny_bundle.runtime(), config, tiny_flow.noise.T)


def test_whole_is_limited_by_the_noise(small_bundle: Bundle) -> None:
    flow, options = small_flow(small_bundle, None)
    with pytest.raises(Error, match="326 mel frames at once, the bundle has noise for 325"):
        flow.whole(np.zeros(163, np.int64), options)


# -- streamed equals whole


def small_flow(bundle: Bundle, context_frames: int | None, preview: int = 0) -> tuple[Flow, FlowSettings]:
    vocoder = bundle.manifest.vocoder
    assert vocoder
    flow = Flow(bundle.runtime(), vocoder.flow, bundle.read_array(bundle.manifest.noise))
    return flow, FlowSettings(bundle.voice(), 4, 0.7, context_frames, preview)


@pytest.fixture(scope="module")
def small_source(small_bundle: Bundle) -> VocoderCheckpoint:
    from edge_sdk.export.vocoder_checkpoint import read_vocoder

    return read_vocoder(small_bundle.path.parent / "source", noise_frames=325)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cutting_gives_the_same(small_bundle: Bundle, data: st.DataObject) -> None:
    flow, options = small_flow(small_bundle, data.draw(st.sampled_from([None, 0, 8, 24])))
    ids = np.array(data.draw(st.lists(st.integers(0, 49), max_size=60)), np.int64)
    once = stream_mel(FlowStream(flow, options), ids, [100])
    cuts = data.draw(st.lists(st.integers(0, 30), max_size=8))
    again = stream_mel(FlowStream(flow, options), ids, [*cuts, 7])
    assert len(once) == 2 * len(ids)
    np.testing.assert_array_equal(again, once)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 30])
@pytest.mark.parametrize("blocks", [None, 0, 1, 3])
def test_streaming_equals_the_masked_reference(
    small_bundle: Bundle, small_source: VocoderCheckpoint, tokens: int, blocks: int | None
) -> None:
    flow, options = small_flow(small_bundle, None if blocks is None else 8 * blocks)
    ids = np.random.default_rng(tokens).integers(0, 50, tokens)
    mask = chunk_mask(2 * tokens, 8, blocks)
    expected = reference_mel(small_source, ids, options.speaker, flow.noise, mask, steps=4)
    found = stream_mel(FlowStream(flow, options), ids, [3])
    scale = float(np.sqrt((expected**2).mean()))
    assert np.abs(found - expected).max() < tolerances.OTHER_SIZES_RELATIVE * scale


def test_earlier_tokens_alone_decide(tiny_flow: Flow, exact: FlowSettings) -> None:
    """Changing token p changes no frame before the block it is seen from: difference exactly 0."""
    ids = goldens.tokens("offline_137")
    first = stream_mel(FlowStream(tiny_flow, exact), ids, [137])
    for p, unchanged in ((77, 100), (78, 150)):
        other = ids.copy()
        other[p] = (other[p] + 1) % 6561
        again = stream_mel(FlowStream(tiny_flow, exact), other, [137])
        np.testing.assert_array_equal(again[:unchanged], first[:unchanged])
        assert (
            np.abs(again[unchanged : unchanged + 50] - first[unchanged : unchanged + 50]).max() > tolerances.CHANGED_ABS
        )


# -- memory and long streams


def test_bounded_memory_does_not_grow(small_bundle: Bundle) -> None:
    flow, options = small_flow(small_bundle, 20)  # rounded up to 24: three blocks
    stream = FlowStream(flow, options)
    size = stream.nbytes
    stream.push(np.random.default_rng(0).integers(0, 50, 400))
    assert stream.nbytes == size
    per_frame = 2 * 2 * flow.config.depth * flow.config.heads * flow.config.head_dim * 4
    assert size >= 4 * (24 + 8) * per_frame
    assert size < 4 * (24 + 8) * per_frame * 1.5  # what is not keys and values is little


def test_unbounded_memory_grows_and_keeps_all(small_bundle: Bundle, small_source: VocoderCheckpoint) -> None:
    flow, options = small_flow(small_bundle, None)
    stream = FlowStream(flow, options)
    size = stream.nbytes
    ids = np.random.default_rng(0).integers(0, 50, 80)  # 160 frames: more than the first capacity of 64
    found = stream_mel(stream, ids, [5])
    assert stream.nbytes > 2 * size
    expected = reference_mel(small_source, ids, options.speaker, flow.noise, chunk_mask(160, 8), steps=4)
    scale = float(np.sqrt((expected**2).mean()))
    assert np.abs(found - expected).max() < tolerances.OTHER_SIZES_RELATIVE * scale


@pytest.mark.parametrize("blocks", [None, 2])
def test_past_the_noise_caches_restart_and_nothing_is_lost(
    small_bundle: Bundle, small_source: VocoderCheckpoint, blocks: int | None
) -> None:
    flow, options = small_flow(small_bundle, None if blocks is None else 8 * blocks)
    ids = np.random.default_rng(5).integers(0, 50, 350)  # 700 frames, noise for 320 whole blocks' worth
    found = stream_mel(FlowStream(flow, options), ids, [13])
    assert len(found) == 700
    reference = FlowReference(small_source.flow, small_source.flow_weights.read)
    mu, speaker = reference.tokens(ids)["mu"], reference.speaker(options.speaker)  # the tokens go on
    scale = float(np.sqrt((found**2).mean()))
    for begin in range(0, 700, 320):
        part = mu[begin : begin + 320]
        mask = chunk_mask(len(part), 8, blocks)
        expected = reference.sample(part, speaker, flow.noise[: len(part)], steps=4, cfg_rate=0.7, mask=mask)[-1][
            "x_out"
        ]
        difference = np.abs(found[begin : begin + 320] - expected).max()
        assert difference < tolerances.OTHER_SIZES_RELATIVE * scale


class LittleMemory:
    """A runtime that gives out so many bytes."""

    name, device = "onnxruntime", "cpu"

    def __init__(self, runtime: Runtime, left: int) -> None:
        self._runtime, self.left = runtime, left

    def engine(self, graph: str) -> Engine:
        return self._runtime.engine(graph)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        array: Array = self._runtime.zeros(shape, dtype)
        self.left -= array.nbytes
        if self.left < 0:
            raise MemoryError("no more")
        return array


def test_too_little_memory_is_named(small_bundle: Bundle) -> None:
    flow, options = small_flow(small_bundle, 24)
    flow.runtime = LittleMemory(flow.runtime, 10000)
    with pytest.raises(Error, match=r"caches of 32 frames \(no more\): choose a smaller context_s"):
        FlowStream(flow, options)


def test_too_little_memory_to_grow_takes_nothing(small_bundle: Bundle) -> None:
    flow, options = small_flow(small_bundle, None)
    ids = np.random.default_rng(3).integers(0, 50, 80)
    expected = stream_mel(FlowStream(flow, options), ids, [4])
    memory = LittleMemory(flow.runtime, 10**9)
    flow.runtime = memory
    stream = FlowStream(flow, options)
    parts = [stream.push(ids[:30])]
    memory.left = 100000  # enough for some of the arrays
    with pytest.raises(Error, match="caches of 152 frames"):
        stream.push(ids[30:])
    memory.left = 10**9
    parts += [stream.push(ids[30:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_reset_begins_anew(small_bundle: Bundle) -> None:
    flow, options = small_flow(small_bundle, 8)
    ids = np.random.default_rng(6).integers(0, 50, 50)
    stream = FlowStream(flow, options)
    first = stream_mel(stream, ids, [50])
    stream.push(ids[::-1])
    stream.reset()
    np.testing.assert_array_equal(stream_mel(stream, ids, [50]), first)


def test_streams_do_not_disturb_each_other(small_bundle: Bundle) -> None:
    flow, options = small_flow(small_bundle, 8)
    rng = np.random.default_rng(7)
    ids = [rng.integers(0, 50, 40) for _ in range(3)]
    alone = [stream_mel(FlowStream(flow, options), i, [40]) for i in ids]
    streams = [FlowStream(flow, options) for _ in ids]
    parts: list[list[Array]] = [[] for _ in ids]
    for at in range(0, 40, 10):
        for stream, i, part in zip(streams, ids, parts, strict=True):
            part.append(stream.push(i[at : at + 10]))
    for stream, part, expected in zip(streams, parts, alone, strict=True):
        np.testing.assert_array_equal(np.concatenate([*part, stream.finish()]), expected)


# -- preview


def test_preview_gives_the_first_frames_early_and_the_rest_exactly(small_bundle: Bundle) -> None:
    exact_flow, exact_options = small_flow(small_bundle, None)
    flow, options = small_flow(small_bundle, None, preview=2)
    ids = np.random.default_rng(8).integers(0, 50, 30)
    expected = stream_mel(FlowStream(exact_flow, exact_options), ids, [30])
    for cuts in ([1], [5], [5, 1, 30]):
        stream = FlowStream(flow, options)
        found = stream_mel(stream, ids, cuts)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found[4:], expected[4:])  # all but the preview's two tokens
        assert np.abs(found[:4] - expected[:4]).max() > 0  # the preview did not see the rest of its block
    early = FlowStream(flow, options)
    assert [len(early.push(ids[i : i + 1])) for i in range(7)] == [0, 0, 0, 0, 4, 0, 4]


def test_preview_of_a_short_utterance(small_bundle: Bundle) -> None:
    flow, options = small_flow(small_bundle, None, preview=2)
    for tokens in range(1, 9):
        ids = np.random.default_rng(tokens).integers(0, 50, tokens)
        assert len(stream_mel(FlowStream(flow, options), ids, [1])) == 2 * tokens


def test_caches_are_updated_in_place(tiny_bundle: Bundle, tiny_flow: Flow, exact: FlowSettings) -> None:
    """The runtime writes into the arrays that were bound: no copy of a cache travels."""
    runtime = tiny_bundle.runtime()
    assert isinstance(runtime, OrtRuntime)
    stream = FlowStream(tiny_flow, exact)
    states = stream._blocks._states
    before = {name: array.ctypes.data for name, array in states[3].arrays.items()}
    stream.push(goldens.tokens("offline_40"))
    assert {name: array.ctypes.data for name, array in states[3].arrays.items()} == before
    keys = states[3].arrays["key_cache.1"]
    assert np.abs(keys[:, :, :50]).max() > 0 and not keys[:, :, 50:].any()
