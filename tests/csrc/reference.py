"""What the native kernels compute, stated once more in NumPy: packed matrices, picks, grouping, the speech head.

Independent of csrc/ (only the layouts of kernels/matrix.h and kernels/speech_head.h are shared) and slow on purpose:
one position at a time, in float64 by default. Two options state the arithmetic of a certain backend: `dtype` (the
precision of everything that is not a weight) and `quantize_activations` (the CPU kernels' integer products).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from edge_sdk.sampling import uniform

Array = np.ndarray[Any, Any]


class DType(IntEnum):
    """Values of `enum class DType` in csrc/kernels/matrix.h."""

    F32 = 0
    F16 = 1
    I8 = 2
    I4 = 3


class Code(IntEnum):
    """Values of `enum class Code` in csrc/core/status.h."""

    OK = 0
    INVALID_ARGUMENT = 1
    NOT_FINITE = 2
    CACHE_FULL = 3
    NO_CHOICE = 4


class RefusedError(Exception):
    """A call that makes nothing; `code` is what a kernel reports."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


# -- packed matrices


@dataclass(frozen=True)
class Packed:
    """`struct Matrix` of csrc/kernels/matrix.h: the arrays hold exactly the bytes that a kernel reads."""

    data: Array  # F32, F16: [rows, cols]; I8: uint8 [rows, blocks * block]; I4: uint8 [rows, blocks * block / 2]
    scales: Array | None  # [rows, blocks], float32 or float16
    dtype: DType
    scale_dtype: DType
    rows: int
    cols: int
    block: int

    @property
    def blocks(self) -> int:
        return -(-self.cols // self.block) if self.scales is not None else 1

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


_STORED: dict[DType, Any] = {DType.F32: np.float32, DType.F16: np.float16}
_LARGEST = {DType.I8: 127, DType.I4: 7}
_ZERO_POINT = {DType.I8: 128, DType.I4: 8}


def quantize(matrix: Array, dtype: DType, block: int = 0, scale_dtype: DType = DType.F32) -> Packed:
    """Round to nearest, symmetric, one scale (largest magnitude / 127 or / 7) for each block of a row.

    The scale is rounded to its stored type first and values are divided by what is stored. A block of zeros has scale
    0; the last block is filled up with the zero point.
    """
    rows, cols = matrix.shape
    if dtype in _STORED:
        return Packed(np.ascontiguousarray(matrix, _STORED[dtype]), None, dtype, DType.F32, rows, cols, 0)
    blocks = -(-cols // block)
    values = np.zeros((rows, blocks * block), np.float32)
    values[:, :cols] = matrix
    values = values.reshape(rows, blocks, block)
    largest = _LARGEST[dtype]
    scales = (np.abs(values).max(axis=2) / np.float32(largest)).astype(_STORED[scale_dtype])
    divisor = np.where(scales == 0, 1, scales).astype(np.float32)[:, :, None]
    q = np.clip(np.rint(values / divisor), -largest, largest).astype(np.int32) + _ZERO_POINT[dtype]
    stored = q.reshape(rows, blocks * block).astype(np.uint8)
    if dtype == DType.I4:
        stored = stored[:, 0::2] | stored[:, 1::2] << 4
    return Packed(np.ascontiguousarray(stored), scales, dtype, scale_dtype, rows, cols, block)


def integers(packed: Packed) -> Array:
    """Quantized values without their scale, int32 [rows, blocks * block]: q - zero point."""
    stored = packed.data
    if packed.dtype == DType.I4:
        stored = np.stack([packed.data & 15, packed.data >> 4], axis=2).reshape(packed.rows, -1)
    return stored.astype(np.int32) - _ZERO_POINT[packed.dtype]


def dequantize(packed: Packed, dtype: Any = np.float64) -> Array:
    """The matrix that `packed` stands for, [rows, cols]; in float64 every product of q and scale is exact."""
    if packed.scales is None:
        return packed.data.astype(dtype)
    blocks = integers(packed).reshape(packed.rows, packed.blocks, packed.block).astype(dtype)
    whole = blocks * packed.scales.astype(dtype)[:, :, None]
    return np.ascontiguousarray(whole.reshape(packed.rows, -1)[:, : packed.cols])


NOTHING = np.float32(1e-30)  # a block whose largest magnitude is below this counts as zeros: 127 / it would overflow


def quantize_activation(x: Array, block: int) -> tuple[Array, Array]:
    """One vector for integer products: int32 [blocks, block] and float32 scales [blocks] = largest magnitude / 127."""
    blocks = -(-len(x) // block)
    padded = np.zeros(blocks * block, np.float32)
    padded[: len(x)] = x
    padded = padded.reshape(blocks, block)
    largest = np.abs(padded).max(axis=1)
    some = largest >= NOTHING
    factor = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=some)
    return np.rint(padded * factor[:, None]).astype(np.int32), np.where(some, largest / np.float32(127), 0)


class Linear:
    """y = W x, as a kernel that does or does not quantize activations computes it.

    Args:
        packed: W.
        dtype: of x, y and the products (float64 or float32).
        quantize_activations: integer products for I8 and I4 weights.
        activation_block: values that share an activation scale; 0 takes the weight's block.
    """

    def __init__(
        self, packed: Packed, dtype: Any = np.float64, quantize_activations: bool = False, activation_block: int = 0
    ) -> None:
        self._packed, self._dtype = packed, dtype
        self._integer = quantize_activations and packed.scales is not None
        self._block = activation_block or packed.block
        self._weight = None if self._integer else dequantize(packed, dtype)

    def __call__(self, x: Array) -> Array:
        if self._weight is not None:
            y: Array = self._weight @ x.astype(self._dtype)
            return y
        if not np.isfinite(x).all():
            return np.full(self._packed.rows, np.nan, self._dtype)
        p = self._packed
        assert p.scales is not None and p.block % self._block == 0, "an activation block lies inside a weight block"
        q, scales = quantize_activation(x, self._block)
        count = p.blocks * p.block // self._block
        q, scales = _grown(q, count), _grown(scales, count)
        weight = integers(p).reshape(p.rows, count, self._block)
        sums = np.einsum("rbi,bi->rb", weight, q).astype(self._dtype)
        weight_scales = np.repeat(p.scales.astype(self._dtype), p.block // self._block, axis=1)
        return (sums * weight_scales * scales.astype(self._dtype)).sum(axis=1)


def _grown(x: Array, rows: int) -> Array:
    return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])


def random_matrix(rng: np.random.Generator, rows: int, cols: int, gain: float = 1.0) -> Array:
    """A matrix that keeps the size of what it is applied to, times `gain`; float32 [rows, cols]."""
    return (rng.standard_normal((rows, cols)) * (gain / np.sqrt(cols))).astype(np.float32)


# -- token grouping


def group_tokens(table: Packed, ids: Array, text: Array | None) -> Array:
    """Sum of the table's rows of each group, ids [count, G]; averaged with text [count, width] where given. An id
    outside the table adds nothing."""
    rows = dequantize(table)
    known = (ids >= 0) & (ids < table.rows)
    out: Array = (rows[np.where(known, ids, 0)] * known[:, :, None]).sum(axis=1)
    return out if text is None else (text.astype(np.float64) + out) / 2


def group_rows(rows: Array, group_size: int) -> Array:
    """Mean over groups of G rows [rows, width] -> [ceil(rows / G), width]; missing rows count as zero."""
    groups = -(-len(rows) // group_size)
    padded = np.zeros((groups * group_size, rows.shape[1]))
    padded[: len(rows)] = rows
    mean: Array = padded.reshape(groups, group_size, rows.shape[1]).sum(axis=1) / group_size
    return mean


# -- picks


@dataclass(frozen=True)
class Sampling:
    """`struct Sampling` of csrc/kernels/speech_head.h."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    turn: int = 0
    step: int = 0


def pick(logits: Array, seen: Array, sampling: Sampling, number: float) -> int:
    """The id that `number` in [0, 1) decides; float32 scores, as edge_sdk/sampling.py states it.

    Where that leaves the order of equal scores open (top-p), the lower id counts as the likelier one. Raises
    RefusedError with NOT_FINITE if any logit is not finite, NO_CHOICE if the processors leave nothing to choose from.
    """
    if not np.isfinite(logits).all():
        raise RefusedError(Code.NOT_FINITE)
    scores = logits.astype(np.float32)
    if sampling.repetition_penalty != 1.0:
        penalty = np.float32(sampling.repetition_penalty)
        scores = np.where(seen != 0, np.where(scores < 0, scores * penalty, scores / penalty), scores)
    if sampling.do_sample and sampling.temperature != 1.0:
        with np.errstate(over="ignore"):
            scores = scores / np.float32(sampling.temperature)
    best = int(scores.argmax())
    if not np.isfinite(scores[best]):
        raise RefusedError(Code.NO_CHOICE)
    if not sampling.do_sample:
        return best
    order = np.argsort(-scores, kind="stable")
    if 0 < sampling.top_k < len(scores):
        order = order[: np.count_nonzero(scores >= scores[order[sampling.top_k - 1]])]
    if sampling.top_p < 1.0:
        weights = np.exp(scores[order] - scores[best]).astype(np.float64)
        above = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
        order = order[: max(1, np.count_nonzero(above < sampling.top_p * weights.sum()))]
    kept = np.sort(order)
    cumulated = np.cumsum(np.exp(scores[kept].astype(np.float64) - float(scores[best])))
    at = int(np.searchsorted(cumulated, number * cumulated[-1], side="right"))
    return int(kept[min(at, len(kept) - 1)])


# -- the speech head


@dataclass(frozen=True)
class Shape:
    """`struct SpeechHeadShape` of csrc/kernels/speech_head.h."""

    group_size: int
    hidden: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    codes: int
    bos: int
    eps: float = 1e-6

    @property
    def cache_head_dim(self) -> int:
        return -(-self.head_dim // 8) * 8


@dataclass(frozen=True)
class Layer:
    input_norm: Array
    post_norm: Array
    q_norm: Array
    k_norm: Array
    q: Packed
    k: Packed
    v: Packed
    o: Packed
    gate: Packed
    up: Packed
    down: Packed


@dataclass(frozen=True)
class Weights:
    input: Packed
    input_bias: Array
    input_table: Packed
    output_table: Packed
    final_norm: Array
    layers: tuple[Layer, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of matrices that one step reads: all but the input projection and the input table."""
        matrices = [
            getattr(layer, name) for layer in self.layers for name in ("q", "k", "v", "o", "gate", "up", "down")
        ]
        return self.output_table.nbytes + sum(m.nbytes for m in matrices)


@dataclass
class Cache:
    """`struct SpeechHeadCache` of csrc/kernels/speech_head.h; one per conversation. I8 is signed, -127..127."""

    keys: list[Array]  # a layer: [kv_heads, capacity, cache_head_dim]
    values: list[Array]
    key_scales: list[Array]  # I8 only, a layer: float32 [kv_heads, capacity]
    value_scales: list[Array]
    dtype: DType
    rope_cos: Array  # float32 [capacity, head_dim / 2]
    rope_sin: Array
    length: int = 0  # filled positions

    @property
    def capacity(self) -> int:
        return int(self.keys[0].shape[1])

    @classmethod
    def empty(cls, shape: Shape, dtype: DType, rope: tuple[Array, Array]) -> Cache:
        """A cache for as many positions as `rope` has; it holds zeros."""
        capacity = len(rope[0])
        stored = {DType.F32: np.float32, DType.F16: np.float16, DType.I8: np.int8}[dtype]
        size = (shape.kv_heads, capacity, shape.cache_head_dim)

        def arrays() -> list[Array]:
            return [np.zeros(size, stored) for _ in range(shape.layers)]

        def scales() -> list[Array]:
            count = shape.layers if dtype == DType.I8 else 0
            return [np.zeros((shape.kv_heads, capacity), np.float32) for _ in range(count)]

        return cls(arrays(), arrays(), scales(), scales(), dtype, *rope)

    def write(self, layer: int, position: int, key: Array, value: Array) -> None:
        """key, value [kv_heads, head_dim] at one position, rounded to what the cache stores."""
        for rows, scales, x in ((self.keys, self.key_scales, key), (self.values, self.value_scales, value)):
            stored = x
            if self.dtype == DType.I8:
                largest = np.abs(x.astype(np.float32)).max(axis=1)
                scale = np.where(largest >= NOTHING, largest / np.float32(127), 0).astype(np.float32)
                scales[layer][:, position] = scale
                divisor = np.where(scale == 0, np.float32(np.inf), scale)[:, None]
                stored = np.clip(np.rint(x.astype(np.float32) / divisor), -127, 127)
            with np.errstate(over="ignore", invalid="ignore"):
                rows[layer][:, position, : x.shape[1]] = stored

    def read(self, layer: int, positions: int, head_dim: int, dtype: Any) -> tuple[Array, Array]:
        """Keys and values [kv_heads, positions, head_dim] of the first `positions` positions."""
        out = []
        for rows, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
            x = rows[layer][:, :positions, :head_dim].astype(dtype)
            out.append(x * scales[layer][:, :positions, None].astype(dtype) if self.dtype == DType.I8 else x)
        return out[0], out[1]


@dataclass
class Group:
    ids: list[int] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)  # a pick: [codes], before any processor


class SpeechHeadReference:
    """The speech head over one cache. `cache` is public: a test may compare it with a kernel's, or put a kernel's in.

    Args:
        shape, weights: as the kernels get them.
        cache: is written.
        dtype: of everything but weights and cache, float64 or float32.
        quantize_activations, activation_block: see Linear.
    """

    def __init__(
        self,
        shape: Shape,
        weights: Weights,
        cache: Cache,
        dtype: Any = np.float64,
        quantize_activations: bool = False,
        activation_block: int = 0,
    ) -> None:
        self.shape, self.cache = shape, cache
        self._weights, self._dtype = weights, dtype

        def linear(packed: Packed) -> Linear:
            return Linear(packed, dtype, quantize_activations, activation_block)

        self._input, self._output = linear(weights.input), linear(weights.output_table)
        self._input_table = dequantize(weights.input_table, dtype)
        names = ("q", "k", "v", "o", "gate", "up", "down")
        self._linear = [{name: linear(getattr(layer, name)) for name in names} for layer in weights.layers]

    def prefill(self, head_input: Array) -> None:
        """Append head_input [count, hidden] as count * G positions, each joined by the BOS row."""
        self._check(head_input, self.shape.bos)
        for row in head_input:
            for position in self._rows(row):
                self._stack(position + self._input_table[self.shape.bos])

    def group(
        self,
        head_input: Array,
        last_id: int,
        seen: Array,
        sampling: Sampling,
        forced: Sequence[int] | None = None,
    ) -> Group:
        """One group of G ids from head_input [hidden]. `seen` [codes] is not changed; the group's picks join a copy.

        With `forced` those ids are taken for the picks, whatever the logits say: so logits of two implementations stay
        comparable after a pick that rounding decides.
        """
        self._check(head_input[None], last_id)
        seen, group, previous = seen.copy(), Group(), last_id
        start = self.cache.length
        for j, row in enumerate(self._rows(head_input)):
            logits = self._output(self._stack(row + self._input_table[previous])).astype(np.float32)
            try:
                number = uniform(sampling.seed, sampling.turn, sampling.step, j)
                chosen = pick(logits, seen, sampling, number) if forced is None else int(forced[j])
            except RefusedError:
                self.cache.length = start
                raise
            group.ids.append(chosen)
            group.logits.append(logits)
            seen[chosen] = 1
            previous = chosen
        return group

    def _check(self, head_input: Array, last_id: int) -> None:
        if not 0 <= last_id < self.shape.codes:
            raise RefusedError(Code.INVALID_ARGUMENT)
        if self.cache.length + len(head_input) * self.shape.group_size > self.cache.capacity:
            raise RefusedError(Code.CACHE_FULL)
        if not np.isfinite(head_input).all():
            raise RefusedError(Code.NOT_FINITE)

    def _rows(self, head_input: Array) -> Array:
        """[hidden] -> [G, width]: the positions that one backbone position opens."""
        rows: Array = self._input(head_input) + self._weights.input_bias.astype(self._dtype)
        return rows.reshape(self.shape.group_size, self.shape.width)

    def _stack(self, x: Array) -> Array:
        """One position through all layers, appended to the cache; returns the row after the final norm."""
        for index, layer in enumerate(self._weights.layers):
            linear = self._linear[index]
            x = x + linear["o"](self._attention(index, layer, self._norm(x, layer.input_norm)))
            h = self._norm(x, layer.post_norm)
            gate = linear["gate"](h)
            with np.errstate(over="ignore"):
                x = x + linear["down"](gate / (1 + np.exp(-gate)) * linear["up"](h))
        self.cache.length += 1
        return self._norm(x, self._weights.final_norm)

    def _attention(self, index: int, layer: Layer, h: Array) -> Array:
        s, position, linear = self.shape, self.cache.length, self._linear[index]
        q = self._rotate(self._norm(linear["q"](h).reshape(s.heads, s.head_dim), layer.q_norm), position)
        k = self._rotate(self._norm(linear["k"](h).reshape(s.kv_heads, s.head_dim), layer.k_norm), position)
        self.cache.write(index, position, k, linear["v"](h).reshape(s.kv_heads, s.head_dim))
        keys, values = self.cache.read(index, position + 1, s.head_dim, self._dtype)
        out = np.empty_like(q)
        for head in range(s.heads):
            shared = head * s.kv_heads // s.heads
            scores = keys[shared] @ q[head] * self._dtype(s.head_dim**-0.5)
            weights = np.exp(scores - scores.max())
            out[head] = weights @ values[shared] / weights.sum()
        return out.reshape(-1)

    def _norm(self, x: Array, weight: Array) -> Array:
        mean = (x * x).mean(axis=-1, keepdims=True, dtype=self._dtype)
        result: Array = x / np.sqrt(mean + self._dtype(self.shape.eps)) * weight.astype(self._dtype)
        return result

    def _rotate(self, x: Array, position: int) -> Array:
        """Rotate-half of x [heads, head_dim]."""
        cos, sin = (t[position].astype(self._dtype) for t in (self.cache.rope_cos, self.cache.rope_sin))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
