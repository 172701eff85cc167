"""Arrays between guard bytes: a kernel that writes past one is found, as is one that writes what it may only read."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np

from tests.csrc.cases import GUARD
from tests.csrc.reference import Array, Cache, DType, Packed, Weights

PATTERN = 0xA5
T = TypeVar("T")


class Guards:
    def __init__(self) -> None:
        self._all: list[tuple[Array, Array | None]] = []  # the memory, and what it must hold in the end

    def put(self, array: Array, *, writable: bool = False) -> Array:
        """A copy of `array` between guard bytes."""
        memory = np.full(array.nbytes + 2 * GUARD, PATTERN, np.uint8)
        inside: Array = memory[GUARD : GUARD + array.nbytes].view(array.dtype).reshape(array.shape)
        inside[...] = array
        self._all.append((memory, None if writable else memory.copy()))
        return inside

    def check(self) -> None:
        for memory, before in self._all:
            assert (memory[:GUARD] == PATTERN).all() and (memory[-GUARD:] == PATTERN).all(), "written past an array"
            assert before is None or (memory == before).all(), "an input was written"

    def matrix(self, packed: Packed) -> Packed:
        scales = None if packed.scales is None else self.put(packed.scales)
        return dataclasses.replace(packed, data=self.put(packed.data), scales=scales)

    def weights(self, weights: Weights) -> Weights:
        layers = tuple(self._fields(layer) for layer in weights.layers)
        return dataclasses.replace(self._fields(dataclasses.replace(weights, layers=())), layers=layers)

    def _fields(self, value: T) -> T:
        found: dict[str, Any] = {}
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            x = getattr(value, field.name)
            if isinstance(x, np.ndarray):
                x = self.put(x)
            found[field.name] = self.matrix(x) if isinstance(x, Packed) else x
        return type(value)(**found)

    def cache(self, cache: Cache) -> Cache:
        """The cache with NaN, in int8 99 with scales of NaN: what is read before it was written is seen."""
        nothing = 99 if cache.dtype == DType.I8 else np.nan

        def filled(arrays: list[Array], value: float) -> list[Array]:
            return [self.put(np.full_like(a, value), writable=True) for a in arrays]

        return dataclasses.replace(
            cache,
            keys=filled(cache.keys, nothing),
            values=filled(cache.values, nothing),
            key_scales=filled(cache.key_scales, np.nan),
            value_scales=filled(cache.value_scales, np.nan),
            rope_cos=self.put(cache.rope_cos),
            rope_sin=self.put(cache.rope_sin),
        )
