"""The speech head where its engine is one TensorRT plugin (docs/plugins.md): a run makes a whole group on the GPU.

State, settings and caches lie in memory that the host and the GPU see at one address; between runs the host may write
there, so a repeated run copies nothing but its input row and can be captured.
"""

from __future__ import annotations

import numpy as np

from edge_sdk.call_state import check_capacity
from edge_sdk.config import ModelConfig, TransformerConfig
from edge_sdk.errors import Error
from edge_sdk.kv_cache import Positions, rope_tables
from edge_sdk.runtime import Array, Call, Engine, Runtime
from edge_sdk.speech_head import Picker, SpeechHead

# struct SpeechHeadCudaState and SpeechHeadCudaSampling of csrc/kernels/speech_head.h
_STATE = np.dtype([("last_id", "<i8"), ("length", "<i4"), ("turn", "<u4"), ("step", "<u4"), ("error", "<i4")])
_SAMPLING = np.dtype(
    [
        ("do_sample", "<i4"), ("top_k", "<i4"), ("temperature", "<f4"), ("top_p", "<f4"),
        ("repetition_penalty", "<f4"), ("seed", "<u4", 2),
    ]
)  # fmt: skip
_CACHES = ("key_cache.", "value_cache.", "key_scales.", "value_scales.")
_CACHE_POSITIONS = 1  # axis of [kv_heads, capacity, ...]
_ERRORS = {
    1: "the state, the settings or a forced id is out of range",
    2: "the backbone's hidden state holds NaN or infinity, or the scores do",
    3: "its cache is full",
    4: "no id is left to choose",
}


class PluginSpeechHead(SpeechHead):
    """One engine of one layer, SpeechHead; the size of its input `kind` says whether a run is a prefill or a group."""

    def __init__(
        self, runtime: Runtime, engine: Engine, model: ModelConfig, head: TransformerConfig, capacity: int
    ) -> None:
        super().__init__(model)
        check_capacity(engine, "key_cache.0", capacity * self._size, _CACHE_POSITIONS)
        self.cache = Positions(capacity * self._size)
        self._arrays = {
            name: runtime.zeros(tuple(int(d) for d in spec.shape), spec.numpy_dtype)
            for name, spec in engine.inputs.items()
            if not any(isinstance(d, str) for d in spec.shape)
        }
        for name, table in zip(("rope_cos", "rope_sin"), self._rope(engine, head), strict=True):
            self._arrays[name][:] = table
        self._state = self._arrays["state"].view(_STATE)[0]
        self._sampling = self._arrays["sampling"].view(_SAMPLING)[0]
        self._ids = runtime.zeros((self._size,), np.int64)
        self._logits = runtime.zeros((self._size, model.speech_ids.codebook_size), np.float32)
        self._row = runtime.zeros((1, model.backbone.hidden_size), np.float32)
        self._prefill, self._make_group = (self._bind(engine.call(), runtime, kind) for kind in (1, 2))
        self._make_group.set("head_input", self._row)

    @staticmethod
    def _rope(engine: Engine, head: TransformerConfig) -> tuple[Array, Array]:
        return rope_tables(head.head_dim, head.rope_theta, int(engine.inputs["rope_cos"].shape[0]))

    def _bind(self, call: Call, runtime: Runtime, kind: int) -> Call:
        call.set("kind", runtime.zeros((kind,), np.int32))
        for name, array in self._arrays.items():
            call.set(name, array)
            if name == "state" or name.startswith(_CACHES):
                first, dot, layer = name.partition(".")
                call.out(f"{first}_out{dot}{layer}", array)
        call.out("ids", self._ids)
        call.out("logits", self._logits)
        return call

    def _group(self, head_input: Array, picker: Picker) -> Array:
        settings, state = picker.sampling, self._state
        self._row[:] = head_input
        state["last_id"], state["turn"], state["step"] = self._last_id, picker.turn, picker.step
        for name in ("do_sample", "top_k", "temperature", "top_p", "repetition_penalty"):
            self._sampling[name] = getattr(settings, name)
        self._sampling["seed"] = picker.seed & 0xFFFFFFFF, picker.seed >> 32
        self._arrays["seen"][:] = picker.seen
        self._arrays["forced"][:] = -1 if picker.forced is None else picker.forced
        self._run(self._make_group, self._size)
        picker.took(self._ids, self._logits)
        return self._ids.copy()

    def _append(self, head_input: Array) -> None:
        self._prefill.set("head_input", head_input)
        self._run(self._prefill, len(head_input) * self._size)

    def _run(self, call: Call, rows: int) -> None:
        self.cache.begin(rows)
        self._state["length"], self._state["error"] = self.cache.length, 0
        call.run()
        code = int(self._state["error"])
        if code:
            raise Error(f"speech head: {_ERRORS.get(code, f'the plugin says error {code}')}")
        self.cache.commit(rows)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for name, array in self._arrays.items() if name.startswith(_CACHES))
