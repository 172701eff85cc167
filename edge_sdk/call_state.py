"""The states of a graph: arrays that its calls read and update in place."""

from __future__ import annotations

from collections.abc import Mapping

from edge_sdk.errors import Error
from edge_sdk.runtime import Array, Call, Engine, Runtime

_MARK, _OUT = "_cache", "_cache_out"
_CACHES = ("key_cache.", "value_cache.")


def check_capacity(engine: Engine, cache: str, wanted: int, axis: int = 2) -> None:
    """Raise Error if a cache of `wanted` positions does not fit: built engines have caches of a fixed size."""
    rows = engine.inputs[cache].shape[axis]
    if isinstance(rows, int) and rows < wanted:
        raise Error(
            f"a cache of {wanted} positions was asked for, the {engine.name} engine was built for {rows}: ask for less "
            "(context_tokens, context_s), or build it again with `edge-sdk build-engine --context-tokens N "
            "--vocoder-context S`"
        )


class CallState:
    """One caller's states of one graph: every input whose name has `_cache` in it, with its output of the same name
    but `_cache_out`, over the same memory. All zero is the beginning of a stream."""

    def __init__(self, runtime: Runtime, engine: Engine, sizes: Mapping[str, int] | None = None) -> None:
        """`sizes` gives the named dimensions of the states' shapes."""
        known = sizes or {}
        for name in engine.inputs:
            if "capacity" in known and name.startswith(_CACHES):
                check_capacity(engine, name, known["capacity"])
        self.arrays: dict[str, Array] = {
            name: runtime.zeros(tuple(known[d] if isinstance(d, str) else d for d in spec.shape), spec.numpy_dtype)
            for name, spec in engine.inputs.items()
            if _MARK in name
        }

    def bind(self, call: Call) -> None:
        for name in self.arrays:
            self.bind_one(call, name)

    def bind_one(self, call: Call, name: str) -> None:
        call.set(name, self.arrays[name])
        call.out(name.replace(_MARK, _OUT), self.arrays[name])

    def clear(self, prefix: str = "") -> None:
        """Back to zero: all states, or those whose name begins with `prefix`."""
        for name, array in self.arrays.items():
            if name.startswith(prefix):
                array.fill(0)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())
