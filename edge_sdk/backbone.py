"""The backbone of one conversation: its KV cache and its bound calls. Text at 5 Hz, one position a decode step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.kv_cache import KVCache, rope_tables
from edge_sdk.runtime import Array, Call, Engine, Runtime


@dataclass
class BackboneOutput:
    """What the last position of a run predicts, and what the speech head reads of all its positions."""

    head_input: Array  # float32 [S, hidden]
    logits: Array  # float32 [vocab], overwritten by the next run
    token: int  # argmax of logits


class Backbone:
    """Prefill and decode over one cache of `capacity` positions."""

    def __init__(self, runtime: Runtime, model: ModelConfig, capacity: int) -> None:
        config = model.backbone
        self._hidden = config.hidden_size
        self._engine: Engine = runtime.engine("backbone")
        self.cache = KVCache(runtime, self._engine, capacity)
        self._rope = rope_tables(config.head_dim, config.rope_theta, capacity)
        self._logits = runtime.zeros((model.text_ids.vocab_size,), np.float32)
        self._token = runtime.zeros((), np.int64)
        self._prefill = self._call()
        self._no_audio = np.zeros((0, self._hidden), np.float32)
        self._no_positions = np.zeros(0, np.int64)
        self._no_speech = np.zeros((0, model.group_size), np.int64)
        self._ids = np.zeros(1, np.int64)
        self._speech = np.zeros((1, model.group_size), np.int64)
        self._row = runtime.zeros((1, self._hidden), np.float32)
        # Two calls of one position, with and without a group, bound once: a step then only changes their contents.
        self._step = {False: self._step_call(False), True: self._step_call(True)}

    def prefill(self, ids: Array, audio: Array, audio_positions: Array) -> BackboneOutput:
        """Append positions.

        Args:
            ids: int64 [S], S > 0; placeholders carry the placeholder's id.
            audio: float32 [N, hidden], the rows that replace the embeddings at `audio_positions` int64 [N], ascending.
        """
        head_input = np.empty((len(ids), self._hidden), np.float32)
        call = self._prefill
        call.set("ids", np.ascontiguousarray(ids, np.int64))
        call.set("audio", np.ascontiguousarray(audio, np.float32))
        call.set("audio_positions", np.ascontiguousarray(audio_positions, np.int64))
        call.set("speech", self._no_speech)
        call.set("speech_positions", self._no_positions)
        call.out("head_input", head_input)
        self._run(call, len(ids))
        return BackboneOutput(head_input, self._logits, int(self._token))

    def step(self, text_id: int, group: Array | None) -> BackboneOutput:
        """Append one position: a text id, joined by the group (speech ids int64 [G]) of the step before, if any."""
        self._ids[0] = text_id
        if group is not None:
            self._speech[0] = group
        self._run(self._step[group is not None], 1)
        return BackboneOutput(self._row, self._logits, int(self._token))

    def _run(self, call: Call, rows: int) -> None:
        self.cache.begin(rows)
        call.run()
        self.cache.commit(rows)

    def _call(self) -> Call:
        call = self._engine.call()
        call.set("rope_cos", self._rope[0])
        call.set("rope_sin", self._rope[1])
        self.cache.bind(call)
        call.out("logits", self._logits)
        call.out("token", self._token)
        return call

    def _step_call(self, with_group: bool) -> Call:
        call = self._call()
        fixed: dict[str, np.ndarray[Any, Any]] = {
            "ids": self._ids,
            "audio": self._no_audio,
            "audio_positions": self._no_positions,
            "speech": self._speech if with_group else self._no_speech,
            "speech_positions": np.zeros(1, np.int64) if with_group else self._no_positions,
        }
        for name, array in fixed.items():
            call.set(name, array)
        call.out("head_input", self._row)
        return call

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes
