"""The speech refined head of one conversation: G speech tokens at 25 Hz for every backbone position.

The prompt's last position is made like every later one, G single rows of which the first adds the embedding of the
token before it: at the start that is BOS. All earlier prompt positions add BOS to each of their rows (upstream's first
call of 5T-4 rows). So `prefill` always keeps the newest position back until it knows which of the two it is.

Ways to compute it, with the same tokens: graphs of plain ops, run once for each id, with the choice made here
(`PlainSpeechHead`); and one op of our own for the whole group, choice included (`FusedSpeechHead`; as a TensorRT plugin
`plugin_head.PluginSpeechHead`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from edge_sdk.config import ModelConfig, TransformerConfig
from edge_sdk.kv_cache import KVCache, Positions, rope_tables
from edge_sdk.manifest import FUSED_GRAPH
from edge_sdk.runtime import Array, Call, Engine, Runtime
from edge_sdk.sampling import Sampling

PREFILL_POSITIONS = 64


class Picker(Protocol):
    """What decides the ids of one group."""

    sampling: Sampling
    seed: int
    turn: int
    step: int

    @property
    def seen(self) -> Array:
        """uint8 [codes]: ids the repetition penalty acts on."""

    @property
    def forced(self) -> Array | None:
        """int64 [G] ids to take whatever the scores say."""

    def pick(self, logits: Array, sub_step: int) -> int:
        """The id of one row's scores, float32 [codes]."""

    def took(self, ids: Array, logits: Array) -> None:
        """A kernel has decided by these settings: ids int64 [G], from scores float32 [G, codes]."""


def open_speech_head(runtime: Runtime, model: ModelConfig, head: TransformerConfig, capacity: int) -> SpeechHead:
    """The fastest head this runtime has, over a cache of `capacity` backbone positions."""
    engine = runtime.fused(FUSED_GRAPH)
    if engine is not None and "kind" in engine.inputs:
        from edge_sdk.plugin_head import PluginSpeechHead

        return PluginSpeechHead(runtime, engine, model, head, capacity)
    if engine is not None:
        return FusedSpeechHead(runtime, engine, model, head, capacity)
    return PlainSpeechHead(runtime, model, head, capacity)


class SpeechHead(ABC):
    """Prefill and group steps over one cache."""

    cache: Positions

    def __init__(self, model: ModelConfig) -> None:
        self._size, self._bos = model.group_size, model.speech_ids.bos
        self._held: Array | None = None  # head input [1, hidden] of the newest prompt position
        self._last_id = self._bos

    @property
    def positions(self) -> int:
        """Prompt positions taken so far, the held one included. Meaningful before `step` is first called."""
        return self.cache.length // self._size + (self._held is not None)

    def prefill(self, head_input: Array) -> None:
        """Append prompt positions, head_input float32 [S, hidden]; the last stays held."""
        rows = head_input if self._held is None else np.concatenate([self._held, head_input])
        for at in range(0, len(rows) - 1, PREFILL_POSITIONS):
            self._append(np.ascontiguousarray(rows[at : min(at + PREFILL_POSITIONS, len(rows) - 1)]))
        self._held = rows[-1:].copy()

    def rewind(self, positions: int, held: Array | None) -> None:
        """Keep `positions` prompt positions; the newest of them is held again if its head input is given."""
        kept = positions - (held is not None)
        self.cache.trim(kept * self._size)
        self._held = held

    def start(self, picker: Picker) -> Array:
        """The prompt is complete: make the group of its last position, int64 [G]. Returns the picks."""
        if self._held is None:
            raise RuntimeError("start before prefill")  # a caller inside the package: not a user's mistake
        held, self._held, self._last_id = self._held, None, self._bos
        return self.step(held, picker)

    def step(self, head_input: Array, picker: Picker) -> Array:
        """One group: G rows, each with the embedding of the token before it. head_input [1, hidden] -> int64 [G]."""
        ids = self._group(head_input, picker)
        self._last_id = int(ids[-1])
        return ids

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the cache."""

    @abstractmethod
    def _append(self, head_input: Array) -> None:
        """Prompt positions, at most PREFILL_POSITIONS, contiguous; BOS joins every row."""

    @abstractmethod
    def _group(self, head_input: Array, picker: Picker) -> Array:
        """The group's ids; `_last_id` is the one before."""


class PlainSpeechHead(SpeechHead):
    """Graphs of plain ops: one for what a position brings in, one for the transformer, run for each id."""

    def __init__(self, runtime: Runtime, model: ModelConfig, head: TransformerConfig, capacity: int) -> None:
        super().__init__(model)
        self._width = head.hidden_size
        engine = runtime.engine("speech_head")
        self.cache: KVCache = KVCache(runtime, engine, capacity * self._size)
        rope = rope_tables(head.head_dim, head.rope_theta, capacity * self._size)
        self._logits = runtime.zeros((model.speech_ids.codebook_size,), np.float32)
        self._calls = {key: engine.call() for key in ("prefill", "step")}
        for call in self._calls.values():
            call.set("rope_cos", rope[0])
            call.set("rope_sin", rope[1])
            self.cache.bind(call)
            call.out("logits", self._logits)
        self._row = np.zeros((1, self._width), np.float32)
        self._id = np.zeros(1, np.int64)
        self._calls["step"].set("rows", self._row)
        self._calls["step"].set("ids", self._id)
        self._input = runtime.engine("speech_input").call()
        self._group_input = runtime.engine("speech_input").call()
        self._group_rows = runtime.zeros((self._size, self._width), np.float32)
        self._group_input.out("rows", self._group_rows)

    def _group(self, head_input: Array, picker: Picker) -> Array:
        self._group_input.set("head_input", head_input)
        self._group_input.run()
        call, out, last_id = self._calls["step"], np.empty(self._size, np.int64), self._last_id
        for j in range(self._size):
            self._row[0] = self._group_rows[j]
            self._id[0] = last_id
            self.cache.begin(1)
            call.run()
            self.cache.commit(1)
            out[j] = last_id = picker.pick(self._logits, j)
        return out

    def _append(self, head_input: Array) -> None:
        rows = np.empty((len(head_input) * self._size, self._width), np.float32)
        self._input.set("head_input", head_input)
        self._input.out("rows", rows)
        self._input.run()
        call = self._calls["prefill"]
        call.set("rows", rows)
        call.set("ids", np.full(len(rows), self._bos, np.int64))
        self.cache.begin(len(rows))
        call.run()
        self.cache.commit(len(rows))

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes


class FusedSpeechHead(SpeechHead):
    """One graph of one op, edge_sdk::SpeechHead (csrc/ort/speech_head_op.cc): a run makes a whole group."""

    def __init__(
        self, runtime: Runtime, engine: Engine, model: ModelConfig, head: TransformerConfig, capacity: int
    ) -> None:
        super().__init__(model)
        self.cache = Positions(capacity * self._size)
        self._arrays = {
            name: runtime.zeros(_shape(engine, name, self.cache.capacity), engine.inputs[name].numpy_dtype)
            for name in ("cache", "cache_scales")
        }
        codes = model.speech_ids.codebook_size
        rope = rope_tables(head.head_dim, head.rope_theta, self.cache.capacity)
        self._control = np.zeros(_shape(engine, "control"), np.int64)
        self._control[_THREADS] = getattr(runtime, "threads", 1)
        self._sampling = np.ones(_shape(engine, "sampling"), np.float32)
        self._seen = np.zeros(codes, np.uint8)
        self._forced = np.empty(self._size, np.int64)
        self._ids = runtime.zeros((self._size,), np.int64)
        self._logits = runtime.zeros((self._size, codes), np.float32)
        self._row = np.zeros((1, model.backbone.hidden_size), np.float32)
        self._calls = {key: engine.call() for key in ("prefill", "group")}
        for call in self._calls.values():
            self._bind(call, rope)
        self._calls["group"].set("head_input", self._row)

    def _bind(self, call: Call, rope: tuple[Array, Array]) -> None:
        inputs: dict[str, Array] = {
            "control": self._control,
            "sampling": self._sampling,
            "seen": self._seen,
            "forced": self._forced,
        }
        for name, array in inputs.items():
            call.set(name, array)
        call.set("rope_cos", rope[0])
        call.set("rope_sin", rope[1])
        for name, array in self._arrays.items():
            call.set(name, array)
            call.out(f"{name}_out", array)
        call.out("ids", self._ids)
        call.out("logits", self._logits)

    def _group(self, head_input: Array, picker: Picker) -> Array:
        settings, control = picker.sampling, self._control
        self._row[:] = head_input
        control[_GROUP], control[_LENGTH], control[_LAST_ID] = 1, self.cache.length, self._last_id
        control[_DO_SAMPLE], control[_TOP_K] = settings.do_sample, settings.top_k
        control[_SEED] = np.uint64(picker.seed).astype(np.int64)
        control[_TURN], control[_STEP] = picker.turn, picker.step
        self._sampling[:] = settings.temperature, settings.top_p, settings.repetition_penalty
        self._seen[:] = picker.seen
        self._forced[:] = -1 if picker.forced is None else picker.forced
        self.cache.begin(self._size)
        self._calls["group"].run()
        self.cache.commit(self._size)
        picker.took(self._ids, self._logits)
        return self._ids.copy()

    def _append(self, head_input: Array) -> None:
        rows = len(head_input) * self._size
        call = self._calls["prefill"]
        call.set("head_input", head_input)
        self._control[_GROUP], self._control[_LENGTH] = 0, self.cache.length
        self.cache.begin(rows)
        call.run()
        self.cache.commit(rows)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())


# Places in the op's input `control` (csrc/ort/speech_head_op.cc).
_GROUP, _LENGTH, _LAST_ID, _DO_SAMPLE, _TOP_K, _SEED, _TURN, _STEP, _THREADS = range(9)


def _shape(engine: Engine, name: str, capacity: int = 0) -> tuple[int, ...]:
    return tuple(capacity if dim == "capacity" else int(dim) for dim in engine.inputs[name].shape)
