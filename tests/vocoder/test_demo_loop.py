"""The baseline does what the demo does: the same calls, the same mel, as many samples."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.flow import Flow, FlowSettings
from edge_sdk.waveform import Waveform
from tests import tolerances
from tests.vocoder import demo_loop, goldens


@pytest.mark.parametrize("tokens", [int(n) for n in goldens.index()["tables"]["fac_stream"]])
def test_plan_of_short_utterances(tokens: int) -> None:
    expected = goldens.index()["tables"]["fac_stream"][str(tokens)]["chunks"]
    assert [[c.start, c.count, c.offset, c.final] for c in demo_loop.plan(tokens)] == expected


def test_plan_of_a_long_utterance() -> None:
    expected = goldens.index()["chunks"]["fac_stream_long_650"]
    calls = [row for row in expected if row["kind"] == "chunk"]
    found = list(demo_loop.plan(650))
    for call, row in zip(found, calls, strict=True):
        assert (call.start, call.count, call.offset, call.final) == (
            row["token_start"],
            row["token_count"],
            row["token_offset"],
            row["finalize"],
        )
    resets = [i for i, call in enumerate(found) if call.resets]
    assert [expected[i + 1]["kind"] for i in resets] == ["reset_vocoder_cache"]


@pytest.mark.parametrize("case", ["fac_stream_40", "fac_stream_137"])
def test_mel_and_sample_counts(tiny_flow: Flow, tiny_waveform: Waveform, exact: FlowSettings, case: str) -> None:
    chunks = list(demo_loop.run(tiny_flow, tiny_waveform, exact, goldens.tokens(case)))
    rows = goldens.index()["chunks"][case]
    assert [len(c.pcm) for c in chunks] == [row["audio_samples"] for row in rows]
    assert [c.new_frames for c in chunks] == [row["mel_frames_new"] for row in rows]
    for i, chunk in enumerate(chunks):
        if f"chunk{i}_mel" in goldens.arrays(case):
            assert goldens.difference(case, f"chunk{i}_mel", chunk.mel.T) < tolerances.FLOW_MEL_ABS
    pcm = np.concatenate([c.pcm for c in chunks])
    stride = goldens.index()["strides"][case]["wav"]
    expected = goldens.arrays(case)["wav"]
    assert len(pcm[::stride]) == len(expected)
    ratio = float(np.sqrt((pcm[::stride] ** 2).mean() / (expected**2).mean()))
    assert abs(ratio - 1) < tolerances.RMS_RELATIVE


def test_mel_around_trims_and_the_reset(tiny_flow: Flow, exact: FlowSettings) -> None:
    case, stride = "fac_stream_long_650", goldens.index()["strides"]["fac_stream_long_650"]["new_mel"]
    ids, expected = goldens.tokens(case), goldens.arrays(case)["new_mel"]
    at = 0
    for n, call in enumerate(demo_loop.plan(650)):
        new = 2 * (call.count - call.offset - (0 if call.final else demo_loop.LOOKAHEAD))
        if n in (0, 13, 14, 27, 39, 40, 43):
            mel = tiny_flow.whole(ids[call.start : call.start + call.count], exact, final=call.final)[-new:].T
            columns = expected[:, at // stride : (at + new) // stride]
            assert np.abs(mel[:, ::stride] - columns).max() < tolerances.FLOW_MEL_ABS
        at += new
    assert at == 1300
