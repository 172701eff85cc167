"""What a reply emits while it is made, and what it is in the end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from edge_sdk.errors import AudioError
from edge_sdk.runtime import Array


@dataclass(frozen=True)
class TextDelta:
    """New text. `ids` are the text ids since the last delta, `step` the decode step that completed it (200 ms each)."""

    text: str
    ids: tuple[int, ...]
    step: int


@dataclass(frozen=True, eq=False)  # arrays do not compare to one answer
class AudioChunk:
    """New sound: pcm float32 [n] in [-1, 1]; `start_s` is where it begins in the reply's sound."""

    pcm: Array
    sample_rate: int
    start_s: float


@dataclass(frozen=True)
class ToolCall:
    """The model calls a function. `arguments` is the parsed object, `raw` the generated text, tags included."""

    id: str
    name: str
    arguments: dict[str, Any]
    raw: str


@dataclass(frozen=True)
class Timings:
    """Where the time of one reply went. Milliseconds of wall time unless the name says otherwise.

    `ttft_ms` and `ttfa_ms` run from the call that completed the question (`send`, `stream`, `Turn.finish`) to the first
    text id and to the first sound. Parts that overlap (the vocoder has its own thread) are counted each.
    """

    seed: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    steps: int = 0
    encode_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    ttfa_ms: float | None = None
    backbone_ms: float = 0.0
    speech_head_ms: float = 0.0
    flow_ms: float = 0.0
    waveform_ms: float = 0.0
    total_ms: float = 0.0
    audio_s: float = 0.0
    step_p50_ms: float = 0.0
    step_p95_ms: float = 0.0
    cache_bytes: int = 0
    vocoder_cache_bytes: int = 0

    @property
    def rtf(self) -> float | None:
        """Compute time over sound made: below 1 is faster than real time. None without sound."""
        return self.total_ms / 1000 / self.audio_s if self.audio_s else None


@dataclass(frozen=True, eq=False)
class Reply:
    """A finished reply.

    Attributes:
        text: special tokens skipped; well-formed tool calls are in `tool_calls` instead.
        audio: float32 [n] in [-1, 1], empty without speech or without a vocoder in the bundle.
        sample_rate: of `audio`, Hz.
        text_ids, speech_ids: as generated; speech in whole groups, eos groups included.
        tool_calls: every call made in this turn.
        finish_reason: "stop", "length", "interrupted", "tool_calls" or "context".
        timings: where the time went.
    """

    text: str
    audio: Array
    sample_rate: int
    text_ids: tuple[int, ...]
    speech_ids: tuple[int, ...]
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    timings: Timings = field(repr=False, default_factory=Timings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sound as a WAV file (16 bit).

        Raises:
            AudioError: there is no sound, or the file cannot be written.
        """
        from edge_sdk.audio import write_wav

        if not len(self.audio):
            raise AudioError(
                "this reply has no sound to save: it was made without speech, or ended before any was made"
            )
        write_wav(path, self.audio, self.sample_rate)


@dataclass(frozen=True)
class Done:
    """The last event of every reply."""

    reply: Reply


Event = TextDelta | AudioChunk | ToolCall | Done
