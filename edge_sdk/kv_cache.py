"""KVCache: keys and values of one transformer for one conversation, in fixed memory that never moves."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from edge_sdk.call_state import check_capacity
from edge_sdk.errors import Error
from edge_sdk.runtime import Array, Call, Engine, Runtime


class Positions:
    """How far a cache of `capacity` positions is filled. What lies past `length` is overwritten before it is read."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0

    def begin(self, rows: int) -> None:
        """Announce that the next run appends `rows` positions."""
        if self.length + rows > self.capacity:
            raise Error(f"KV cache of {self.capacity} positions cannot take {rows} more after {self.length}")

    def commit(self, rows: int) -> None:
        self.length += rows

    def trim(self, length: int) -> None:
        """Forget every position from `length` on."""
        if not 0 <= length <= self.length:
            raise Error(f"KV cache holds {self.length} positions, cannot trim to {length}")
        self.length = length

    def reset(self) -> None:
        self.length = 0


class KVCache(Positions):
    """Holds the cache arrays that an engine names (`key_cache.0`, `value_cache.0`, ...) and the filled length.

    The engine appends in place: `begin` announces the rows of the next run, `commit` counts them.
    """

    def __init__(self, runtime: Runtime, engine: Engine, capacity: int) -> None:
        super().__init__(capacity)
        self._arrays: dict[str, Array] = {}
        for name, spec in engine.inputs.items():
            if "_cache." not in name:
                continue
            check_capacity(engine, name, capacity)
            shape = tuple(capacity if dim == "capacity" else int(dim) for dim in spec.shape)
            self._arrays[name] = runtime.zeros(shape, spec.numpy_dtype)
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)

    def bind(self, call: Call) -> None:
        """Bind cache and length inputs once; `begin` changes their contents only."""
        for name, array in self._arrays.items():
            call.set(name, array)
            call.out(name.replace("_cache.", "_cache_out."), array)
        call.set("last_position", self._last)
        call.set("total_positions", self._total)

    def begin(self, rows: int) -> None:
        super().begin(rows)
        total = self.length + rows
        self._last[0] = total - 1
        self._total[()] = total

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())


@functools.lru_cache(maxsize=4)
def rope_tables(head_dim: int, theta: float, positions: int) -> tuple[Array, Array]:
    """cos and sin [positions, head_dim/2] float32, evaluated in float32 as the reference does. One pair for all
    conversations of a size; nobody writes into it."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (1.0 / np.power(np.float32(theta), exponent, dtype=np.float32)).astype(np.float32)
    angle: np.ndarray[Any, Any] = np.arange(positions, dtype=np.float32)[:, None] * inverse[None, :]
    return np.cos(angle), np.sin(angle)
