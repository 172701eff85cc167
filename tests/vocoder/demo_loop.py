"""The web demo's way of streaming, kept as a baseline: everything so far is computed again for every chunk.

Fun-Audio-Chat sends a chunk whenever 18 new tokens are there (15 and 3 of lookahead), runs the flow over all tokens it
still has and the waveform part over all mel since its last reset, and cuts off what was given out before. It runs here
on the same engines, so that a benchmark compares ways of computing, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.flow import Flow, FlowSettings
from edge_sdk.waveform import Waveform, WaveformStream

HOP, LOOKAHEAD = 15, 3
TRIM_TOKENS = 200  # dropped at once from the flow's history
RESET_TOKENS = 600  # dropped tokens after which the waveform part's history is dropped too
HELD_FRAMES = 8  # upstream's right context, before the end
BLOCK_FRAMES = 50

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Call:
    """One call of the demo: tokens [start, start + count), of which the first `offset` were given out before."""

    start: int
    count: int
    offset: int
    final: bool
    resets: bool = False  # the waveform part's history is dropped after this call


def plan(tokens: int) -> Iterator[Call]:
    """The calls for an utterance. Tails of 3 or 4 tokens are skipped, as in the demo."""
    start = offset = dropped = 0
    while start + offset + HOP + LOOKAHEAD <= tokens:
        count, before = offset + HOP + LOOKAHEAD, offset
        offset += HOP
        trims = offset >= TRIM_TOKENS
        dropped += TRIM_TOKENS * trims
        resets = trims and dropped >= RESET_TOKENS
        yield Call(start, count, before, final=False, resets=resets)
        if trims:
            offset -= TRIM_TOKENS
            start += TRIM_TOKENS
        dropped *= not resets
    if tokens - start > offset + LOOKAHEAD + 1:
        yield Call(start, tokens - start, offset, final=True)


@dataclass(frozen=True)
class Chunk:
    """What one call gave: the flow's whole mel [n, n_mels], how much of it is new, and new samples."""

    mel: Array
    new_frames: int
    pcm: Array


def run(flow: Flow, waveform: Waveform, settings: FlowSettings, ids: Array) -> Iterator[Chunk]:
    """The demo over int64 ids [T]."""
    history = np.empty((0, flow.config.n_mels), np.float32)
    given = 0
    for call in plan(len(ids)):
        mel = flow.whole(ids[call.start : call.start + call.count], settings, final=call.final)
        new = mel[call.offset * flow.config.frames_per_token :]
        history = np.concatenate([history, new])
        pcm = _sound(waveform, history, call.final)
        yield Chunk(mel, len(new), pcm[given:])
        given = len(pcm)
        if call.resets:
            history, given = history[:0], 0


def _sound(waveform: Waveform, mel: Array, final: bool) -> Array:
    stream = WaveformStream(waveform, BLOCK_FRAMES)
    pcm = stream.push(mel)
    if final:
        return np.concatenate([pcm, stream.finish()])
    return pcm[: max(0, len(mel) - HELD_FRAMES) * waveform.config.samples_per_frame]
