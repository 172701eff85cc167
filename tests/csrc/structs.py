"""The structs of csrc/kernels for ctypes, made from the arrays of reference.py; and arrays with guards around them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar

import numpy as np

from tests.csrc import reference as ref

Array = np.ndarray[Any, Any]

GUARD_BYTES = 256
GUARD = 0xA5


def host_bytes(size: int) -> Array:
    return np.empty(size, np.uint8)


class Arena:
    """Copies of arrays, each aligned to 256 bytes with guards before and after, that live as long as the arena.

    `allocate` gives the memory, uint8 [size]; a device that cannot read the host's needs its own.
    """

    def __init__(self, allocate: Callable[[int], Array] = host_bytes) -> None:
        self._allocate = allocate
        self._ends: list[tuple[Array, int, int]] = []

    def put(self, array: Array) -> Array:
        """A guarded copy, to be read and written in place."""
        size = array.nbytes
        whole = self._allocate(size + 3 * GUARD_BYTES)
        whole[:] = GUARD
        begin = GUARD_BYTES + (-whole.ctypes.data) % GUARD_BYTES
        copy = whole[begin : begin + size].view(array.dtype).reshape(array.shape)
        copy[...] = array
        self._ends.append((whole, begin, begin + size))
        return copy

    def pointer(self, array: Array | None) -> int | None:
        return None if array is None else self.put(array).ctypes.data

    def check(self) -> None:
        """No byte before or after any array was written."""
        for i, (whole, begin, end) in enumerate(self._ends):
            assert (whole[:begin] == GUARD).all() and (whole[end:] == GUARD).all(), f"array {i} was written outside"


class Matrix(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("data", c_void_p), ("scales", c_void_p), ("dtype", c_int32), ("scale_dtype", c_int32),
        ("rows", c_int32), ("cols", c_int32), ("block", c_int32),
    ]  # fmt: skip

    @classmethod
    def of(cls, m: ref.Packed, arena: Arena) -> Matrix:
        return cls(arena.pointer(m.data), arena.pointer(m.scales), m.dtype, m.scale_dtype, m.rows, m.cols, m.block)


class GroupTokensArgs(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("table", Matrix), ("ids", c_void_p), ("text", c_void_p), ("out", c_void_p),
        ("count", c_int32), ("group_size", c_int32),
    ]  # fmt: skip


class GroupRowsArgs(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("rows_in", c_void_p), ("out", c_void_p), ("rows", c_int32), ("width", c_int32), ("group_size", c_int32),
    ]  # fmt: skip


class Shape(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        *((name, c_int32) for name in (
            "group_size", "hidden", "width", "layers", "heads", "kv_heads", "head_dim", "cache_head_dim",
            "intermediate", "codes", "bos",
        )),
        ("eps", c_float),
    ]  # fmt: skip

    @classmethod
    def of(cls, s: ref.Shape) -> Shape:
        return cls(**{name: getattr(s, name) for name, _ in cls._fields_})


LAYER_NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")
LAYER_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Layer(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        *((name, c_void_p) for name in LAYER_NORMS),
        *((name, Matrix) for name in LAYER_MATRICES),
    ]

    @classmethod
    def of(cls, layer: ref.Layer, arena: Arena) -> Layer:
        norms = [arena.pointer(getattr(layer, name)) for name in LAYER_NORMS]
        return cls(*norms, *(Matrix.of(getattr(layer, name), arena) for name in LAYER_MATRICES))


class Weights(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("input", Matrix), ("input_bias", c_void_p), ("input_table", Matrix), ("output_table", Matrix),
        ("final_norm", c_void_p), ("layers", POINTER(Layer)),
    ]  # fmt: skip

    @classmethod
    def of(cls, w: ref.Weights, arena: Arena) -> Weights:
        layers = (Layer * len(w.layers))(*(Layer.of(layer, arena) for layer in w.layers))
        tables = (Matrix.of(w.input_table, arena), Matrix.of(w.output_table, arena))
        return cls(Matrix.of(w.input, arena), arena.pointer(w.input_bias), *tables, arena.pointer(w.final_norm), layers)


class Cache(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("dtype", c_int32), ("capacity", c_int32), ("keys", POINTER(c_void_p)), ("values", POINTER(c_void_p)),
        ("key_scales", POINTER(c_void_p)), ("value_scales", POINTER(c_void_p)), ("rope_cos", c_void_p),
        ("rope_sin", c_void_p),
    ]  # fmt: skip

    @classmethod
    def of(cls, cache: ref.Cache, arena: Arena) -> tuple[Cache, ref.Cache]:
        """The struct, and the arrays that it points to as a cache of their own."""
        parts = {name: [arena.put(a) for a in getattr(cache, name)] for name in _CACHE_PARTS}
        pointers = {
            name: (c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)) if arrays else None
            for name, arrays in parts.items()
        }
        struct = cls(
            cache.dtype, cache.capacity, *(pointers[name] for name in _CACHE_PARTS),
            arena.pointer(cache.rope_cos), arena.pointer(cache.rope_sin),
        )  # fmt: skip
        return struct, ref.Cache(**parts, dtype=cache.dtype, rope_cos=cache.rope_cos, rope_sin=cache.rope_sin)


_CACHE_PARTS = ("keys", "values", "key_scales", "value_scales")


class Sampling(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("do_sample", c_int32), ("temperature", c_float), ("top_p", c_float), ("top_k", c_int32),
        ("repetition_penalty", c_float), ("seed", c_uint64), ("turn", c_uint32), ("step", c_uint32),
    ]  # fmt: skip

    @classmethod
    def of(cls, s: ref.Sampling) -> Sampling:
        return cls(**{name: getattr(s, name) for name, _ in cls._fields_})


class Group(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("head_input", c_void_p), ("last_id", c_int64), ("length", c_int32), ("seen", c_void_p),
        ("sampling", Sampling), ("ids", c_void_p), ("logits", c_void_p), ("forced", c_void_p),
        ("cuda_sampling", c_void_p),
    ]  # fmt: skip


class CudaSampling(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("do_sample", c_int32), ("top_k", c_int32), ("temperature", c_float), ("top_p", c_float),
        ("repetition_penalty", c_float), ("seed_low", c_uint32), ("seed_high", c_uint32),
    ]  # fmt: skip

    @classmethod
    def of(cls, s: ref.Sampling) -> CudaSampling:
        rest = (s.temperature, s.top_p, s.repetition_penalty)
        return cls(s.do_sample, s.top_k, *rest, s.seed % 2**32, s.seed >> 32)


class CudaState(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("last_id", c_int64), ("length", c_int32), ("turn", c_uint32), ("step", c_uint32), ("error", c_int32),
    ]  # fmt: skip
